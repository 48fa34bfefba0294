"""What the second convolution's update says about the activations of the first: linear, and solved for any start.

With delta (O, J, T) the gradient of the second convolution's output, its weight shares

    dW[o, i, a, b] = sum_{j,t} delta[o, j, t] z[i, s j + a, t + b],

linear in the first layer's activations z, with the same matrix M for every input channel i, and apart for every residue
of a modulo the stride s: one Cholesky factor of M'M + rho for each residue serves all channels. M'M is a sum of shifted
copies of delta' delta, so that M itself is never formed. Up to about 55 output frames of the default sizes, M z = dW
has one solution; beyond, it determines a part. At the edges, and where gradients are faint, columns of M are many times
shorter than elsewhere, and least squares would leave most of what is undetermined there. So all columns are brought to
one length: unknowns are c z, c the length of their column, and distances are measured in them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from overheard.attacks.conv_front import Front
from overheard.recognition.deepspeech2 import KERNELS, STRIDES

SOFTNESS = 1e-6
"""rho, relative to the mean eigenvalue of M'M: below what is determined, above what rounding of the update makes."""

SHORTEST = 1e-3
"""Length of a column, relative to the longest, below which it counts as that long."""


class ActivationEquations:
    """M z = dW, ready to be solved for any start.

    Args:
        front: the geometry.
        delta: gradient of the second convolution's output, (C, K, T).
        update: of its weight, (C, I, k_f, k_t), float64.
        shape: (K, U), frequencies and frames of z.

    Attributes:
        lengths: c, of the columns of M, relative to the longest.
    """

    lengths: Float[Tensor, "K U"]

    def __init__(
        self, front: Front, delta: Float[Tensor, "C K T"], update: Float[Tensor, "C I A B"], shape: tuple[int, int]
    ) -> None:
        self._shape = shape
        self._padding = front.padding[1]
        self._device = delta.device
        stride = STRIDES[1][0]
        padded = tuple(size + 2 * pad for size, pad in zip(shape, self._padding, strict=True))
        lengths = delta.new_ones(padded)
        self._factors = []
        for residue in range(stride):
            gram = _gram(delta, residue, (padded[0], padded[1]))
            inside = self._inside(residue)
            if not bool(inside.all()):
                gram = gram[inside][:, inside]
            length = gram.diagonal().sqrt()
            length = length.clamp(min=SHORTEST * float(length.max()) + torch.finfo(length.dtype).tiny)
            gram /= length[:, None]
            gram /= length
            gram.diagonal().add_(SOFTNESS)
            self._factors.append(torch.linalg.cholesky(gram))
            lengths[residue::stride] = delta.new_ones(inside.shape).masked_scatter(inside, length).view(-1, padded[1])
        self._rough = [factor.float() for factor in self._factors]
        right = functional.conv_transpose2d(delta[None], update, None, STRIDES[1])[0]
        # Frequencies and frames that no window of the second layer reaches.
        missing = [size - have for size, have in zip(padded, right.shape[1:], strict=True)]
        longest = lengths[self._window()].max()
        self._right = functional.pad(right, (0, missing[1], 0, missing[0])) / (lengths * longest)
        self.lengths = lengths[self._window()] / longest

    def nearest(self, activations: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """The solution z nearest to given activations z_0: least |M z - dW|^2 + rho |c (z - z_0)|^2."""
        return self._solve(self._right, activations * self.lengths, self._factors) / self.lengths

    def determined(self, change: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """P c z, what the update sees of a change z; P = (M'M + rho)^-1 M'M with equal columns, nearly a projection.

        In float32 where the change is, at half the price: this is for the inside of iterations.
        """
        factors = self._factors if change.dtype == torch.float64 else self._rough
        scaled = change * self.lengths.to(change.dtype)
        return scaled - self._solve(None, scaled, factors)

    def _solve(self, right: Tensor | None, start: Tensor, factors: list[Tensor]) -> Tensor:
        padded = functional.pad(start, (self._padding[1],) * 2 + (self._padding[0],) * 2)
        found = torch.zeros_like(padded)
        stride = STRIDES[1][0]
        for residue, factor in enumerate(factors):
            inside = self._inside(residue)
            known = SOFTNESS * padded[:, residue::stride].flatten(1)[:, inside]
            if right is not None:
                known = known + right[:, residue::stride].flatten(1)[:, inside]
            half = torch.linalg.solve_triangular(factor, known.T, upper=False)
            values = torch.zeros_like(padded[:, residue::stride]).flatten(1)
            values[:, inside] = torch.linalg.solve_triangular(factor.T, half, upper=True).T
            found[:, residue::stride] = values.view_as(found[:, residue::stride])
        return found[(slice(None), *self._window())]

    def _window(self) -> tuple[slice, slice]:
        """Where the real unknowns lie among the padded ones."""
        (low, early), (high, long) = self._padding, self._shape
        return slice(low, low + high), slice(early, early + long)

    def _inside(self, residue: int) -> Tensor:
        """Which of the padded unknowns of a residue are real ones, flat."""
        real = torch.ones(self._shape, dtype=torch.bool, device=self._device)
        padded = functional.pad(real, (self._padding[1],) * 2 + (self._padding[0],) * 2)
        return padded[residue :: STRIDES[1][0]].flatten()


def _gram(delta: Float[Tensor, "C K T"], residue: int, shape: tuple[int, int]) -> Float[Tensor, "U U"]:
    """M'M of one residue: delta' delta, shifted by every place in the kernel and summed, one axis at a time."""
    _, high, long = delta.shape
    stride = STRIDES[1][0]
    shifts = len(range(residue, KERNELS[1][0], stride))
    rows = len(range(residue, shape[0], stride))
    flat = delta.flatten(1)
    inner = (flat.T @ flat).view(high, long, high, long)
    over_frequency = inner.new_zeros(rows, long, rows, long)
    for shift in range(shifts):
        over_frequency[shift : shift + high, :, shift : shift + high] += inner
    over_time = inner.new_zeros(rows, shape[1], rows, shape[1])
    for shift in range(KERNELS[1][1]):
        over_time[:, shift : shift + long, :, shift : shift + long] += over_frequency
    return over_time.view(rows * shape[1], rows * shape[1])
