"""Utterances from a noisy update: how many windows there were, a first guess by the closed form, then likelihood.

Noise fills the spectrum, so no gap ends it; the rank is the number of singular values that noise alone cannot reach, in
whichever of the two layers tells it best (`rank.rank_above_noise`). The closed form with that many directions gives a
first guess, `likelihood` the features. Where the rank is in doubt its neighbours are fitted too: too few windows leave
more of the update unexplained than noise does, too many explain it no better. Where none of them explains both layers,
the other layer's rank is tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded
from torch import Tensor, nn

from overheard.attacks.entries.rounding import rounding_size, scales_of
from overheard.attacks.noise.layer_behind import LayerBehind, find_layer_behind
from overheard.attacks.noise.layer_fits import NoisyLayer
from overheard.attacks.noise.likelihood import LikelyFeatures, most_likely_features
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import at_units
from overheard.attacks.rank import NumericalRank, layer_matrix, rank_above_noise
from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.spans.span_solver import projector_on_complement, row_space
from overheard.attacks.windows import WindowedLayer

CLEAR_OF_NOISE = 2.0
"""Ratio of the last value to the most that noise reaches from which on no neighbour is tried."""
ENOUGH = 3e-4
"""Predicted relative error from which on the layer behind is not asked too; it costs ten times the first."""
MOST_EXCESS = 1.1
"""Variance left by features over that left by the spans alone, up to which they explain the update. Wrong ones leave
several times more; the variance of the spans is itself a few percent off where noise hides their weakest directions."""
CLEAR_EXCESS = 1.03
"""The same, up to which the number of windows is not doubted."""


@dataclass(frozen=True)
class NoisyRecovery:
    """What came out of noise.

    Attributes:
        likely: the features and their predicted error.
        excess: the largest, over layers, of the variance that the features leave over that which the spans leave.
        rank: windows of all utterances.
        margin: of the rank.
        layers: names of those used.
        noise: relative to each of their updates' root mean squares.
    """

    likely: LikelyFeatures
    excess: float
    rank: int
    margin: float
    layers: tuple[str, ...]
    noise: tuple[float, ...]

    @property
    def fits(self) -> bool:
        """Whether the features explain the update but for noise."""
        return self.likely.settled and self.excess <= MOST_EXCESS


@dataclass(frozen=True)
class _Witness:
    """A layer's noisy update with its spectrum."""

    name: str
    layer: NoisyLayer
    found: NumericalRank

    def left_by_span(self, positions: int) -> float:
        """Variance of the noise when any span of so many directions may be taken out."""
        values = self.found.singular_values
        rest = max(1, (self.layer.rows - positions) * (len(values) - positions))
        return float(values[positions:].square().sum()) / rest


def recover_from_noise(
    observation: Observation,
    windowed: WindowedLayer,
    generator: torch.Generator,
    lengths: tuple[int, ...] | None = None,
) -> NoisyRecovery | None:
    """The most likely utterances; None where no first guess exists.

    Args:
        observation: all that the attacker sees.
        windowed: the layer that sees windows.
        generator: of the draws that predict the error.
        lengths: frames of each utterance where they are known; needed for more than one.
    """
    first = _first_witness(observation, windowed)
    if first is None or (lengths is None and observation.update.protocol.num_utterances > 1):
        return None
    if len(first.found.singular_values) - first.found.rank < windowed.num_features:
        # Below the capacity as many values are noise alone; here the layer was shown more than it can tell.
        return None
    second = _second_witness(observation, windowed)
    basis, _ = row_space(first.layer.matrix)
    fits: dict[int, LikelyFeatures] = {}
    tried: dict[int, NoisyRecovery] = {}
    for margin, hypotheses in _hypotheses(first, second, windowed, lengths):
        for positions in hypotheses:
            starts = None if positions in fits else _starts(basis, first.layer.scales, windowed, positions, lengths)
            if starts is not None:
                fits[positions] = most_likely_features(starts, [first.layer], windowed, generator)
        if not fits:
            continue
        fewest = _fewest_that_explain(fits, first)
        # One layer alone may not feel a last window that is weak: where the other leaves a doubt, one more is tried.
        for chosen in (fewest, fewest + 1):
            if chosen in fits and chosen not in tried:
                tried[chosen] = _with_both(
                    fits[chosen], chosen, basis, first, second, margin, windowed, lengths, generator
                )
                if _agreed(tried[chosen], second) and tried[chosen].excess <= CLEAR_EXCESS:
                    return tried[chosen]
    return max(tried.values(), key=lambda each: (_agreed(each, second), each.fits, -each.excess), default=None)


def fit_with_layer_behind(
    observation: Observation,
    windowed: WindowedLayer,
    features: Sequence[Float[Tensor, "_ F"]],
    behind: LayerBehind,
    drift: Float[Tensor, "S K"],
    generator: torch.Generator,
) -> NoisyRecovery | None:
    """Features that are about right, fitted anew to both layers; None where one's update is not there.

    Args:
        observation: all that the attacker sees.
        windowed: the layer that sees windows.
        features: (T_i, F) of each utterance.
        behind: the layer behind it, with the weights by which it is shown its inputs.
        drift: a part of its weight's update that those inputs do not explain, subtracted.
        generator: of the draws that predict the error.
    """
    first, second = _first_witness(observation, windowed), _witness_behind(observation, behind, drift)
    if first is None or second is None:
        return None
    witnesses = (first, second)
    likely = most_likely_features(features, [each.layer for each in witnesses], windowed, generator)
    positions = sum(windowed.num_positions(len(each)) for each in features)
    return _recovery(likely, positions, max(each.found.margin for each in witnesses), witnesses)


def _agreed(found: NoisyRecovery, second: _Witness | None) -> bool:
    """Whether features explain the update, and that of the layer behind, too, where it was asked."""
    asked = second is not None and found.likely.predicted_error > ENOUGH and len(found.layers) == 1
    return found.fits and not asked


def _hypotheses(
    first: _Witness, second: _Witness | None, windowed: WindowedLayer, lengths: tuple[int, ...] | None
) -> list[tuple[float, list[int]]]:
    """Margins and numbers of windows to try, the surest layer's first.

    Noise hides weak directions and makes up none, so that of two layers in doubt the one of more tells better.
    """
    margins = [each.found for each in (first, second) if each is not None]
    if lengths is not None:
        return [(max(each.margin for each in margins), [sum(map(windowed.num_positions, lengths))])]
    clear = sorted((each for each in margins if each.margin >= CLEAR_OF_NOISE), key=lambda each: -each.margin)
    doubtful = sorted((each for each in margins if each.margin < CLEAR_OF_NOISE), key=lambda each: -each.rank)
    return [(each.margin, [each.rank]) for each in clear] + [
        (each.margin, [each.rank - 1, each.rank, each.rank + 1, each.rank + 2]) for each in doubtful
    ]


def _with_both(
    alone: LikelyFeatures,
    positions: int,
    basis: Float[Tensor, "K C"],
    first: _Witness,
    second: _Witness | None,
    margin: float,
    windowed: WindowedLayer,
    lengths: tuple[int, ...] | None,
    generator: torch.Generator,
) -> NoisyRecovery:
    """The fit of the first layer, or, where that is not good enough, of both."""
    found = _recovery(alone, positions, margin, (first,))
    if second is None or (found.fits and alone.predicted_error <= ENOUGH):
        return found
    starts = [list(alone.features)] if found.fits else []
    linear = _starts(basis, first.layer.scales, windowed, positions, lengths)
    starts += [linear] if linear is not None else []
    witnesses = (first, second)
    for start in starts:
        likely = most_likely_features(start, [each.layer for each in witnesses], windowed, generator)
        together = _recovery(likely, positions, margin, witnesses)
        if together.fits or not found.fits:
            found = together
        if found.fits:
            break
    return found


def _recovery(likely: LikelyFeatures, positions: int, margin: float, witnesses: Sequence[_Witness]) -> NoisyRecovery:
    """Add how well the features explain the update."""
    tiny = torch.finfo(torch.float64).tiny
    left = zip(likely.deviations, witnesses, strict=True)
    excess = max(deviation**2 / max(each.left_by_span(positions), tiny) for deviation, each in left)
    sizes = [
        float(each.layer.matrix.square().sum()) / (each.layer.rows * len(each.layer.matrix.T)) for each in witnesses
    ]
    noise = [deviation / size**0.5 for deviation, size in zip(likely.deviations, sizes, strict=True)]
    return NoisyRecovery(likely, excess, positions, margin, tuple(each.name for each in witnesses), tuple(noise))


def _fewest_that_explain(fits: dict[int, LikelyFeatures], first: _Witness) -> int:
    """The smallest number of windows that leaves no more than larger ones do, but for chance."""
    for positions, fit in sorted(fits.items()):
        equations = first.layer.rows * (len(first.layer.matrix.T) - positions)
        chance = 3 * (2 / max(1, equations)) ** 0.5
        larger = [other.deviations[0] ** 2 for more, other in fits.items() if more > positions]
        if all(fit.deviations[0] ** 2 <= (1 + chance) * other for other in larger):
            return positions
    raise AssertionError("the largest has none above it")


def _starts(
    basis: Float[Tensor, "K C"],
    scales: Float[Tensor, " C"],
    windowed: WindowedLayer,
    positions: int,
    lengths: tuple[int, ...] | None,
) -> list[Tensor] | None:
    """The closed form with so many directions; None where it is not determined."""
    if not 1 <= positions <= min(windowed.capacity, len(basis) - 1):
        return None
    # Frames that only a longer utterance of as many windows has are zeros in a shorter one's solution.
    wanted = lengths or windowed.lengths(positions)[-1:]
    projector = projector_on_complement(basis[:positions]) / (scales[:, None] * scales)
    if len(scales) == len(windowed.order):
        projector = nn.functional.pad(projector, (0, 1, 0, 1))
    found = []
    for length in wanted:
        band, right = normal_equations(projector, windowed, length)
        try:
            factor = (cholesky_banded(band, lower=True, check_finite=False), True)
        except LinAlgError:
            return None
        solution = cho_solve_banded(factor, right, check_finite=False)
        found.append(torch.from_numpy(solution).view(length, windowed.num_features))
    return found or None


def _whitened(
    observation: Observation, name: str, drift: Float[Tensor, "S K"] | None = None
) -> tuple[Float[Tensor, "R C"], Float[Tensor, " C"]] | None:
    """Rows of [dW | db] that are not zero, over the scales of their rounding, and the columns' scales; less a known
    part of dW.

    A scale common to all entries is left in. Rows need no scale of their own afterwards: it goes into the gradients.
    """
    matrix = layer_matrix(observation.update, name, observation.model.get_submodule(name))
    if matrix is None:
        return None
    stored = [observation.update.tensors[key] for key in (f"{name}.weight", f"{name}.bias")
              if key in observation.update.tensors]  # fmt: skip
    sizes = [rounding_size(tensor) for tensor in stored]
    matrix = matrix.cpu()
    alive = (matrix != 0).any(dim=1)
    if drift is not None:
        matrix = matrix - nn.functional.pad(drift, (0, matrix.shape[1] - drift.shape[1]))
    matrix = matrix[alive]
    if any(each is None for each in sizes) or len(alive) != len(stored[0]):
        return matrix, torch.ones(matrix.shape[1], dtype=matrix.dtype)
    together = torch.cat([each.cpu().reshape(len(alive), -1) for each in sizes if each is not None], dim=1)[alive]
    rows, columns = scales_of(together, matrix != 0)
    rows, columns = rows / rows.square().mean().sqrt(), columns / columns.square().mean().sqrt()
    return matrix / rows[:, None] / columns, columns


def _first_witness(observation: Observation, windowed: WindowedLayer) -> _Witness | None:
    found = _whitened(observation, windowed.name)
    if found is None:
        return None
    matrix, scales = found
    order = torch.cat([windowed.order, torch.arange(len(windowed.order), matrix.shape[1])])
    matrix, scales, rows = matrix[:, order], scales[order], len(matrix)
    if rows > matrix.shape[1]:
        matrix = torch.linalg.qr(matrix, mode="r").R
    layer = NoisyLayer(matrix, rows, len(scales) > len(windowed.order), scales)
    # The bias may carry noise of another level; the windows alone have the same rank.
    values = torch.linalg.svdvals(matrix[:, : len(windowed.order)])
    return _Witness(windowed.name, layer, rank_above_noise(values, max(rows, len(windowed.order))))


def _second_witness(observation: Observation, windowed: WindowedLayer) -> _Witness | None:
    """The layer behind; None where its inputs are no function of the windows, or there is none."""
    behind = find_layer_behind(observation, windowed)
    return None if behind is None else _witness_behind(observation, behind)


def _witness_behind(
    observation: Observation, behind: LayerBehind, drift: Float[Tensor, "S K"] | None = None
) -> _Witness | None:
    found = _whitened(observation, behind.name, drift)
    if found is None or found[0].shape[1] - len(behind.weight) not in (0, 1):
        return None
    (matrix, scales), weight, bias, activation = found, behind.weight, behind.bias, behind.activation
    on = (matrix[:, : len(weight)] != 0).any(dim=0)
    if not bool(on.all()):
        # Units that no window switched on are no inputs.
        columns = torch.cat([on, on.new_ones(matrix.shape[1] - len(on))])
        matrix, scales = matrix[:, columns], scales[columns]
        activation = at_units(activation, torch.nonzero(on).flatten(), len(weight))
        weight, bias = weight[on], bias[on]
    layer = NoisyLayer(matrix, len(matrix), len(scales) > len(weight), scales, weight, bias, activation)
    # Squaring costs half the digits, which noise has taken already.
    seen = matrix[:, : len(weight)]
    gram = seen.T @ seen if seen.shape[0] >= seen.shape[1] else seen @ seen.T
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return _Witness(behind.name, layer, rank_above_noise(values, max(seen.shape)))
