"""95 % intervals of what records come to: medians and ratios by the bootstrap, rates by Wilson's score.

The bootstrap draws records with replacement and asks where the statistic lies in 95 % of the draws (Efron 1979). Of a
rate that is 0 or 1 it draws the same value each time and would claim certainty from one record, so rates have the
score interval (Wilson 1927), which keeps its level there; ratios that are 0 or 1 in every record have it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from jaxtyping import Float
from scipy.stats import binom

LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
RESAMPLES = 2000
DRAWN_AT_ONCE = 2_000_000
"""Counts held in memory at a time."""


@dataclass(frozen=True)
class Rate:
    """A share of trials with its 95 % interval.

    Attributes:
        successes: how many.
        trials: of how many, at least 1.
        low: lower end of the interval, 0 to 1.
        high: upper end, 0 to 1.
    """

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Successes over trials."""
        return self.successes / self.trials


@dataclass(frozen=True)
class Estimate:
    """A statistic of records with its 95 % interval.

    Attributes:
        value: of the records as they are, in their unit.
        low: lower end of the interval.
        high: upper end.
        count: records that had a value.
    """

    value: float
    low: float
    high: float
    count: int


def wilson(successes: int, trials: int) -> Rate | None:
    """A rate with its score interval (Wilson 1927); None where nothing was tried."""
    if trials == 0:
        return None
    share, z2 = successes / trials, NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = NORMAL_QUANTILE * (share * (1 - share) / trials + z2 / (4 * trials**2)) ** 0.5 / (1 + z2 / trials)
    # Rounding may not push the ends off the exact values that they have at 0 and at 1.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return Rate(successes, trials, low, high)


def median_estimate(values: Sequence[float | None]) -> Estimate | None:
    """The median of the values that exist with its percentile bootstrap interval; None where none does.

    Nothing is drawn: the median of n draws is at most the i-th smallest value where at least half of them fall there,
    a binomial event (Maritz and Jarrett 1978). Of an even number, the interval reaches from the lower to the upper of
    the two middle values, which makes it the wider one.
    """
    known = numpy.sort(numpy.array([value for value in values if value is not None], dtype=float))
    count = len(known)
    if not count:
        return None
    below = numpy.arange(1, count + 1) / count
    lower_middle, upper_middle = (count + 1) // 2, count // 2 + 1
    reached_low = binom.sf(lower_middle - 1, count, below)  # P(lower middle value of a draw <= i-th smallest)
    reached_high = binom.sf(upper_middle - 1, count, below)
    low = known[int(numpy.argmax(reached_low >= (1 - LEVEL) / 2))]
    high = known[int(numpy.argmax(reached_high >= (1 + LEVEL) / 2))]
    return Estimate(float(numpy.median(known)), float(low), float(high), count)


def ratio_estimate(
    parts: Sequence[int | float], wholes: Sequence[int | float], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """The sum of parts over the sum of wholes, such as edits over words; None where the wholes sum to 0.

    Where no record has a part, or each has all, draws are all alike: that end of the interval which they cannot tell is
    Wilson's, of as many records as have a whole.

    Args:
        parts: one for each record, none negative.
        wholes: one for each record, none negative.
        resamples: draws of the percentile bootstrap.
        seed: of the draws.
    """
    if len(parts) != len(wholes):
        raise ValueError(f"{len(parts)} parts and {len(wholes)} wholes")
    over = numpy.array([parts, wholes], dtype=float)  # (2, records)
    if not over[1].sum() > 0:
        return None
    sums = _resampled_sums(over, resamples, numpy.random.default_rng(seed))
    # A draw without a single word has no error rate.
    ratios = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = numpy.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    counted = int((over[1] > 0).sum())
    if not over[0].any() and (rate := wilson(0, counted)) is not None:
        high = rate.high
    elif (over[0] == over[1]).all() and (rate := wilson(counted, counted)) is not None:
        low = rate.low
    return Estimate(float(over[0].sum() / over[1].sum()), float(low), float(high), over.shape[1])


def ratio_difference(
    first: Sequence[int | float],
    second: Sequence[int | float],
    wholes: Sequence[int | float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """How much the ratio of the first parts to the wholes is above that of the second, both of the same records.

    A draw takes both parts of a record, so that what makes a record hard for both does not widen the interval. None
    where the wholes sum to 0; arguments as in `ratio_estimate`.
    """
    if not len(first) == len(second) == len(wholes):
        raise ValueError(f"{len(first)} and {len(second)} parts, {len(wholes)} wholes")
    over = numpy.array([first, second, wholes], dtype=float)  # (3, records)
    over = numpy.stack([over[0] - over[1], over[2]])
    if not over[1].sum() > 0:
        return None
    sums = _resampled_sums(over, resamples, numpy.random.default_rng(seed))
    ratios = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = numpy.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(over[0].sum() / over[1].sum()), float(low), float(high), over.shape[1])


def _resampled_sums(
    values: Float[numpy.ndarray, "K R"], resamples: int, random: numpy.random.Generator
) -> Float[numpy.ndarray, "K B"]:
    """Sums over draws of R records with replacement, the same draw for every row.

    Records with equal values are drawn together, by how often each kind comes: of error counts there are few kinds.
    """
    kinds, counts = numpy.unique(values, axis=1, return_counts=True)  # (K, U)
    together = max(1, DRAWN_AT_ONCE // len(counts))
    sums = []
    for start in range(0, resamples, together):
        drawn = random.multinomial(values.shape[1], counts / counts.sum(), size=min(together, resamples - start))
        sums.append(kinds @ drawn.T)
    return numpy.concatenate(sums, axis=1)
