"""The table of defences: the same speech for all, recovered without one and not under loud noise."""

from pathlib import Path

import pytest
from tone_corpus import write_tones

from builders import small_deepspeech1
from overheard.benchmarks.defences import STRENGTHS, measure
from overheard.commands.defence_benchmark import LOCAL, table_of
from overheard.errors import InputError
from overheard.federation.defences.registry import parse_defence
from overheard.speech.corpus import load_corpus


def test_rows_say_what_came_back(tmp_path: Path) -> None:
    cuts = load_corpus(write_tones(tmp_path, speakers=2, each=1)).cuts
    rows = list(measure(small_deepspeech1(), cuts, ["none", "clip:norm=1", "noise:std=1"], "span", LOCAL, 0))
    assert [(row.recovered, row.utterances) for row in rows] == [(2, 2), (2, 2), (0, 2)]
    assert rows[0].snr is not None
    assert rows[0].snr > 40
    assert rows[2].reason
    assert table_of(rows, "span").row_count == 3


def test_a_defence_of_the_cohort_has_no_row() -> None:
    with pytest.raises(InputError, match="user-dp"):
        next(measure(small_deepspeech1(), (), ["user-dp"], "span", LOCAL, 0))


def test_every_default_row_is_a_defence() -> None:
    assert all(text == "none" or parse_defence(text).defence.place != "cohort" for text in STRENGTHS)
