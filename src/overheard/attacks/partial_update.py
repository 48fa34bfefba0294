"""Utterances from an update of which only some entries were sent: pruned, or sparsified.

A layer that was shown P windows shares D = G'A(X), seen at a mask. Row r of n_r entries leaves n_r - P equations on the
T F features X once its own gradients are eliminated: where these are more than the unknowns, nothing is hidden. How
many windows there were, and a first row space, come from low-rank completion (`completion`) of the part of which most
was sent, in the layer behind where it can be used, as it is wider. The closed form on the columns that are complete
gives a first guess; where the first layer is too sparse for one, the sequential decoder does, from the layer behind.
From there the features of greatest likelihood over the entries that were sent (`masked_fit`) come out to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded
from torch import Tensor

from overheard.attacks import sequential
from overheard.attacks.entries.completion import Completion, excess_over_any
from overheard.attacks.entries.sent_entries import SentEntries, all_but_zeros, complete_block
from overheard.attacks.noise.feature_scale import best_factor, unexplained
from overheard.attacks.noise.layer_behind import LayerBehind, find_layer_behind
from overheard.attacks.noise.layer_fits import NoisyLayer
from overheard.attacks.noise.likelihood import LikelyFeatures, most_likely_features
from overheard.attacks.noise.masked_fit import equations_of
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import at_units
from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.windows import WindowedLayer

MOST_ROWS, MOST_BEHIND = 700, 250
"""Rows of either layer that the features are fitted to: many more equations than unknowns; of the layer behind more
where so many do not tell whether the features are right."""
TELLING = 1.3
"""Entries for each number that directions and rows of any inputs are free to take, from which on they tell that."""
SPARE_ENTRIES = 5
"""That a row has beyond the number of windows to take part."""
MOST_EXCESS = 20.0
"""Variance left by features over that which any inputs leave that start from them, up to which they explain the
entries. Rounding is not independent, so any inputs explain up to six times more of it than features do; features that
got stuck leave hundreds of times more."""
REFINEMENTS = 10
FEWEST_COLUMNS = 3
"""Complete ones in which a feature stands, below which the closed form leaves it at zero."""
INVERSE_ITERATIONS = 8
SCALING_ROWS = 40
"""Of the layer behind, from which the size of all features is read where no bias was sent."""


@dataclass(frozen=True)
class PartialRecovery:
    """What came out.

    Attributes:
        likely: the features and their predicted error; None where nothing came out.
        excess: the largest, over layers, of the variance that features leave over that which any inputs leave.
        rank: windows of all utterances; 0 where it did not show.
        margin: of the rank.
        layers: names of those used.
        sent: share of the windowed layer's entries.
        equations: that the entries leave on the features, in all layers used.
        unknowns: T F.
        reason: why nothing came out, or why it is not believed.
    """

    likely: LikelyFeatures | None = None
    excess: float = float("inf")
    rank: int = 0
    margin: float = 1.0
    layers: tuple[str, ...] = ()
    sent: float = 0.0
    equations: int = 0
    unknowns: int = 0
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the features explain all that was sent but for rounding."""
        return self.likely is not None and self.likely.settled and self.excess <= MOST_EXCESS


def recover_from_entries(
    observation: Observation,
    windowed: WindowedLayer,
    entries: SentEntries,
    generator: torch.Generator,
    lengths: tuple[int, ...] | None = None,
) -> PartialRecovery:
    """The utterances that explain the entries.

    Args:
        observation: all that the attacker sees.
        windowed: the layer that sees windows.
        entries: of it, that were sent.
        generator: of first guesses, and of the draws that predict the error.
        lengths: frames of each utterance where they are known; needed for more than one.
    """
    found = PartialRecovery(sent=entries.share)
    if lengths is None and observation.update.protocol.num_utterances > 1:
        return replace(found, reason="entries are missing: several utterances come back where their lengths are given")
    first = _in_order(entries, windowed)
    second = _behind(observation, windowed)
    if lengths is not None:
        rank, margin = sum(map(windowed.num_positions, lengths)), float("inf")
    else:
        told = None if second is None else complete_block(second.entries, generator)
        if told is None:
            told = complete_block(first, generator)
            if told is None:
                return replace(found, reason=_too_sparse(first, second))
        rank, margin = told.rank, told.margin
    wanted = lengths or windowed.lengths(rank)[-1:]
    unknowns = sum(wanted) * windowed.num_features
    used = _layers(first, second, rank, windowed)
    equations = sum(equations_of(each.mask, rank) for each in used.values() if each.mask is not None)
    found = replace(found, rank=rank, margin=margin, layers=tuple(used), equations=equations, unknowns=unknowns)
    if equations <= unknowns:
        reason = f"what was sent leaves {equations} equations on {unknowns} unknowns: it does not tell the speech"
        return replace(found, reason=reason)
    behind = None if second is None else used.get(second.layer.name)
    for start in _starts(observation, windowed, first, behind, rank, wanted, generator):
        likely = most_likely_features(start, list(used.values()), windowed, generator)
        left = [_excess(layer, likely.features, windowed) for layer in used.values()]
        excess = max((each for each in left if each is not None), default=float("inf"))
        if found.likely is None or excess < found.excess:
            found = replace(found, likely=likely, excess=excess)
        if found.fits:
            return found
    if found.likely is None:
        reason = "too little of the first layer was sent for a guess, and the layer behind gave none"
        return replace(found, reason=reason)
    return replace(found, reason="the features found leave more of what was sent unexplained than rounding does")


@dataclass(frozen=True)
class _Behind:
    """The layer behind the windowed one, and what was sent of it."""

    layer: LayerBehind
    entries: SentEntries


def _behind(observation: Observation, windowed: WindowedLayer) -> _Behind | None:
    """None where it cannot be used, or all or nothing of it was sent."""
    layer = find_layer_behind(observation, windowed)
    entries = None if layer is None else all_but_zeros(observation, layer.name)
    if layer is None or entries is None or int(entries.columns.max()) > len(layer.weight):
        return None
    return _Behind(layer, entries)


def _in_order(entries: SentEntries, windowed: WindowedLayer) -> SentEntries:
    """Columns sorted by frame, then feature, then the constant, all of them."""
    size = len(windowed.order)
    matrix = entries.matrix.new_zeros(len(entries.matrix), size + 1)
    mask = torch.zeros(matrix.shape, dtype=torch.bool)
    matrix[:, entries.columns], mask[:, entries.columns] = entries.matrix, entries.mask
    order = torch.cat([windowed.order, torch.tensor([size])])
    return SentEntries(entries.name, matrix[:, order], mask[:, order], torch.arange(size + 1))


def _layers(first: SentEntries, second: _Behind | None, rank: int, windowed: WindowedLayer) -> dict[str, NoisyLayer]:
    """Layers whose rows have more entries than there were windows."""
    found = {}
    counts = first.mask.sum(dim=1)
    chosen = counts.argsort(descending=True)[:MOST_ROWS]
    chosen = chosen[counts[chosen] >= rank + SPARE_ENTRIES]
    if len(chosen):
        matrix, mask = first.matrix[chosen], first.mask[chosen]
        scales = _sizes(matrix, mask, 0)
        matrix = matrix / scales
        matrix = matrix / _sizes(matrix, mask, 1)[:, None]
        found[first.name] = NoisyLayer(matrix, len(matrix), True, scales, mask=mask)
    if second is not None:
        some = second.entries.with_more_than(rank + SPARE_ENTRIES - 1, max(MOST_BEHIND, _telling(second.entries, rank)))
        units = some.columns[some.columns < len(second.layer.weight)]
        if len(some.matrix):
            matrix = some.matrix / _sizes(some.matrix, some.mask, 1)[:, None]
            found[some.name] = NoisyLayer(
                matrix, len(matrix), len(units) < len(some.columns), torch.ones(len(some.columns), dtype=matrix.dtype),
                second.layer.weight[units], second.layer.bias[units],
                at_units(second.layer.activation, units, len(second.layer.weight)), some.mask,
            )  # fmt: skip
    return found


def _telling(entries: SentEntries, rank: int) -> int:
    """Rows whose entries are more than the numbers that so many directions and their coefficients are free to take."""
    width = entries.mask.shape[1]
    spare = entries.share * width - TELLING * rank
    return math.ceil(TELLING * rank * (width - rank) / spare) if spare > 0 else 0


def _sizes(matrix: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Root mean squares of what was sent; 1 where nothing was."""
    squares = matrix.square().sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)
    return torch.where(squares > 0, squares, 1.0).sqrt()


def _starts(
    observation: Observation,
    windowed: WindowedLayer,
    first: SentEntries,
    behind: NoisyLayer | None,
    rank: int,
    lengths: Sequence[int],
    generator: torch.Generator,
) -> Iterator[list[Float[Tensor, "_ F"]]]:
    """The closed form on the complete columns; where no fit comes out of that, the sequential decoder."""
    completed = complete_block(first, generator, rank) if rank <= windowed.capacity else None
    if completed is not None and len(completed.columns) >= rank + windowed.num_features:
        start = _closed_form(completed, windowed, lengths)
        if start is not None and len(windowed.order) not in completed.columns:
            start = _sized(start, behind, windowed)
        if start is not None:
            yield start
    if behind is None or len(lengths) > 1:
        return
    found = sequential.attack(observation, sequential.SequentialConfig(), generator=generator)
    if len(found.features) == 1 and windowed.num_positions(len(found.features[0])) == rank:
        yield [found.features[0].double()]


def _closed_form(
    completed: Completion, windowed: WindowedLayer, lengths: Sequence[int]
) -> list[Float[Tensor, "_ F"]] | None:
    """From the columns that are complete; up to a factor where the constant's is not among them."""
    size = len(windowed.order) + 1
    outside = torch.eye(len(completed.columns), dtype=torch.float64) - completed.basis.T @ completed.basis
    outside = outside / completed.scales[:, None] / completed.scales
    projector = torch.zeros(size, size, dtype=torch.float64)
    projector[completed.columns[:, None], completed.columns] = outside
    held = projector.diagonal()[:-1].view(windowed.window, -1) > 0
    left_out = (held.sum(dim=0) < FEWEST_COLUMNS).numpy()
    found = []
    for length in lengths:
        band, right = normal_equations(projector, windowed, length)
        mean = band[0].mean()
        band[0] += 1e-9 * mean
        band[0][np.tile(left_out, length)] += 1e9 * mean
        try:
            factor = (cholesky_banded(band, lower=True, check_finite=False), True)
        except LinAlgError:
            return None
        solution = cho_solve_banded(factor, right, check_finite=False)
        if size - 1 not in completed.columns:
            solution = _least_vector(factor, len(right))
        found.append(torch.from_numpy(solution).view(length, windowed.num_features))
    return found


def _least_vector(factor: tuple[np.ndarray, bool], size: int) -> np.ndarray:
    """The eigenvector of the smallest eigenvalue, by inverse iteration."""
    vector = np.random.default_rng(0).standard_normal(size)
    for _ in range(INVERSE_ITERATIONS):
        vector = cho_solve_banded(factor, vector / np.linalg.norm(vector), check_finite=False)
    return vector / np.sqrt(np.mean(vector**2))


def _sized(
    start: list[Float[Tensor, "_ F"]], behind: NoisyLayer | None, windowed: WindowedLayer
) -> list[Float[Tensor, "_ F"]] | None:
    """Features that are known up to one factor, times the one that explains the layer behind best."""
    if behind is None or behind.mask is None or len(start) > 1:
        return None
    rows = slice(0, SCALING_ROWS)
    some = replace(behind, matrix=behind.matrix[rows], mask=behind.mask[rows], rows=len(behind.matrix[rows]))
    factor = best_factor(unexplained(some, windowed, start), signs=(1, -1), accuracy=1e-3)
    return [factor * each for each in start]


def _excess(layer: NoisyLayer, features: Sequence[Float[Tensor, "_ F"]], windowed: WindowedLayer) -> float | None:
    """Variance that features leave of a layer's entries over that which any inputs leave that start from them."""
    assert layer.mask is not None  # all layers here have one
    inputs, _ = layer.inputs(torch.cat([windowed.windows(each) for each in features]))
    return excess_over_any(layer.matrix, layer.mask, torch.linalg.qr(inputs.T).Q.T, REFINEMENTS)


def _too_sparse(first: SentEntries, second: _Behind | None) -> str:
    shares = f"{first.share:.0%} of {first.name}" + ("" if second is None else f" and {second.entries.share:.0%} of "
                                                       f"{second.entries.name}")  # fmt: skip
    return f"what was sent, {shares}, has no part complete enough to tell how many windows there were"
