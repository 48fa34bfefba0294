"""How many frames runs of equal frames lack in all, from the rows of symbols that nobody said.

A symbol v that was not said has no occupancy, so its row of the output layer's gradient is sum_t p_t(v) [h_t, 1]'. In a
run the states settle, and each frame more adds the same p(v) [h, 1]'. What a hypothesis leaves of the row,

    m = sum_g n_g p_g(v) [h_g, 1]' + sum_t e_t p_t(v) [h_t, 1]' + rounding,

is that for n_g frames, what relative errors e_t of the probabilities make of all others, and the rounding of the row.
A trained model takes a symbol for a thousand times less likely in silence than in speech, where small errors then weigh
as much as whole frames: least squares weigh by the covariance, with the rounding read off what lies outside the span of
[h_t, 1], and the size of e_t the likeliest one. A row that asks for large e_t belongs to a symbol that was said.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.output_layer import OutputRun
from overheard.attacks.silence.repeat_hypotheses import Hypotheses, shown_inputs

SETTLING = 30
"""Frames added to a run so that the states in its middle have settled."""

WHOLE = 0.25
"""How far from a whole number a count may come out."""

KNOWN = 1e-2
"""Relative error of an unsaid symbol's probabilities at most, where the counts are right."""

CANDIDATES = 8
"""Rows that are looked at."""
SYMBOLS = 3
"""Of these, rows that ordinary least squares take counts from."""

HYPOTHESES = 8
"""Hypotheses that are looked at, at most."""


def missing_frames(search: Hypotheses) -> tuple[list[int], bool]:
    """Frames that all runs of each group lack together, and whether that is more than a guess."""
    groups = search.groups()
    added = [SETTLING] * len(search.runs)
    for _ in range(HYPOTHESES):
        run = next(iter(search.outputs([added])), None)
        left = None if run is None or not run.repeatable else _left_by(search, groups, added, run)
        found = None if left is None else _counts(left, search.precision)
        if found is None:
            return [0] * len(groups), False
        counts, told = found
        whole = [int(each) for each in counts.round()]
        if not any(whole):
            return [sum(added[index] for index in group) for group in groups], told
        for group, more in zip(groups, whole, strict=True):
            search.spread(added, group, more)
    return [sum(added[index] for index in group) for group in groups], False


@dataclass(frozen=True)
class _Left:
    """What a hypothesis leaves of the update.

    Attributes:
        shown: [h_t, 1] of all frames.
        probabilities: p_t.
        gradient: of the output layer.
        missing: what the probabilities alone do not explain of it.
        likely: symbols of whose rows they explain most.
        settled: a frame in the middle of a run of each group.
    """

    shown: Float[Tensor, "P C"]
    probabilities: Float[Tensor, "P V"]
    gradient: Float[Tensor, "V C"]
    missing: Float[Tensor, "V C"]
    likely: list[int]
    settled: list[int]


def _left_by(search: Hypotheses, groups: list[list[int]], added: list[int], run: OutputRun) -> _Left | None:
    gradient = search.gradient
    if gradient is None:
        return None
    shown = shown_inputs(run, gradient)
    probabilities = torch.cat([logits.softmax(dim=1) for logits in run.logits])
    expected = probabilities.T @ shown
    missing = gradient - expected
    unexplained = missing.norm(dim=1) / expected.norm(dim=1)
    sent = gradient.any(dim=1).tolist()
    likely = [symbol for symbol in unexplained.argsort().tolist() if symbol > 0 and sent[symbol]][:CANDIDATES]
    starts = torch.tensor([0, *(len(logits) for logits in run.logits)]).cumsum(dim=0).tolist()
    middles = [search.middle(group[0], added) for group in groups]
    settled = [starts[utterance] + frame for utterance, frame in middles]
    return _Left(shown, probabilities, gradient, missing, likely, settled) if likely else None


def _counts(left: _Left, precision: float) -> tuple[Float[Tensor, " G"], bool] | None:
    """Counts by the way that tells them, or else by the one that fits."""
    plain = _plain(left)
    if plain is not None and plain[1]:
        return plain
    weighed = _weighed(left, precision)
    if weighed is None or (plain is not None and weighed[2] > KNOWN):
        return plain
    return weighed[:2]


def _plain(left: _Left) -> tuple[Float[Tensor, " G"], bool] | None:
    """Counts by ordinary least squares, and whether they are whole for all that those leave; None where that is much.

    Better where probabilities are known well and errors are those of the hypothesis.
    """
    found = []
    for symbol in left.likely:
        frames = left.shown[left.settled] * left.probabilities[left.settled, symbol, None]  # (G, C)
        counts = torch.linalg.lstsq(frames.T, left.missing[symbol, :, None]).solution[:, 0]
        rest = float((left.missing[symbol] - counts @ frames).norm() / frames.norm(dim=1).min())
        found.append((rest, counts))
    found = sorted(found, key=lambda each: each[0])[:SYMBOLS]
    counts = torch.stack([each for _, each in found]).median(dim=0).values
    if found[0][0] > WHOLE * max(1.0, float(counts.abs().max())):
        return None
    return counts, found[0][0] + float((counts - counts.round()).abs().max()) <= WHOLE


def _weighed(left: _Left, precision: float) -> tuple[Float[Tensor, " G"], bool, float] | None:
    """Counts by generalised least squares, each row by its own precision, whether they are whole beyond doubt, and the
    least error of a row; None where frames fill the layer's inputs, so that nothing tells how rows were rounded."""
    scale = left.shown.square().mean(dim=0).sqrt()
    active = scale > 0
    if len(left.shown) >= int(active.sum()):
        return None
    directions, values, basis = torch.linalg.svd(left.shown[:, active] / scale[active], full_matrices=False)
    rows = []
    for symbol in left.likely:
        missing = left.missing[symbol, active] / scale[active]
        outside = missing - (missing @ basis.T) @ basis
        stored = precision * float((left.gradient[symbol, active] / scale[active]).square().mean().sqrt()) / 2
        rounding = max(stored, float(outside.norm()) / (len(missing) - len(basis)) ** 0.5)
        shares = (directions * values).T * left.probabilities[:, symbol]
        rows.append(_likeliest(shares, basis @ missing, rounding, left.settled))
    weights = torch.stack([deviations for _, _, deviations in rows]).square().reciprocal()
    counts = (weights * torch.stack([each for _, each, _ in rows])).sum(dim=0) / weights.sum(dim=0)
    doubt = (counts - counts.round()).abs() + weights.sum(dim=0).rsqrt()
    error = min(error for error, _, _ in rows)
    return counts, error <= KNOWN and float(doubt.max()) <= WHOLE, error


def _likeliest(
    shares: Float[Tensor, "K P"], missing: Float[Tensor, " K"], rounding: float, settled: list[int]
) -> tuple[float, Float[Tensor, " G"], Float[Tensor, " G"]]:
    """The error that makes what is missing likeliest, counts, and their deviations."""
    variances, directions = torch.linalg.eigh(shares @ shares.T)
    design = directions.T @ shares[:, settled]  # (K, G)
    target = directions.T @ missing
    tried: list[tuple[float, float, Tensor, Tensor]] = []
    for error in torch.logspace(-8, 0, 33, dtype=shares.dtype).tolist():
        weights = 1.0 / (rounding**2 + error**2 * variances.clamp(min=0.0))
        information = (design.T * weights) @ design
        counts = torch.linalg.lstsq(information, ((design.T * weights) @ target)[:, None]).solution[:, 0]
        loss = float((weights * (target - design @ counts).square()).sum() - weights.log().sum())
        tried.append((loss, error, counts, torch.linalg.pinv(information).diagonal().clamp(min=0.0).sqrt()))
    return min(tried, key=lambda each: each[0])[1:]
