"""Closed form: speech from the update of a layer that sees overlapping windows of it.

The layer is shown u_p(X), p = 1..P, windows of the unknown features X (T, F), and shares [dW | db] whose row space is
the span of [u_p, 1]. With Pi the projector on the complement of that span, Pi [u_p(X), 1] = 0 for all p is linear in X
and block-banded; it has one solution while P <= (k - s) F. One singular value decomposition gives Pi, one banded
Cholesky factorisation gives X. The number of positions is the rank.

The spans of a batch's utterances add up. Each has its own zero padding at both ends, so the equations for T frames have
a solution exactly where an utterance of T frames is in the batch: `length_scan` tries every T, and each utterance then
comes back by itself.
"""

from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.entries.rounding import by_sizes, rounded_as_products
from overheard.attacks.entries.sent_entries import SentEntries, sent_entries
from overheard.attacks.noise.feature_scale import NEARBY, clipped_by_layer, factor_of_front_end, factor_of_layer_behind
from overheard.attacks.noise.layer_behind import find_layer_behind, mixed_rows
from overheard.attacks.noise.noisy_span import NoisyRecovery, recover_from_noise
from overheard.attacks.observation import Observation, Reconstruction, errors_of
from overheard.attacks.partial_update import recover_from_entries
from overheard.attacks.rank import NumericalRank, layer_matrix, precision_of, rank_of_spectrum
from overheard.attacks.repeated_frames import Restored, restore_repeats
from overheard.attacks.spans.length_scan import length_scan
from overheard.attacks.spans.refined_span import refined
from overheard.attacks.spans.span_solver import PRECISE, SpanSolution, SpanSolver, row_space
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.recognition.recogniser import as_recogniser


@dataclass(frozen=True)
class SpanConfig:
    """Settings of the closed form.

    Attributes:
        neighbours: how far from a rank that is not clear the number of positions is sought, to either side.
        tolerance: predicted relative error of the features, along the worst-determined direction, up to which a
            solution counts as the only one.
        precision: the same over all directions.
        noise: likely relative error of the closed form above which the update is taken to be noisy, and its features
            by likelihood.
    """

    neighbours: int = 1
    tolerance: float = 1e-2
    precision: float = 1e-3
    noise: float = 3e-4


TESTED_ROWS = 256
"""About as many rows tell how entries were rounded."""

CLEAR_MARGIN = 10.0
"""Fall of the spectrum at the rank from which on no noise fills it."""


def attack(observation: Observation, config: SpanConfig, *, generator: torch.Generator) -> Reconstruction:
    """Every utterance of the batch from the first layer's update; where that is noisy, also from the one behind it.

    Args:
        observation: all that the attacker sees.
        config: its settings.
        generator: of the draws from which the errors that noise causes are predicted.
    """
    update = observation.update
    settings = asdict(config)
    # Equations are solved on the CPU, wherever the model is.
    generator = torch.Generator().manual_seed(generator.initial_seed())
    layer = find_windowed_layer(observation.model, as_recogniser(observation.model).front_end.num_features)
    if layer is None:
        reason = "no layer of this model sees overlapping windows of its input"
        return Reconstruction("span", reason=reason, settings=settings)
    matrix = layer_matrix(update, layer.name, observation.model.get_submodule(layer.name))
    if matrix is None or matrix.shape[1] != len(layer.order) + 1:
        reason = f"the update holds no weight and bias of {layer.name}, the layer that sees windows"
        return Reconstruction("span", reason=reason, settings=settings)
    entries = sent_entries(observation, layer)
    if entries is not None:
        return _from_entries(observation, layer, entries, config, generator)
    # Units that no frame switched on have rows of zeros: they bound the rank and say nothing.
    alive = matrix[(matrix != 0).any(dim=1)]
    closed = _closed_form(torch.cat([alive[:, layer.order], alive[:, -1:]], dim=1), observation, layer, config)
    found, failure, solutions = closed.found, closed.failure, closed.solutions
    if closed.weighed and len(solutions) == update.protocol.num_utterances and _likeliest_error(closed) > PRECISE:
        solutions = refined(observation, layer, solutions)
    diagnostics: dict[str, object] = {
        **_layout(layer),
        "rank": found.rank,
        "rank_margin": found.margin,
        "spectrum": [float(value) for value in found.singular_values / found.singular_values[:1]],
        "weighed": closed.weighed,
    }
    noisy = None
    # Errors that grow with rows are those of rounding: then a margin that is small is no sign of noise.
    unclear = found.margin < CLEAR_MARGIN and not closed.weighed
    if found.rank and (unclear or any(each.likely_error > config.noise for each in solutions)):
        lengths = observation.prior.num_frames
        if not unclear and len(solutions) == update.protocol.num_utterances:
            lengths = tuple(len(each.features) for each in solutions)
        noisy = recover_from_noise(observation, layer, generator, lengths)
    if noisy is not None and (noisy.fits or unclear):
        error = noisy.likely.predicted_error
        solutions = [
            SpanSolution(features, noisy.excess, error, error, errors)
            for features, errors in zip(noisy.likely.features, noisy.likely.errors, strict=True)
        ]
        diagnostics |= _described(noisy)
    elif failure is not None:
        return Reconstruction("span", reason=failure, settings=settings, diagnostics=diagnostics)
    fits = noisy is None or noisy.fits
    determined = [
        each.predicted_error <= config.tolerance and each.likely_error <= config.precision for each in solutions
    ]
    unique = bool(solutions) and fits and all(determined)
    missing = update.protocol.num_utterances - len(solutions)
    reason = None
    if not fits and not missing:
        reason = "the features found leave more of the update unexplained than its noise does"
    elif missing:
        reason = f"{missing} of {update.protocol.num_utterances} utterances not told apart: their lengths did not show"
    elif not unique:
        reason = "the solution is not determined by the span to the stated tolerance"
    factor, source = 1.0, None
    if solutions and not missing and noisy is None:
        factor, source = _factor(observation, layer, [each.features for each in solutions], generator)
        if source is None and clipped_by_layer(update, [f"{layer.name}.weight", f"{layer.name}.bias"]):
            unique, reason = False, "clipped by layer: features are known up to one factor, and nothing tells which"
    restored = Restored(tuple(factor * each.features for each in solutions))
    if factor != 1.0:
        diagnostics |= {"feature_factor": factor, "feature_factor_source": source}
    if unique and not missing:
        restored = restore_repeats(observation, restored.features, layer.window)
        reason = restored.reason
    diagnostics |= {
        "lengths": [len(features) for features in restored.features],
        **restored.diagnostics(),
        "residuals": [each.residual for each in solutions],
        "predicted_errors": [each.predicted_error for each in solutions],
        "likely_errors": [each.likely_error for each in solutions],
    }
    return Reconstruction(
        attack="span",
        features=restored.features,
        transcripts=(None,) * len(solutions),
        unique=unique and reason is None,
        reason=reason,
        settings=settings,
        diagnostics=diagnostics,
        errors=errors_of(restored.features, [factor * each.errors for each in solutions]),
    )


@dataclass(frozen=True)
class _ClosedForm:
    """What the closed form gives.

    Attributes:
        found: the number of windows.
        failure: why it cannot be tried, or None.
        solutions: of the utterances that could be told apart.
        weighed: rows and columns are over their sizes, as sums of products were rounded.
    """

    found: NumericalRank
    failure: str | None
    solutions: list[SpanSolution]
    weighed: bool = False


def _closed_form(
    matrix: Float[Tensor, "R C"], observation: Observation, layer: WindowedLayer, config: SpanConfig
) -> _ClosedForm:
    """Entries over their sizes where errors grow with rows; all alike where they do not, or where that is clearer."""
    precision = precision_of(observation.update, layer.name)
    scaled, columns = by_sizes(matrix)
    basis, values = row_space(scaled)
    found = rank_of_spectrum(values, precision)
    weighed = None
    some = slice(None, None, max(1, len(matrix) // TESTED_ROWS))
    if 0 < found.rank < len(values) and rounded_as_products(matrix[some], scaled[some], basis[: found.rank]):
        weighed = _solved(found, basis, columns, observation, layer, config)
        clear = found.margin >= CLEAR_MARGIN
        if clear and len(weighed.solutions) == observation.update.protocol.num_utterances:
            return weighed
    basis, values = row_space(matrix)
    plain = _solved(rank_of_spectrum(values, precision), basis, None, observation, layer, config)
    if weighed is None:
        return plain
    # More solutions first; of as many, those of the rank that is clearer.
    return max(plain, weighed, key=lambda each: (len(each.solutions), each.found.margin))


def _likeliest_error(closed: _ClosedForm) -> float:
    return max((each.likely_error for each in closed.solutions), default=0.0)


def _solved(
    found: NumericalRank,
    basis: Float[Tensor, "K C"],
    scales: Float[Tensor, " C"] | None,
    observation: Observation,
    layer: WindowedLayer,
    config: SpanConfig,
) -> _ClosedForm:
    failure = _beyond_reach(found.rank, len(found.singular_values), layer, config)
    solutions = [] if failure is not None else _solve_batch(basis, scales, layer, found, observation, config)
    return _ClosedForm(found, failure, solutions, scales is not None)


def _factor(
    observation: Observation, layer: WindowedLayer, features: list[Tensor], generator: torch.Generator
) -> tuple[float, str | None]:
    """By what all features are to be multiplied, and what tells; see `feature_scale`."""
    behind = find_layer_behind(observation, layer)
    rows = None if behind is None else mixed_rows(observation, behind, generator)
    if behind is not None and rows is not None and sum(map(len, features)) < rows.matrix.shape[1]:
        return factor_of_layer_behind(rows, layer, features), behind.name
    factor = factor_of_front_end(as_recogniser(observation.model).front_end, features)
    if factor is None:
        return 1.0, None
    return (factor if abs(factor - 1) > NEARBY else 1.0), "front end"


def _from_entries(
    observation: Observation,
    layer: WindowedLayer,
    entries: SentEntries,
    config: SpanConfig,
    generator: torch.Generator,
) -> Reconstruction:
    """Pruned and sparsified updates: by completion and likelihood."""
    found = recover_from_entries(observation, layer, entries, generator, observation.prior.num_frames)
    error = float("inf") if found.likely is None else found.likely.predicted_error
    determined, reason = error <= config.precision, found.reason
    if found.likely is not None and reason is None and not determined:
        reason = "what was sent does not determine the features to the stated tolerance"
    restored = Restored(() if found.likely is None else found.likely.features)
    if found.fits and determined:
        restored = restore_repeats(observation, restored.features, layer.window)
        reason = restored.reason
    diagnostics: dict[str, object] = {
        **_layout(layer),
        "rank": found.rank,
        "rank_margin": found.margin,
        "sent": found.sent,
        "entry_layers": list(found.layers),
        "entry_equations": found.equations,
        "entry_unknowns": found.unknowns,
        "lengths": [len(features) for features in restored.features],
        **restored.diagnostics(),
    }
    if found.likely is not None:
        diagnostics |= {"entry_excess": found.excess, "likely_errors": [error] * len(restored.features)}
    return Reconstruction(
        attack="span",
        features=restored.features,
        transcripts=(None,) * len(restored.features),
        unique=found.fits and determined and reason is None if restored.features else None,
        reason=reason,
        settings=asdict(config),
        diagnostics=diagnostics,
    )


def _layout(layer: WindowedLayer) -> dict[str, str | int]:
    """The attacked layer, for the diagnostics."""
    return {"layer": layer.name, "window": layer.window, "stride": layer.stride, "capacity": layer.capacity}


def _described(noisy: NoisyRecovery) -> dict[str, object]:
    """What a fit under noise adds to the diagnostics, in place of the closed form's rank."""
    return {
        "rank": noisy.rank,
        "rank_margin": noisy.margin,
        "noisy_layers": list(noisy.layers),
        "noise": list(noisy.noise),
        "noise_excess": noisy.excess,
        "likelihood_steps": noisy.likely.steps,
        "likelihood_iterations": noisy.likely.iterations,
    }


def _beyond_reach(rank: int, size: int, layer: WindowedLayer, config: SpanConfig) -> str | None:
    """Why the closed form cannot be tried, or None."""
    if rank == 0:
        return f"the update of {layer.name} is zero"
    if rank == size:
        return f"saturated: the update of {layer.name} has full rank {rank}, so it spans more than its inputs"
    limit = min(layer.capacity, size - 1)
    if rank - config.neighbours > limit:
        return (
            f"past the capacity: {layer.name} was shown at least {rank} windows, "
            f"the closed form is determined up to {limit}"
        )
    return None


def _solve_batch(
    basis: Float[Tensor, "K C"],
    scales: Float[Tensor, " C"] | None,
    layer: WindowedLayer,
    found: NumericalRank,
    observation: Observation,
    config: SpanConfig,
) -> list[SpanSolution]:
    """Solutions for all utterances that could be told apart; the hypothesis of least predicted error."""
    size = observation.update.protocol.num_utterances
    best: list[SpanSolution] = []
    neighbours = 0 if found.margin >= CLEAR_MARGIN else config.neighbours
    for positions in _near(found.rank, min(layer.capacity, len(basis) - 1), neighbours):
        solver = SpanSolver(basis[:positions], layer, scales, found.singular_values[:positions])
        for lengths in _lengths(solver.projector, layer, positions, size, observation.prior.num_frames):
            solved = [solver.solve(each) for each in lengths]
            solutions = [each for each in solved if each is not None]
            if len(solutions) > len(best) or (
                len(solutions) == len(best) and best and _worst(solutions) < _worst(best)
            ):
                best = solutions
        if best and len(best) == size and _worst(best) <= config.tolerance:
            break
    return best


def _worst(solutions: list[SpanSolution]) -> float:
    return max(each.predicted_error for each in solutions)


def _near(rank: int, limit: int, neighbours: int) -> list[int]:
    """Numbers of positions near the rank at which the closed form is determined, the nearest first."""
    near = sorted(range(rank - neighbours, rank + neighbours + 1), key=lambda positions: abs(positions - rank))
    return [positions for positions in near if 1 <= positions <= limit]


def _lengths(
    projector: Float[Tensor, "C C"],
    layer: WindowedLayer,
    positions: int,
    size: int,
    known: tuple[int, ...] | None,
) -> list[list[tuple[int, ...]]]:
    """What this many positions allow: for each utterance the lengths that give its share of them, or the known one.

    Utterances of a batch have distinct shares, since equal ones mix.
    """
    if known is not None:
        return [[(each,) for each in known]] if sum(map(layer.num_positions, known)) == positions else []
    if size == 1:
        return [[tuple(layer.lengths(positions))]]
    scan = length_scan(projector, layer, max(layer.lengths(positions), default=positions))
    least: dict[int, float] = {}
    for length, value in scan.items():
        share = layer.num_positions(length)
        least[share] = min(value, least.get(share, value))
    dips = _dips(least, size)
    return [
        [tuple(layer.lengths(share)) for share in sorted(set(shares))]
        for shares in combinations_with_replacement(dips, size)
        if set(shares) == set(dips) and sum(shares) == positions
    ]


def _dips(scan: dict[int, float], size: int) -> list[int]:
    """Numbers of windows whose least value lies below the widest gap among the lowest: at most one an utterance."""
    lowest = sorted(scan, key=lambda share: scan[share])[: size + 1]
    floor = torch.finfo(torch.float64).eps
    ratios = [(scan[lowest[place + 1]] + floor) / (scan[lowest[place]] + floor) for place in range(len(lowest) - 1)]
    return sorted(lowest[: ratios.index(max(ratios)) + 1]) if ratios else lowest
