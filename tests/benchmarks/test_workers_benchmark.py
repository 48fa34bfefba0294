"""Runs of a grid are compared with the first, record by record."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tone_corpus import write_tones

from overheard.audit import grid_run
from overheard.audit.grid import Job, read_grid
from overheard.audit.workers import Outcome, Workers, _carried_out
from overheard.benchmarks.workers import compare
from overheard.commands.workers import speed_up
from overheard.errors import InputError

MODEL = '{"name": "deepspeech1", "config": {"hidden_size": 96, "context": 2}}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    corpus = write_tones(tmp_path / "corpus", speakers=1, each=2)
    path = tmp_path / "grid.toml"
    path.write_text(f"corpus = '{corpus}'\nmodels = ['{MODEL}']\nattacks = ['span']\n")
    return path


def pretend(monkeypatch: pytest.MonkeyPatch, error: float = 0.0) -> None:
    """Jobs in this process; several workers get another error."""

    def one_by_one(jobs: Sequence[Job], workers: Workers, out: Path) -> Iterator[Outcome]:
        for place, job in enumerate(jobs):
            outcome = _carried_out(place, job, workers, out, Path.cwd())[1]
            if workers.number > 1:
                changed = tuple(replace(each, feature_mae=(each.feature_mae or 0) + error) for each in outcome.records)
                outcome = replace(outcome, records=changed)
            yield outcome

    monkeypatch.setattr(grid_run, "carry_out", one_by_one)


def test_a_repetition_is_compared_with_one_worker(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    one, two = compare(read_grid(file), Workers(2))
    assert (one.workers.number, one.jobs, one.speed_up) == (1, 2, 1.0)
    assert two.speed_up == pytest.approx(one.seconds / two.seconds)
    assert two.share_of_ideal == pytest.approx(two.speed_up / 2)
    assert two.equal


def test_records_that_differ_are_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, error=1e-3)
    with pytest.raises(InputError, match="records that differ"):
        speed_up(file, Workers(2))
    assert "differ" in capsys.readouterr().out
