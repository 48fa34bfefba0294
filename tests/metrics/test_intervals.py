"""Intervals: against draws made one by one, and where there is nothing to draw from."""

from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overheard.metrics.intervals import median_estimate, ratio_difference, ratio_estimate, wilson

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


def test_the_medians_interval_is_that_of_many_draws() -> None:
    values = numpy.random.default_rng(1).normal(size=51)
    found = median_estimate(values.tolist())
    assert found is not None
    drawn = numpy.random.default_rng(0).choice(values, size=(20_000, 51))
    low, high = numpy.quantile(numpy.median(drawn, axis=1), [0.025, 0.975], method="inverted_cdf")
    ordered = numpy.sort(values).tolist()
    assert abs(ordered.index(found.low) - ordered.index(low)) <= 1
    assert abs(ordered.index(found.high) - ordered.index(high)) <= 1


@given(VALUES)
def test_a_median_lies_within_its_interval(values: list[float]) -> None:
    found = median_estimate(values)
    assert found is not None
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert found.count == len(values)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=40))
def test_a_ratio_lies_in_its_interval_and_is_the_same_each_time(counts: list[tuple[int, int]]) -> None:
    parts, wholes = [part for part, _ in counts], [whole for _, whole in counts]
    found = ratio_estimate(parts, wholes, resamples=200)
    assert found is not None
    assert found.low <= found.high
    assert found == ratio_estimate(parts, wholes, resamples=200)
    assert found.value == sum(parts) / sum(wholes)


@pytest.mark.parametrize("count", [1, 40])
def test_none_and_all_are_not_certain(count: int) -> None:
    none, every = ratio_estimate([0] * count, [4] * count), ratio_estimate([4] * count, [4] * count)
    exact = wilson(0, count)
    assert none is not None
    assert every is not None
    assert exact is not None
    assert (none.value, none.low, none.high) == (0.0, 0.0, exact.high)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - exact.high)
    # An utterance without a word says nothing.
    assert ratio_estimate([0] * (count + 1), [4] * count + [0]) == replace(none, count=count + 1)


def test_an_error_rate_weighs_long_utterances_more() -> None:
    found = ratio_estimate([0, 10], [10, 10])
    assert found is not None
    assert found.value == 0.5
    assert (found.low, found.high) == (0.0, 1.0)


def test_draws_in_parts_are_draws() -> None:
    parts = numpy.random.default_rng(0).integers(0, 2, 5000).tolist()
    found = ratio_estimate(parts, [1] * 5000)
    exact = wilson(sum(parts), 5000)
    assert found is not None
    assert exact is not None
    assert found.low == pytest.approx(exact.low, abs=0.003)
    assert found.high == pytest.approx(exact.high, abs=0.003)


def test_of_nothing_there_is_nothing() -> None:
    assert wilson(0, 0) is None
    assert median_estimate([None]) is None
    assert ratio_estimate([1.0], [0.0]) is None
    with pytest.raises(ValueError, match="1 parts and 2 wholes"):
        ratio_estimate([1], [1, 2])


def test_one_value_knows_no_better() -> None:
    found = median_estimate([3.0, None])
    assert found is not None
    assert (found.value, found.low, found.high, found.count) == (3.0, 3.0, 3.0, 1)


def test_a_difference_of_the_same_records_is_narrower_than_its_parts() -> None:
    random = numpy.random.default_rng(0)
    hard = random.integers(0, 5, 60)
    first, second, words = hard + random.integers(0, 2, 60), hard, numpy.full(60, 5)
    found = ratio_difference(first.tolist(), second.tolist(), words.tolist())
    apart = ratio_estimate(first.tolist(), words.tolist())
    assert found is not None
    assert apart is not None
    assert found.value == pytest.approx((first.sum() - second.sum()) / words.sum())
    assert 0 < found.low < found.value < found.high
    assert found.high - found.low < 0.5 * (apart.high - apart.low)
    back = ratio_difference(second.tolist(), first.tolist(), words.tolist())
    assert back is not None
    assert back.value == -found.value
    assert ratio_difference([], [], []) is None
