"""Rates over comparisons of a voice with all that are enrolled: how often the true speaker came first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from overheard.metrics.intervals import Rate, wilson


@dataclass(frozen=True)
class Trial:
    """One voice compared with all that are enrolled.

    Attributes:
        rank: place of the true speaker, 1 is best for the attacker; ties count against him.
        candidates: speakers enrolled.
        score: cosine to the true speaker, -1 to 1.
        others: cosines to everybody else.
    """

    rank: int
    candidates: int
    score: float
    others: tuple[float, ...]


@dataclass(frozen=True)
class ReIdentification:
    """How often a voice gave its speaker away.

    Attributes:
        top1: trials in which the true speaker came first; higher is worse for privacy.
        top5: trials in which it was among the first five.
        chance1: what guessing would give for `top1`.
        chance5: what guessing would give for `top5`.
        equal_error_rate: share of wrong decisions of a threshold on the cosine that errs equally often on true and on
            other speakers; 0 is perfect recognition, 0.5 is chance. None without other speakers.
    """

    top1: Rate
    top5: Rate
    chance1: float
    chance5: float
    equal_error_rate: float | None


def re_identification(trials: Sequence[Trial], silent: int = 0) -> ReIdentification | None:
    """Rates over trials; None without any.

    Args:
        trials: voices that were compared.
        silent: voices of which nothing came back: they count as not identified, and have no part in the equal error
            rate.
    """
    tried = len(trials) + silent
    top1 = wilson(sum(trial.rank == 1 for trial in trials), tried)
    top5 = wilson(sum(trial.rank <= 5 for trial in trials), tried)
    if top1 is None or top5 is None or not trials:
        return None
    return ReIdentification(
        top1=top1,
        top5=top5,
        chance1=sum(1 / trial.candidates for trial in trials) / len(trials),
        chance5=sum(min(1.0, 5 / trial.candidates) for trial in trials) / len(trials),
        equal_error_rate=equal_error_rate(
            [trial.score for trial in trials], [other for trial in trials for other in trial.others]
        ),
    )


def equal_error_rate(targets: Sequence[float], others: Sequence[float]) -> float | None:
    """Where the rates of false rejection and false acceptance meet, interpolated between thresholds.

    Args:
        targets: scores of the true speakers.
        others: scores of everybody else.
    """
    if not targets or not others:
        return None
    true, false = numpy.sort(targets), numpy.sort(others)
    thresholds = numpy.concatenate([[-numpy.inf], numpy.unique(numpy.concatenate([true, false])), [numpy.inf]])
    rejected = numpy.searchsorted(true, thresholds, side="left") / len(true)  # rises with the threshold
    accepted = 1 - numpy.searchsorted(false, thresholds, side="left") / len(false)  # falls
    after = int(numpy.argmax(rejected >= accepted))
    before = after - 1
    gap_before, gap_after = accepted[before] - rejected[before], rejected[after] - accepted[after]
    share = gap_before / (gap_before + gap_after)
    return float(rejected[before] + share * (rejected[after] - rejected[before]))
