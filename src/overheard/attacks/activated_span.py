"""Equations on speech from a layer behind an activation: the span of a_p = [phi(W u_p + b), 1].

The layer behind shares [dW | db] whose row space is the span of the a_p. With Pi the projector on its complement,
Pi a_p = 0 at every position p; the Jacobian of position p is Pi D_p W with D_p the slopes of phi.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import Activation, PointwiseLayer, at_units
from overheard.attacks.rank import NumericalRank, layer_matrix, precision_of, rank_above_noise, rank_of_spectrum
from overheard.attacks.sent_entries import SentEntries, all_but_zeros, complete_block, sent_entries
from overheard.attacks.span_solver import row_space
from overheard.attacks.windows import WindowedLayer

SIGNAL_TAIL = 1e-5
"""Relative size below which, times the root of their number, the widest gap of singular values ends the signal.

Windows of speech leave no gaps of their own there, and noise up to that size may have been put on the update.
"""
GAP = 3.0
"""Margin of the rank below which noise has filled the gap."""
CLEAR_MARGIN = 100.0
"""Of the rank, below which rows are tried over their sizes, too."""
SMALLEST_COLUMN = 0.3
"""Relative to the columns' root mean square."""
INPUT_ROUNDING = 2.0
"""Relative error of what a layer was shown, in units of the arithmetic's precision: sums of some hundred products."""
SPARE_DIRECTIONS = 32
"""Random directions beyond the rank from which its span is found."""
PROBES = 32
"""Random directions from which the size of the rounding is taken."""


@dataclass(frozen=True)
class ActivatedSpan:
    """What is known of the inputs of the layer behind, and of what they are made of.

    Attributes:
        weight: W of the windowed layer, columns sorted by frame, then feature.
        bias: b; zeros where the layer has none.
        activation: phi and its slope.
        scales: of the columns of a_p, so that the update's errors are alike in all; the last is the constant's.
        basis: orthonormal rows that span the a_p over the scales.
        spread: standard deviation that rounding gives to each coordinate outside the span, per unit along each
            row of `basis`: that of the update's entries over the singular value.
        affine: whether the layer behind has a bias, so that the constant is one of its inputs.
        rounding: relative error of the a_p themselves, as the client computed them.
        found: the rank and its margin.
    """

    weight: Float[Tensor, "H C"]
    bias: Float[Tensor, " H"]
    activation: Activation
    scales: Float[Tensor, " A"]
    basis: Float[Tensor, "P A"]
    spread: Float[Tensor, " P"]
    affine: bool
    rounding: float
    found: NumericalRank

    @property
    def num_equations(self) -> int:
        """Equations that one position gives."""
        return self.basis.shape[1] - self.basis.shape[0]

    def inputs(self, values: Float[Tensor, "*M H"]) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M H"]]:
        """(a, slopes) of the windowed layer's outputs, over the scales."""
        activated, slopes = self.activation(values)
        inputs = nn.functional.pad(activated, (0, 1), value=1.0) if self.affine else activated
        return inputs / self.scales, slopes / self.scales[: slopes.shape[-1]]

    def outside(
        self, inputs: Float[Tensor, "*M A"]
    ) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M"], Float[Tensor, "*M"]]:
        """(Pi a, its norm, the norm that rounding alone is expected to give it)."""
        inside = inputs @ self.basis.T
        rest = inputs - inside @ self.basis
        expected = (inside * self.spread).norm(dim=-1) * self.num_equations**0.5
        rounding = max(self.rounding, 8 * torch.finfo(inputs.dtype).eps)
        return rest, rest.norm(dim=-1), expected + rounding * inputs.norm(dim=-1)

    def single_precision(self) -> "ActivatedSpan":
        """The same in float32, for the many small steps that need no more."""
        low = torch.float32
        return ActivatedSpan(
            self.weight.to(low), self.bias.to(low), self.activation, self.scales.to(low), self.basis.to(low),
            self.spread.to(low), self.affine, self.rounding, self.found,
        )  # fmt: skip

    def sketch(self, count: int, generator: torch.Generator) -> Float[Tensor, "A E"]:
        """So many random orthonormal equations, one a column."""
        size = self.basis.shape[1]
        draw = torch.randn(size, min(count, self.num_equations), generator=generator, dtype=self.basis.dtype)
        return torch.linalg.qr(draw - self.basis.T @ (self.basis @ draw)).Q


def activated_span(
    observation: Observation,
    layer: WindowedLayer,
    behind: PointwiseLayer,
    windows: int | None = None,
    equations: int | None = None,
) -> ActivatedSpan | None:
    """The span that the layer behind gives away; None where the update does not hold its weight.

    The rank is the smaller dimension where the update is saturated.

    Args:
        observation: all that the attacker sees.
        layer: the one that sees windows.
        behind: the one that is shown its activated outputs.
        windows: their number, from a first layer whose errors grow with rows, as they then do here. Otherwise the rank
            tells it, and rows are tried over their sizes where it is not clear.
        equations: that are enough for each position where the windows' number is given: the span is then taken of some
            of the units, drawn at random from those that any window switched on. None for all.
    """
    model, update = observation.model, observation.update
    matrix = layer_matrix(update, behind.name, model.get_submodule(behind.name))
    windowed = model.get_submodule(layer.name)
    weight = windowed.get_parameter("weight").detach().double().flatten(1)[:, layer.order].cpu()
    if matrix is None or matrix.shape[1] - len(weight) not in (0, 1):
        return None
    bias = windowed.bias.detach().double().cpu() if isinstance(windowed.bias, Tensor) else weight.new_zeros(len(weight))
    rounding = INPUT_ROUNDING * precision_of(update, behind.name)
    entries = None if sent_entries(observation, layer) is None else all_but_zeros(observation, behind.name)
    if entries is not None:
        return _completed(entries, weight, bias, behind.activation, rounding)
    matrix, activation, affine = matrix.cpu(), behind.activation, matrix.shape[1] > len(weight)
    if windows is not None and equations is not None and windows + equations < len(weight):
        units = _some_units(matrix[:, : len(weight)], windows + equations)
        activation = at_units(activation, units, len(weight))
        matrix = torch.cat([matrix[:, units], matrix[:, len(weight) :]], dim=1)
        weight, bias = weight[units], bias[units]
    # Units that no frame switched on, on either side, have rows and columns of zeros.
    rows, columns = (matrix != 0).any(dim=1), (matrix != 0).any(dim=0)
    alive = matrix[rows][:, columns]
    scales = torch.ones(matrix.shape[1], dtype=matrix.dtype)
    if windows is not None:
        # Sums of products round in proportion to their row: large rows drown what small ones tell of weak directions.
        alive = alive / alive.square().mean(dim=1, keepdim=True).sqrt()
        found, directions = _known_directions(alive, windows)
    else:
        found, directions = _directions(alive)
        if found.margin < CLEAR_MARGIN and found.rank < min(alive.shape):
            scaled, sizes = _by_sizes(alive)
            other, turned = _directions(scaled)
            if other.margin > found.margin:
                alive, scales[columns], found, directions = scaled, sizes, other, turned
    basis = torch.zeros(len(directions), matrix.shape[1], dtype=matrix.dtype)
    basis[:, columns] = directions
    spread = _rounding(alive, directions) / found.singular_values[: len(directions)]
    return ActivatedSpan(weight, bias, activation, scales, basis, spread, affine, rounding, found)


def _by_sizes(matrix: Float[Tensor, "R C"]) -> tuple[Float[Tensor, "R C"], Float[Tensor, " C"]]:
    """As `rounding.by_sizes`, but for units that hardly any window switched on: over so small a column, the rounding of
    their inputs would be large, and windows' Hessians far from their mean."""
    rows = matrix.square().mean(dim=1, keepdim=True).sqrt()
    columns = (matrix / rows).square().mean(dim=0).sqrt()
    columns = columns.clamp(min=SMALLEST_COLUMN * float(columns.square().mean().sqrt()))
    return matrix / rows / columns, columns


def _some_units(matrix: Float[Tensor, "R H"], count: int) -> Int[Tensor, " U"]:
    """So many units, or all, of those that any window switched on."""
    on = torch.nonzero((matrix != 0).any(dim=0)).flatten()
    drawn = torch.randperm(len(on), generator=torch.Generator().manual_seed(0))[:count]
    return on[drawn].sort().values


def _directions(matrix: Float[Tensor, "R C"]) -> tuple[NumericalRank, Float[Tensor, "P C"]]:
    """The rank, and orthonormal rows that span so many of the strongest directions."""
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    # Squaring loses half of float64's digits; what is below is made flat, lest a gap of zeros pass for the widest.
    least = float(squares[-1:].sum()) * torch.finfo(torch.float64).eps if len(squares) else 0.0
    values = squares.flip(0).clamp(min=least).sqrt()[: min(matrix.shape)]
    found = rank_of_spectrum(values, SIGNAL_TAIL)
    if found.margin >= CLEAR_MARGIN or found.rank == len(values):
        return found, vectors.flip(1)[:, : found.rank].T
    # Noise fills the spectrum's gap. A direction of it does no harm: what a window has of it counts as rounding.
    if found.margin < GAP:
        found = rank_above_noise(values, max(matrix.shape))
    return found, vectors.flip(1)[:, : min(found.rank + SPARE_DIRECTIONS, len(values))].T


def _known_directions(matrix: Float[Tensor, "R C"], rank: int) -> tuple[NumericalRank, Float[Tensor, "P C"]]:
    """As `_directions` for a rank that is known: from a random range with a power step (Halko et al. 2011, 4.4)."""
    width = rank + SPARE_DIRECTIONS
    if 2 * width < len(matrix):
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(len(matrix), width, generator=generator, dtype=matrix.dtype)
        range_of = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ draw).Q).Q
        matrix = range_of.T @ matrix
    vectors, values = row_space(matrix)
    rank = min(rank, len(values))
    margin = float(values[rank - 1] / values[min(rank, len(values) - 1)])
    return NumericalRank(rank, margin, values), vectors[:rank]


def _completed(
    entries: SentEntries,
    weight: Float[Tensor, "H C"],
    bias: Float[Tensor, " H"],
    activation: Activation,
    rounding: float,
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
        weight[units], bias[units], at_units(activation, units, len(weight)), whole.new_ones(whole.shape[1]), basis,
        spread, bool(last.any()), rounding, found,
    )  # fmt: skip


def _rounding(matrix: Float[Tensor, "R C"], basis: Float[Tensor, "P C"]) -> float:
    """Standard deviation of the entries of what lies outside the span."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(matrix.shape[1], PROBES, generator=generator, dtype=matrix.dtype)
    left = matrix @ (draw - basis.T @ (basis @ draw))
    degrees = max(1, matrix.shape[1] - len(basis)) * max(1, matrix.shape[0] - len(basis)) * PROBES
    return float(left.norm()) / degrees**0.5
