"""What the second convolution's update says about the activations of the first: linear, and solved for any start.

With delta (O, J, T) the gradient of the second convolution's output, its weight shares

    dW[o, i, a, b] = sum_{j,t} delta[o, j, t] z[i, s j + a, t + b],

linear in the first layer's activations z, with the same matrix M for every input channel i, and apart for every residue
of a modulo the stride s: one Cholesky factor of M'M + rho for each residue serves all channels. M'M is a sum of shifted
copies of delta' delta, so that M itself is never formed. Up to about 55 output frames of the default sizes, M z = dW
has one solution.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from overheard.attacks.conv_front import Front
from overheard.recognition.deepspeech2 import KERNELS, STRIDES

SOFTNESS = 1e-6
"""rho, relative to the mean eigenvalue of M'M: below what is determined, above what rounding of the update makes."""


class ActivationEquations:
    """M z = dW, ready to be solved for any start.

    Args:
        front: the geometry.
        delta: gradient of the second convolution's output, (C, K, T).
        update: of its weight, (C, I, k_f, k_t), float64.
        shape: (K, U), frequencies and frames of z.
    """

    def __init__(
        self, front: Front, delta: Float[Tensor, "C K T"], update: Float[Tensor, "C I A B"], shape: tuple[int, int]
    ) -> None:
        self._shape = shape
        self._padding = front.padding[1]
        self._residues = range(STRIDES[1][0])
        right = functional.conv_transpose2d(delta[None], update, None, STRIDES[1])[0]
        # Frequencies and frames that no window of the second layer reaches.
        missing = [size + 2 * pad - have for size, pad, have in zip(shape, self._padding, right.shape[1:], strict=True)]
        self._right = functional.pad(right, (0, missing[1], 0, missing[0]))
        self._factors, self._softness = [], []
        for residue in self._residues:
            gram = _gram(delta, residue, (shape[0] + 2 * self._padding[0], shape[1] + 2 * self._padding[1]))
            inside = self._inside(residue)
            if not bool(inside.all()):
                gram = gram[inside][:, inside]
            softness = SOFTNESS * float(gram.diagonal().mean())
            gram.diagonal().add_(softness)
            self._factors.append(torch.linalg.cholesky(gram))
            self._softness.append(softness)
        self._rough = [factor.float() for factor in self._factors]

    def nearest(self, activations: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """The solution nearest to given activations: least |M z - dW|^2 + rho |z - activations|^2."""
        return self._solve(self._right, activations, self._factors)

    def determined(self, change: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """The part of a change of activations that the update sees: (M'M + rho)^-1 M'M, close to a projection.

        In float32 where the change is, at half the price: this is for the inside of iterations.
        """
        factors = self._factors if change.dtype == torch.float64 else self._rough
        return change - self._solve(None, change, factors)

    def _solve(self, right: Tensor | None, start: Tensor, factors: list[Tensor]) -> Tensor:
        padded = functional.pad(start, (self._padding[1],) * 2 + (self._padding[0],) * 2)
        found = torch.zeros_like(padded)
        stride = STRIDES[1][0]
        for residue, factor, softness in zip(self._residues, factors, self._softness, strict=True):
            inside = self._inside(residue)
            known = softness * padded[:, residue::stride].flatten(1)[:, inside]
            if right is not None:
                known = known + right[:, residue::stride].flatten(1)[:, inside]
            half = torch.linalg.solve_triangular(factor, known.T, upper=False)
            values = torch.zeros_like(padded[:, residue::stride]).flatten(1)
            values[:, inside] = torch.linalg.solve_triangular(factor.T, half, upper=True).T
            found[:, residue::stride] = values.view_as(found[:, residue::stride])
        (low, early), (high, long) = self._padding, self._shape
        return found[:, low : low + high, early : early + long]

    def _inside(self, residue: int) -> Tensor:
        """Which of the padded unknowns of a residue are real ones, flat."""
        real = torch.ones(self._shape, dtype=torch.bool, device=self._right.device)
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
