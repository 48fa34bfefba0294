"""How long each run of equal frames was, as far as states in and beside it had not settled.

The output layer's gradient is sum_t r_t [h_t, 1]', so that it lies in the span of what the layer was shown. A wrong
length moves the states that had not yet settled, those behind the run forwards, those ahead of it in reverse, and the
gradient then sticks out of the span that a hypothesis gives: no text is needed. In runs so long that states settle to
within rounding on their way through, another length changes nothing, and it is said that nothing was told.
"""

from collections.abc import Sequence
from itertools import combinations
from math import inf, isinf

import torch

from overheard.attacks.output_layer import OutputRun
from overheard.attacks.silence.repeat_hypotheses import Hypotheses, Move, Scored, best_along, moved, shown_inputs

CLEAR = 5.0
"""Times what the best hypothesis leaves out of the span, that the next ones leave at least; where states have settled,
what lengths leave differs by up to four times by chance."""

CONTRADICTED = 10.0
"""Times what another sum leaves, that what counts tell may leave at most."""

FARTHEST = 64
"""Frames added to a run at most where nothing tells how many there are in all."""

TOO_MANY = 1
"""Frames by which the first layer's span may give a run too long."""

ROUNDS = 6


def lengths_by_span(search: Hypotheses, added: Sequence[int], told: bool) -> list[int] | None:
    """Frames that each run lacks; None where other numbers fit about as well.

    Args:
        search: the runs.
        added: first guess.
        told: the guess adds up to what the runs of each group lack together, as far as counts tell.
    """
    scores: dict[tuple[int, ...], float] = {}

    def scored(hypotheses: Sequence[list[int]]) -> list[float]:
        fresh = [each for each in dict.fromkeys(map(tuple, hypotheses)) if each not in scores]
        runs = search.outputs(fresh)
        scores.update({each: outside_span(search, run) for each, run in zip(fresh, runs, strict=True)})
        return [scores[tuple(each)] for each in hypotheses]

    groups = search.groups()
    single: list[Move] = [(index, None) for index in range(len(search.runs))]
    shifts: list[Move] = [(index, group[-1]) for group in groups for index in group[:-1]]
    nearest: list[Move] = [pair for group in groups for pair in combinations(group, 2)]

    def least(found: list[int], moves: list[Move]) -> float:
        return min(scored([moved(found, move, by) for move in moves for by in (-1, 1)]), default=inf)

    found = list(added) if told else [max(each, -TOO_MANY) for each in added]
    if isinf(scored([found])[0]):
        return found if told and not shifts else None
    found = _descended(scored, found, shifts, coarse=True)
    # Where the sum is known, another need not be worse: it must not be better.
    if told and least(found, single) >= scores[tuple(found)] / CONTRADICTED:
        return found if least(found, nearest) >= CLEAR * scores[tuple(found)] else None
    for start, coarse in ((found, False), ([0] * len(found), True)):
        found = _descended(scored, start, single, coarse)
        if least(found, nearest + single) >= CLEAR * scores[tuple(found)]:
            return found
    return None


def _descended(scored: Scored, found: list[int], moves: list[Move], coarse: bool) -> list[int]:
    """The lowest score that moves one after the other lead to."""
    for attempt in range(ROUNDS):
        before = found
        for move in moves:
            one, other = move
            low, high = -TOO_MANY - found[one], FARTHEST if other is None else found[other] + TOO_MANY
            found = best_along(scored, found, move, (min(low, 0), max(high, 0)), coarse and attempt == 0)
        if found == before:
            break
    return found


def outside_span(search: Hypotheses, run: OutputRun) -> float:
    """Relative size of what sticks out of the span, all rows alike; infinite where it fills the layer's inputs."""
    gradient = search.gradient
    if gradient is None or not run.repeatable:
        return inf
    matrix = shown_inputs(run, gradient)
    scale = matrix.square().mean(dim=0).sqrt()
    active = scale > 0
    spare = int(active.sum()) - len(matrix)
    if spare <= 0:
        return inf
    basis, _ = torch.linalg.qr((matrix[:, active] / scale[active]).T)  # (C, P)
    rows = gradient[:, active] / scale[active]
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    outside = rows - (rows @ basis) @ basis.T
    return float((outside.square().sum() / (len(rows) * spare)).sqrt())
