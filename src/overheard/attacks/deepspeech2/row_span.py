"""The span of an update's rows, each row divided by its own noise.

A row of a gradient is rounded relative to the sums that it comes from, so rows of units that pass little on are exact
to far smaller numbers than others. Left as they are, the roughest rows make the noise of all. Divided by their own,
what faint frames leave stands out: a spectrum that fell off by a factor of 3.7 behind a silent end does so by 25, and
frames there are ten times nearer to the span. Noise that was added on purpose is alike in all rows: nothing changes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.rank import NumericalRank, numerical_rank

BEYOND = 16
"""Directions beyond a rank that may still be signal."""

PASSES = 2
"""Times that noise is measured, each time outside the span that the noise before lets one see."""

LEAST = 1e-3
"""Part of the usual noise that a row has at least: some rows of an update are exactly zero."""


@dataclass(frozen=True)
class RowSpan:
    """What the rows of a matrix span.

    Attributes:
        rank: of the matrix, rows divided by their noise.
        row_noise: of each number of a row.
        basis: orthonormal rows, as many as the rank.
        blur: norm of what the noise makes of a column of the basis in the mean.
    """

    rank: NumericalRank
    row_noise: Float[Tensor, " R"]
    basis: Float[Tensor, "P C"]
    blur: float


def find_row_span(matrix: Float[Tensor, "R C"], precision: float, generator: torch.Generator) -> RowSpan:
    """The span of a matrix of low rank under rounding.

    Args:
        matrix: float64 values of an update.
        precision: relative rounding that is allowed for, as in `numerical_rank`.
        generator: of the random projections that find the strongest directions.
    """
    rank, noise = numerical_rank(matrix, precision), matrix.new_ones(len(matrix))
    for _ in range(PASSES):
        noise = _row_noise(matrix, noise, rank.rank + BEYOND, generator)
        rank = numerical_rank(matrix / noise[:, None], precision)
    basis, blur = _row_basis(matrix / noise[:, None], rank.rank, generator)
    return RowSpan(rank, noise, basis, blur)


def _row_noise(
    matrix: Float[Tensor, "R C"], before: Float[Tensor, " R"], rank: int, generator: torch.Generator
) -> Float[Tensor, " R"]:
    """Root mean square of what each row has outside the span of the other half of the rows, which its own noise has no
    part in."""
    noise = torch.zeros_like(before)
    for own in range(2):
        rows, others = slice(own, None, 2), slice(1 - own, None, 2)
        basis, _ = _row_basis(matrix[others] / before[others, None], rank, generator)
        rest = matrix[rows] - (matrix[rows] @ basis.T) @ basis
        noise[rows] = rest.norm(dim=1) / max(1, matrix.shape[1] - len(basis)) ** 0.5
    some = noise[noise > 0]
    return noise.clamp(min=LEAST * float(some.median()) if len(some) else 1.0)


def _row_basis(
    matrix: Float[Tensor, "R C"], rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "K C"], float]:
    """Orthonormal rows that span the `rank` strongest directions (Halko et al. 2011, algorithm 5.1).

    Also the norm of what noise, read off the rest of the matrix, makes of a column of them in the mean.
    """
    width = min(rank + 32, *matrix.shape)
    mix = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype, device=matrix.device)
    for _ in range(2):
        left = torch.linalg.qr(matrix @ mix).Q
        mix = torch.linalg.qr(matrix.T @ left).Q
    _, values, rows = torch.linalg.svd(left.T @ matrix, full_matrices=False)
    basis = rows[:rank]
    rest = matrix - (matrix @ basis.T) @ basis
    free = (matrix.shape[0] - rank) * (matrix.shape[1] - rank)
    return basis, float(rest.norm() / max(1, free) ** 0.5 * (1 / values[:rank]).norm())
