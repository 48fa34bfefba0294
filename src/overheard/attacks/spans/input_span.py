"""What the rows of a layer's update span: the inputs that the layer was shown, as far as rounding leaves them.

With Pi the projector on the complement of the span, Pi a = 0 for every input a. How much of Pi a rounding alone leaves
depends on a: the weaker a direction of the span, the less exactly it is known.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.rank import NumericalRank, rank_of_spectrum

SIGNAL_TAIL = 1e-5
"""Relative size below which, times the root of their number, the widest gap of singular values ends the signal.

Windows of speech leave no gaps of their own there, and noise up to that size may have been put on the update.
"""
CLEAR_MARGIN = 100.0
"""Of the rank, below which rows are tried over their sizes, too."""
PROBES = 32
"""Random directions from which the size of the rounding is taken."""

Span = TypeVar("Span", bound="InputSpan")


@dataclass(frozen=True, kw_only=True)
class InputSpan:
    """The span of what a layer was shown.

    Attributes:
        basis: orthonormal rows that span the inputs.
        spread: standard deviation that rounding gives to each coordinate outside the span, per unit along each
            row of `basis`: that of the update's entries over the singular value.
        found: the rank and its margin.
        seen: inputs that were ever other than zero; the others are zero in every row of the basis.
        rounding: relative error of the inputs themselves, as the client computed them.
    """

    basis: Float[Tensor, "P A"]
    spread: Float[Tensor, " P"]
    found: NumericalRank
    seen: int
    rounding: float = 0.0

    @property
    def num_equations(self) -> int:
        """Equations that one input has to fulfil."""
        return self.basis.shape[1] - self.basis.shape[0]

    @property
    def num_moving(self) -> int:
        """The same without those that say no more than that an input which never showed is zero."""
        return self.seen - self.basis.shape[0]

    def outside(
        self, inputs: Float[Tensor, "*M A"]
    ) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M"], Float[Tensor, "*M"]]:
        """(Pi a, its norm, the norm that rounding alone is expected to give it)."""
        inside = inputs @ self.basis.T
        rest = inputs - inside @ self.basis
        expected = (inside * self.spread).norm(dim=-1) * self.num_equations**0.5
        rounding = max(self.rounding, 8 * torch.finfo(inputs.dtype).eps)
        return rest, rest.norm(dim=-1), expected + rounding * inputs.norm(dim=-1)

    def single_precision(self: Span) -> Span:
        """The same in float32, for the many small steps that need no more."""
        floats = {name: value.float() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **floats)

    def sketch(self, count: int, generator: torch.Generator) -> Float[Tensor, "A E"]:
        """So many random orthonormal equations, one a column."""
        size = self.basis.shape[1]
        draw = torch.randn(size, min(count, self.num_equations), generator=generator, dtype=self.basis.dtype)
        return torch.linalg.qr(draw - self.basis.T @ (self.basis @ draw)).Q


def span_of_rows(matrix: Float[Tensor, "R A"], rank: int | None = None) -> InputSpan:
    """The span of the rows of a float64 matrix of low rank.

    The rank is the smaller dimension where there is no gap.

    Args:
        matrix: of an update.
        rank: where it is known, of a matrix whose errors grow with rows. Otherwise the spectrum tells it, and rows are
            tried over their sizes where it is not clear.
    """
    # Units that no frame switched on, on either side, have rows and columns of zeros.
    rows, columns = (matrix != 0).any(dim=1), (matrix != 0).any(dim=0)
    alive = matrix[rows][:, columns]
    # Sums of products round in proportion to their row: large rows drown what small ones tell of weak directions.
    scaled = alive / alive.square().mean(dim=1, keepdim=True).sqrt()
    if rank is not None:
        alive = scaled
    found, directions = _directions(alive, rank)
    if rank is None and found.margin < CLEAR_MARGIN and found.rank < min(alive.shape):
        other, turned = _directions(scaled)
        if other.margin > found.margin:
            alive, found, directions = scaled, other, turned
    basis = torch.zeros(found.rank, matrix.shape[1], dtype=matrix.dtype)
    basis[:, columns] = directions
    spread = rounding_outside(alive, directions) / found.singular_values[: found.rank]
    return InputSpan(basis=basis, spread=spread, found=found, seen=int(columns.sum()))


def _directions(matrix: Float[Tensor, "R C"], rank: int | None = None) -> tuple[NumericalRank, Float[Tensor, "P C"]]:
    """The rank, or the one that is known, and orthonormal rows that span so many of the strongest directions."""
    values, vectors = spectrum(matrix)
    found = rank_of_spectrum(values, SIGNAL_TAIL)
    if rank is not None:
        rank = min(rank, len(values))
        found = NumericalRank(rank, float(values[rank - 1] / values[min(rank, len(values) - 1)]), values)
    return found, vectors[: found.rank]


def spectrum(matrix: Float[Tensor, "R C"]) -> tuple[Float[Tensor, " K"], Float[Tensor, "C C"]]:
    """Singular values, and the directions of rows, strongest first."""
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    # Squaring loses half of float64's digits; what is below is made flat, lest a gap of zeros pass for the widest.
    least = float(squares[-1:].sum()) * torch.finfo(torch.float64).eps if len(squares) else 0.0
    values = squares.flip(0).clamp(min=least).sqrt()[: min(matrix.shape)]
    return values, vectors.flip(1).T


def rounding_outside(matrix: Float[Tensor, "R C"], basis: Float[Tensor, "P C"]) -> float:
    """Standard deviation of the entries of what lies outside the span."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(matrix.shape[1], PROBES, generator=generator, dtype=matrix.dtype)
    left = matrix @ (draw - basis.T @ (basis @ draw))
    degrees = max(1, matrix.shape[1] - len(basis)) * max(1, matrix.shape[0] - len(basis)) * PROBES
    return float(left.norm()) / degrees**0.5
