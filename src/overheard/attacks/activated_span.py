"""Equations on speech from a layer behind an activation: the span of a_p = [phi(W u_p + b), 1].

The layer behind shares [dW | db] whose row space is the span of the a_p. With Pi the projector on its complement,
Pi a_p = 0 at every position p; the Jacobian of position p is Pi D_p W with D_p the slopes of phi.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import Activation, PointwiseLayer, at_units
from overheard.attacks.rank import NumericalRank, layer_matrix, rank_of_spectrum
from overheard.attacks.sent_entries import SentEntries, all_but_zeros, complete_block, sent_entries
from overheard.attacks.windows import WindowedLayer

SIGNAL_TAIL = 1e-5
"""Relative size below which, times the root of their number, the widest gap of singular values ends the signal.

Windows of speech leave no gaps of their own there, and noise up to that size may have been put on the update.
"""
CLEAR_MARGIN = 100.0
"""Of the rank, below which rows are tried over their sizes, too."""
PROBES = 32
"""Random directions from which the size of the rounding is taken."""


@dataclass(frozen=True)
class ActivatedSpan:
    """What is known of the inputs of the layer behind, and of what they are made of.

    Attributes:
        weight: W of the windowed layer, columns sorted by frame, then feature.
        bias: b; zeros where the layer has none.
        activation: phi and its slope.
        basis: orthonormal rows that span the a_p; the last column is the constant's.
        spread: standard deviation that rounding gives to each coordinate outside the span, per unit along each
            row of `basis`: that of the update's entries over the singular value.
        affine: whether the layer behind has a bias, so that the constant is one of its inputs.
        found: the rank and its margin.
    """

    weight: Float[Tensor, "H C"]
    bias: Float[Tensor, " H"]
    activation: Activation
    basis: Float[Tensor, "P A"]
    spread: Float[Tensor, " P"]
    affine: bool
    found: NumericalRank

    @property
    def num_equations(self) -> int:
        """Equations that one position gives."""
        return self.basis.shape[1] - self.basis.shape[0]

    def inputs(self, values: Float[Tensor, "*M H"]) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M H"]]:
        """(a, slopes) of the windowed layer's outputs."""
        activated, slopes = self.activation(values)
        return (nn.functional.pad(activated, (0, 1), value=1.0) if self.affine else activated), slopes

    def outside(
        self, inputs: Float[Tensor, "*M A"]
    ) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M"], Float[Tensor, "*M"]]:
        """(Pi a, its norm, the norm that rounding alone is expected to give it)."""
        inside = inputs @ self.basis.T
        rest = inputs - inside @ self.basis
        expected = (inside * self.spread).norm(dim=-1) * self.num_equations**0.5
        return rest, rest.norm(dim=-1), expected + torch.finfo(inputs.dtype).eps * 8 * inputs.norm(dim=-1)

    def single_precision(self) -> "ActivatedSpan":
        """The same in float32, for the many small steps that need no more."""
        low = torch.float32
        return ActivatedSpan(
            self.weight.to(low), self.bias.to(low), self.activation, self.basis.to(low), self.spread.to(low),
            self.affine, self.found,
        )  # fmt: skip

    def sketch(self, count: int, generator: torch.Generator) -> Float[Tensor, "A E"]:
        """So many random orthonormal equations, one a column."""
        size = self.basis.shape[1]
        draw = torch.randn(size, min(count, self.num_equations), generator=generator, dtype=self.basis.dtype)
        return torch.linalg.qr(draw - self.basis.T @ (self.basis @ draw)).Q


def activated_span(
    observation: Observation, layer: WindowedLayer, behind: PointwiseLayer, windows: int | None = None
) -> ActivatedSpan | None:
    """The span that the layer behind gives away; None where the update does not hold its weight.

    The rank is the smaller dimension where the update is saturated.

    Args:
        observation: all that the attacker sees.
        layer: the one that sees windows.
        behind: the one that is shown its activated outputs.
        windows: their number, from a first layer whose errors grow with rows, as they then do here. Otherwise the rank
            tells it, and rows are tried over their sizes where it is not clear.
    """
    model, update = observation.model, observation.update
    matrix = layer_matrix(update, behind.name, model.get_submodule(behind.name))
    windowed = model.get_submodule(layer.name)
    weight = windowed.get_parameter("weight").detach().double().flatten(1)[:, layer.order].cpu()
    if matrix is None or matrix.shape[1] - len(weight) not in (0, 1):
        return None
    bias = windowed.bias.detach().double().cpu() if isinstance(windowed.bias, Tensor) else weight.new_zeros(len(weight))
    entries = None if sent_entries(observation, layer) is None else all_but_zeros(observation, behind.name)
    if entries is not None:
        return _completed(entries, weight, bias, behind.activation)
    matrix = matrix.cpu()
    # Units that no frame switched on, on either side, have rows and columns of zeros.
    rows, columns = (matrix != 0).any(dim=1), (matrix != 0).any(dim=0)
    alive = matrix[rows][:, columns]
    # Sums of products round in proportion to their row: large rows drown what small ones tell of weak directions.
    scaled = alive / alive.square().mean(dim=1, keepdim=True).sqrt()
    if windows is not None:
        alive = scaled
    found, directions = _directions(alive, windows)
    if windows is None and found.margin < CLEAR_MARGIN and found.rank < min(alive.shape):
        other, turned = _directions(scaled)
        if other.margin > found.margin:
            alive, found, directions = scaled, other, turned
    basis = torch.zeros(found.rank, matrix.shape[1], dtype=matrix.dtype)
    basis[:, columns] = directions
    noise = _rounding(alive, directions)
    spread = noise / found.singular_values[: found.rank]
    return ActivatedSpan(weight, bias, behind.activation, basis, spread, matrix.shape[1] > len(weight), found)


def _directions(matrix: Float[Tensor, "R C"], rank: int | None = None) -> tuple[NumericalRank, Float[Tensor, "P C"]]:
    """The rank, or the one that is known, and orthonormal rows that span so many of the strongest directions."""
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    # Squaring loses half of float64's digits; what is below is made flat, lest a gap of zeros pass for the widest.
    least = float(squares[-1:].sum()) * torch.finfo(torch.float64).eps if len(squares) else 0.0
    values = squares.flip(0).clamp(min=least).sqrt()[: min(matrix.shape)]
    found = rank_of_spectrum(values, SIGNAL_TAIL)
    if rank is not None:
        rank = min(rank, len(values))
        found = NumericalRank(rank, float(values[rank - 1] / values[min(rank, len(values) - 1)]), values)
    return found, vectors.flip(1)[:, : found.rank].T


def _completed(
    entries: SentEntries, weight: Float[Tensor, "H C"], bias: Float[Tensor, " H"], activation: Activation
) -> ActivatedSpan | None:
    """The span at those inputs of which most was sent; None where too little was."""
    completed = complete_block(entries, torch.Generator().manual_seed(0), certain=math.inf)
    if completed is None:
        return None
    last = completed.columns == len(weight)
    order = torch.cat([torch.nonzero(~last).flatten(), torch.nonzero(last).flatten()])
    whole = completed.singular_values[:, None] * completed.basis * completed.scales
    _, values, basis = torch.linalg.svd(whole[:, order], full_matrices=False)
    spread = completed.residual * float(completed.scales.square().mean().sqrt()) / values
    units = completed.columns[order][: len(order) - int(last.sum())]
    found = NumericalRank(completed.rank, completed.margin, torch.cat([values, values.new_zeros(1)]))
    return ActivatedSpan(
        weight[units], bias[units], at_units(activation, units, len(weight)), basis, spread, bool(last.any()), found
    )


def _rounding(matrix: Float[Tensor, "R C"], basis: Float[Tensor, "P C"]) -> float:
    """Standard deviation of the entries of what lies outside the span."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(matrix.shape[1], PROBES, generator=generator, dtype=matrix.dtype)
    left = matrix @ (draw - basis.T @ (basis @ draw))
    degrees = max(1, matrix.shape[1] - len(basis)) * max(1, matrix.shape[0] - len(basis)) * PROBES
    return float(left.norm()) / degrees**0.5
