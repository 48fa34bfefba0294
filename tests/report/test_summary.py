"""Counts, rates and medians, each against a slow or published reference."""

import statistics

import pytest
from audited_run import failed, mixed_records, record
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from overheard.metrics.intervals import wilson
from overheard.report.summary import (
    condition,
    failure_reasons,
    grouped,
    records_shown,
    summarise,
    transcript_changes,
    verdict,
)


@given(st.integers(1, 400).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_equals_scipy(counts: tuple[int, int]) -> None:
    found = wilson(*counts)
    expected = binomtest(*counts).proportion_ci(confidence_level=0.95, method="wilson")
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_nothing_tried_has_no_rate() -> None:
    assert wilson(0, 0) is None
    empty = summarise([])
    assert (empty.rate, empty.median_mae, empty.shortest, empty.in_part, empty.failed) == (None, None, None, 0, 0)


def test_summary_is_what_the_records_say() -> None:
    records = mixed_records()
    found = summarise(records)
    recovered = records[:9]
    assert found.rate is not None
    assert (found.rate.successes, found.rate.trials, found.in_part, found.failed) == (9, 12, 1, 2)
    assert (found.shortest, found.longest) == (1.0, 1.0 + 0.37 * 8)
    for estimate, values in (
        (found.median_mae, [each.feature_mae for each in recovered if each.feature_mae]),
        (found.median_snr_db, [each.feature_snr_db for each in recovered if each.feature_snr_db]),
        (found.median_seconds, [each.seconds for each in records if each.seconds]),
    ):
        assert estimate is not None
        assert estimate.value == statistics.median(values)
        assert min(values) <= estimate.low <= estimate.value <= estimate.high <= max(values)
    assert (found.certified, found.transcripts_read, found.transcripts_exact) == (0, 0, 0)


def test_transcripts_count_as_exact_only_letter_for_letter() -> None:
    found = summarise([record(0, transcript_recovered="go do you hear"), record(1, transcript_recovered="go")])
    assert (found.transcripts_read, found.transcripts_exact) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "recovered"),
        ({"feature_mae": 0.01}, "in part"),
        ({"frames_recovered": 3}, "in part"),
        ({"status": "failed", "frames_recovered": None, "feature_mae": None}, "failed"),
        ({"status": "failed", "frames_recovered": None, "frames_true": None, "feature_mae": None}, "failed"),
    ],
)
def test_verdict(changes: dict[str, object], expected: str) -> None:
    assert verdict(record(0, **changes)) == expected


def test_groups_keep_the_order_of_the_records() -> None:
    records = [record(0, defence="noise"), record(1), record(2, defence="noise")]
    groups = grouped(records, condition)
    assert [key.defence for key in groups] == ["noise", "none"]
    assert [len(group) for group in groups.values()] == [2, 1]


def test_reasons_commonest_first_with_their_first_utterance() -> None:
    found = failure_reasons([record(0), failed(1, "rare"), failed(2, "common"), failed(3, "common")])
    assert [(one.reason, one.count, one.utterance[-4:]) for one in found] == [
        ("common", 2, "0002"),
        ("rare", 1, "0001"),
    ]


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12))
def test_rows_shown_are_bounded_in_order_and_keep_failures(successes: list[bool], limit: int) -> None:
    records = [record(index) if good else failed(index, "none") for index, good in enumerate(successes)]
    shown = records_shown(records, limit)
    places = [records.index(each) for each in shown]
    assert len(shown) == min(limit, len(records))
    assert places == sorted(places)
    failures = sum(not each.recovered for each in records)
    assert sum(not each.recovered for each in shown) >= min(failures, limit // 2)


def test_changes_mark_words() -> None:
    assert transcript_changes("go do you hear", "go to you hear it") == [
        ("same", "go"),
        ("missing", "do"),
        ("wrong", "to"),
        ("same", "you hear"),
        ("wrong", "it"),
    ]
    assert transcript_changes("", "") == []
    assert transcript_changes("go", "") == [("missing", "go")]


def test_half_a_recovery_shows_as_half() -> None:
    half = record(0, frames_true=100, frames_close=50, words_true=4, words_recovered=2, transcript_recovered="go do")
    found = summarise([half, record(1, frames_true=100, frames_close=100)])
    assert found.frames is not None
    assert found.frames.value == 0.75
    assert found.words is not None
    assert found.words.value == 0.5
