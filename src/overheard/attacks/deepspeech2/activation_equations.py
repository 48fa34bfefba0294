"""What the second convolution's update says about the activations of the first: linear, and solved for any start.

With delta (O, J, T) the gradient of the second convolution's output, its weight shares

    dW[o, i, a, b] = sum_{j,t} delta[o, j, t] z[i, s j + a, t + b],

linear in the first layer's activations z, with the same matrix M for every input channel i. M z is the gradient of that
convolution by its weight, M' y its gradient by its input, so M itself is needed only for M M', which is of one size
however long the utterance is, and apart for every residue of a modulo the stride s: one Cholesky factor of M M' + rho
for each residue serves all channels. Up to about 55 output frames of the default sizes, M z = dW has one solution;
beyond, it determines a part. At the edges, and where gradients are faint, columns of M are many times shorter than
elsewhere, and least squares would leave most of what is undetermined there. So all columns are brought to one length:
unknowns are c z, c the length of their column, and distances are measured in them.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from overheard.attacks.deepspeech2.conv_front import Front
from overheard.recognition.deepspeech2 import KERNELS, STRIDES

SOFTNESS = 1e-6
"""rho, relative to the square of a column of M: below what is determined, above what rounding of the update makes."""

SHORTEST = 1e-3
"""Length of a column, relative to the longest, below which it counts as that long."""

ROWS_AT_ONCE = 1024
"""Of M M', whose other half follows by symmetry."""


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
        self._shape, self._padding = shape, front.padding[1]
        lengths = self._transposed(update.new_ones(1, 1, *KERNELS[1]), delta.square().sum(dim=0, keepdim=True))[0]
        lengths = lengths.sqrt()
        longest = float(lengths.max()) or 1.0
        lengths = lengths.clamp(min=SHORTEST * longest)
        self.lengths = lengths / longest
        self._delta, self._update = delta / longest, update / longest
        self._rough = self._delta.float()
        self._factors = [torch.linalg.cholesky(_gram(self._columns(residue))) for residue in range(STRIDES[1][0])]
        self._rough_factors = [factor.float() for factor in self._factors]

    def nearest(self, activations: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """The solution z nearest to given activations z_0: least |M z - dW|^2 + rho |c (z - z_0)|^2.

        In float32 where they are, at a fraction of the price.
        """
        kind = activations.dtype
        missing = self._update.to(kind) - self._seen(activations)
        return activations + self._explained(missing) / self.lengths.to(kind).square()

    def determined(self, change: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """P c z, what the update sees of a change z; P = M' (M M' + rho)^-1 M with equal columns, nearly a projection.

        In float32 where the change is: this is for the inside of iterations.
        """
        return self._explained(self._seen(change)) / self.lengths.to(change.dtype)

    def _seen(self, activations: Float[Tensor, "I K U"]) -> Float[Tensor, "O I A B"]:
        """M z."""
        delta = self._delta if activations.dtype == torch.float64 else self._rough
        weight = self._update.to(activations.dtype)
        wanted = [False, True, False]
        return torch.ops.aten.convolution_backward(
            delta[None], activations[None], weight, None, STRIDES[1], self._padding, (1, 1), False, (0, 0), 1, wanted
        )[1]

    def _explained(self, values: Float[Tensor, "O I A B"]) -> Float[Tensor, "I K U"]:
        """M' (M M' + rho)^-1 y, of equal columns."""
        exact = values.dtype == torch.float64
        weighed = torch.empty_like(values)
        for residue, factor in enumerate(self._factors if exact else self._rough_factors):
            some = values[:, :, residue :: STRIDES[1][0]].permute(0, 2, 3, 1)  # (O, A', B, I)
            half = torch.linalg.solve_triangular(factor, some.flatten(0, 2), upper=False)
            solved = torch.linalg.solve_triangular(factor.T, half, upper=True)
            weighed[:, :, residue :: STRIDES[1][0]] = solved.view(some.shape).permute(0, 3, 1, 2)
        return self._transposed(weighed, self._delta if exact else self._rough)

    def _transposed(self, values: Float[Tensor, "O I A B"], delta: Float[Tensor, "O J T"]) -> Float[Tensor, "I K U"]:
        """M' y."""
        axes = zip(self._shape, self._padding, KERNELS[1], STRIDES[1], delta.shape[1:], strict=True)
        beyond = [size + 2 * pad - kernel - (count - 1) * stride for size, pad, kernel, stride, count in axes]
        return functional.conv_transpose2d(delta[None], values, None, STRIDES[1], self._padding, beyond)[0]

    def _columns(self, residue: int) -> Float[Tensor, "R X"]:
        """M itself for one residue, its columns of equal length."""
        (high, long), (low, early), stride = self._shape, self._padding, STRIDES[1][0]
        _, count, frames = self._delta.shape
        shifts, rows = (len(range(residue, size, stride)) for size in (KERNELS[1][0], high + 2 * low))
        found = self._delta.new_zeros(len(self._delta), shifts, KERNELS[1][1], rows, long + 2 * early)
        for up in range(shifts):
            for later in range(KERNELS[1][1]):
                found[:, up, later, up : up + count, later : later + frames] = self._delta
        # Of the padded grid, what belongs to z.
        first, last = (-(-(edge - residue) // stride) for edge in (low, low + high))
        inside = found[..., max(0, first) : last, early : early + long]
        lengths = self.lengths[residue + stride * max(0, first) - low :: stride]
        return (inside / lengths).flatten(3).flatten(0, 2)


def _gram(columns: Float[Tensor, "R X"]) -> Float[Tensor, "R R"]:
    """M M' + rho, of which the lower half is enough."""
    gram = columns.new_zeros(len(columns), len(columns))
    for start in range(0, len(columns), ROWS_AT_ONCE):
        end = start + ROWS_AT_ONCE
        torch.mm(columns[start:end], columns[:end].T, out=gram[start:end, :end])
    gram.diagonal().add_(SOFTNESS)
    return gram
