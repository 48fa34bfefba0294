"""How numbers are written and sentences are put together."""

# ruff: noqa: RUF001

from dataclasses import replace

import pytest
from audited_run import mixed_records, record

from overheard.metrics.intervals import wilson
from overheard.report.summary import summarise
from overheard.report.wording import (
    exposure_sentence,
    headline,
    model_sentence,
    number,
    percent,
    power_of_ten,
    rate_text,
    sentence,
)


def plain(text: str) -> str:
    """With ordinary spaces."""
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (0.0, "0"),
        (2048, "2,048"),
        (-3, "−3"),
        (0.2104, "0.210"),
        (12.345, "12.3"),
        (118.7, "119"),
        (5120.4, "5,120"),
        (3.14e-5, "3.1 × 10⁻⁵"),
        (-2.5e-7, "−2.5 × 10⁻⁷"),
        (1.26e9, "1.3 × 10⁹"),
    ],
)
def test_number(value: float | None, expected: str) -> None:
    assert plain(number(value)) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.9999, "99.9 %"), (0.0001, "0.1 %"), (0.9333, "93.3 %")],
)
def test_per_cent_never_rounds_to_none_or_all(share: float, expected: str) -> None:
    assert plain(percent(share)) == expected


def test_power_of_ten() -> None:
    assert (power_of_ten(1.0), power_of_ten(1e-7)) == ("10⁰", "10⁻⁷")


def test_headline() -> None:
    records = mixed_records()
    assert headline(summarise([])) == "No utterance was attacked"
    assert headline(summarise(records[11:])) == "Nothing was recovered"
    assert plain(headline(summarise(records[10:]))) == "None of 2 utterances was recovered"
    assert plain(headline(summarise(records))) == "9 of 12 utterances recovered"


def test_attacks_are_counted_where_utterances_repeat() -> None:
    summary = summarise([*mixed_records(), *mixed_records()])
    assert plain(headline(summary)) == "18 of 24 attacks recovered the utterance"
    assert plain(model_sentence(summary)).startswith("18 of 24 attacks brought the utterance back whole (75.0 %, ")


def test_rate_with_interval() -> None:
    rate = wilson(28, 30)
    assert rate is not None
    assert plain(rate_text(rate)) == "93.3 %, 95 % interval 78.7 to 98.2 %"


def test_sentence_of_a_mixed_run() -> None:
    assert plain(model_sentence(summarise(mixed_records()))) == (
        "9 of 12 utterances came back whole (75.0 %, 95 % interval 46.8 to 91.1 %), 1 to 3.96 s long. "
        "Their median feature error is 1.0 × 10⁻⁵ (4.0 × 10⁻⁶ to 1.6 × 10⁻⁵). "
        "1 came back in part or with errors, 2 not at all. The median attack took 0.260 (0.190 to 0.330) s."
    )


def test_sentence_where_nothing_came_back() -> None:
    records = [replace(each, seconds=None) for each in mixed_records()[10:]]
    expected = "None of 2 utterances came back whole (0 %, 95 % interval 0 to 65.8 %). 2 did not come back."
    assert plain(model_sentence(summarise(records))) == expected


def test_sentence_of_one_length_and_of_transcripts() -> None:
    said = plain(model_sentence(summarise([record(0, transcript_recovered="go do you hear")])))
    assert "(100 %, 95 % interval 20.7 to 100 %), 1 s long." in said
    assert "1 of 1 transcript read letter for letter." in said


def test_exposure() -> None:
    assert plain(exposure_sentence(0, 2)) == "None of 2 layers gives away the span of its inputs."
    assert plain(exposure_sentence(1, 2)) == "1 of 2 layers gives away the span of its inputs."
    assert plain(exposure_sentence(2, 3)) == "2 of 3 layers give away the span of their inputs."


def test_notes_become_sentences() -> None:
    assert [sentence(text) for text in ("no attack yet", "Done. ")] == ["No attack yet.", "Done."]
