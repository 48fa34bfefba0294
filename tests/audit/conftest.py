"""A small corpus that every kind of audit can be tried on, and a grid's jobs without workers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from overheard.audit import grid_run
from overheard.audit.grid import Job
from overheard.audit.workers import Outcome, Workers, _carried_out


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """Two speakers with three utterances each, of 0.5 to 0.75 s, that the closed form recovers from small models."""
    generator = np.random.default_rng(0)
    for speaker in (11, 12):
        chapter = tmp_path / "corpus" / "part" / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for index, text in enumerate(("ONE", "TWO", "SIX")):
            samples = np.convolve(generator.standard_normal(8000 + 2000 * index), np.ones(4), "same")
            soundfile.write(chapter / f"{speaker}-1-000{index}.flac", 0.05 * samples, 16000)
            lines.append(f"{speaker}-1-000{index} {text}\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return tmp_path / "corpus"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs are done one after another in this process; the list is of those that were."""
    done: list[Job] = []

    def one_by_one(jobs: Sequence[Job], workers: Workers, out: Path) -> Iterator[Outcome]:
        for place, job in enumerate(jobs):
            done.append(job)
            yield _carried_out(place, job, workers, out, Path.cwd())[1]

    monkeypatch.setattr(grid_run, "carry_out", one_by_one)
    return done
