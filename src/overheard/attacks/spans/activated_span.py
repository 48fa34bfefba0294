"""Equations on speech from a layer behind an activation: the span of a_p = [phi(W u_p + b), 1].

The layer behind shares [dW | db] whose row space is the span of the a_p. With Pi the projector on its complement,
Pi a_p = 0 at every position p; the Jacobian of position p is Pi D_p W with D_p the slopes of phi.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.attacks.entries.sent_entries import SentEntries, all_but_zeros, complete_block, sent_entries
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import Activation, PointwiseLayer, at_units
from overheard.attacks.rank import NumericalRank, layer_matrix, precision_of, rank_above_noise, rank_of_spectrum
from overheard.attacks.spans.input_span import CLEAR_MARGIN, SIGNAL_TAIL, InputSpan, rounding_outside, spectrum
from overheard.attacks.spans.span_solver import row_space
from overheard.attacks.windows import WindowedLayer

GAP = 3.0
"""Margin of the rank below which noise has filled the gap."""
SMALLEST_COLUMN = 0.3
"""Relative to the columns' root mean square."""
INPUT_ROUNDING = 2.0
"""Relative error of what a layer was shown, in units of the arithmetic's precision: sums of some hundred products."""
SPARE_DIRECTIONS = 32
"""Random directions beyond the rank from which its span is found."""


@dataclass(frozen=True, kw_only=True)
class ActivatedSpan(InputSpan):
    """What is known of the inputs of the layer behind, and of what they are made of.

    Attributes:
        weight: W of the windowed layer, columns sorted by frame, then feature.
        bias: b; zeros where the layer has none.
        activation: phi and its slope.
        scales: of the columns of a_p, so that the update's errors are alike in all; the last is the constant's. The
            basis spans the a_p over them.
        affine: whether the layer behind has a bias, so that the constant is one of its inputs, the last.
    """

    weight: Float[Tensor, "H C"]
    bias: Float[Tensor, " H"]
    activation: Activation
    scales: Float[Tensor, " A"]
    affine: bool

    def inputs(self, values: Float[Tensor, "*M H"]) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M H"]]:
        """(a, slopes) of the windowed layer's outputs, over the scales."""
        activated, slopes = self.activation(values)
        inputs = nn.functional.pad(activated, (0, 1), value=1.0) if self.affine else activated
        return inputs / self.scales, slopes / self.scales[: slopes.shape[-1]]


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
    return ActivatedSpan(
        basis=basis,
        spread=rounding_outside(alive, directions) / found.singular_values[: len(directions)],
        found=found,
        seen=int(columns.sum()),
        rounding=rounding,
        weight=weight,
        bias=bias,
        activation=activation,
        scales=scales,
        affine=affine,
    )


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
    values, vectors = spectrum(matrix)
    found = rank_of_spectrum(values, SIGNAL_TAIL)
    if found.margin >= CLEAR_MARGIN or found.rank == len(values):
        return found, vectors[: found.rank]
    # Noise fills the spectrum's gap. A direction of it does no harm: what a window has of it counts as rounding.
    if found.margin < GAP:
        found = rank_above_noise(values, max(matrix.shape))
    return found, vectors[: min(found.rank + SPARE_DIRECTIONS, len(values))]


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
        basis=basis,
        spread=spread,
        found=found,
        seen=len(order),
        rounding=rounding,
        weight=weight[units],
        bias=bias[units],
        activation=at_units(activation, units, len(weight)),
        scales=whole.new_ones(whole.shape[1]),
        affine=bool(last.any()),
    )
