"""The study of matching: its crops, its results, and that a killed one goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from overheard.benchmarks.matching_study import (
    METHODS,
    StudyPlan,
    StudyResult,
    choose_crops,
    read_results,
    run_study,
    summarise,
)
from overheard.commands.benchmarks import study_table
from overheard.errors import InputError
from overheard.recognition.models import model_spec

SMALL = model_spec("deepspeech2", num_layers=1, hidden_size=8, channels=2)


def plan(corpus: Path, **changes: object) -> StudyPlan:
    return replace(StudyPlan(corpus, 2, 1.0, 0.01, model=SMALL), **changes)


def test_crops_are_of_other_speakers_and_keep_their_part_of_the_text(librispeech: Path) -> None:
    crops = choose_crops(plan(librispeech, crops=6))
    assert len({crop.speaker for _, crop in crops}) == 6
    assert {crop.speaker for _, crop in crops}.isdisjoint({"237", "2300"})
    assert all(len(crop.waveform) == 16000 and 3 <= len(crop.transcript) <= 40 for _, crop in crops)
    again = choose_crops(plan(librispeech, crops=6))
    assert [name for name, _ in again] == [name for name, _ in crops]
    assert all(torch.equal(one.waveform, other.waveform) for (_, one), (_, other) in zip(crops, again, strict=True))


def test_every_method_is_run_and_a_killed_study_goes_on(librispeech: Path, tmp_path: Path) -> None:
    short = plan(librispeech, crops=1)
    stopped = run_study(short, tmp_path, 1)
    first = next(stopped)
    stopped.close()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"crop": "cut sho')
    results = list(run_study(short, tmp_path, 1))
    assert results[0] == first
    assert {result.method for result in results} == set(METHODS)
    assert len(results) == len(METHODS)
    assert results == read_results(tmp_path) == list(run_study(short, tmp_path, 1))
    assert all(result.iterations >= 1 and result.frames == 51 for result in results)
    assert study_table(results, short).row_count == len(METHODS)
    with pytest.raises(InputError, match="cpu_seconds"):
        next(run_study(replace(short, cpu_seconds=5.0), tmp_path, 1))


def test_spread_over_crops() -> None:
    one = StudyResult("a", "s", "ours", "HI", 51, 4.0, 0.5, 0.9, 0.1, 7, 2.0)
    found = summarise([one, replace(one, crop="b", snr_db=8.0), replace(one, method="other")])
    assert found["ours"]["snr_db"].mean == 6.0
    assert found["ours"]["snr_db"].deviation == pytest.approx(8**0.5)
    assert found["other"]["snr_db"].deviation == 0.0
    assert "frames" in found["ours"]


def test_what_makes_no_study_is_refused(librispeech: Path) -> None:
    with pytest.raises(InputError, match="hessian-free"):
        plan(librispeech, methods=("ours", "theirs"))
    with pytest.raises(InputError, match="crops"):
        plan(librispeech, crops=0)
    with pytest.raises(InputError, match="crops of 1 s"):
        choose_crops(plan(librispeech, crops=10_000))
