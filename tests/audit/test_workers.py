"""Workers that die, hang or eat memory lose nobody's work but their own; so does a run that is killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_grid import run, write

from overheard.audit.grid import Job, read_grid
from overheard.audit.grid_run import finish, opened
from overheard.audit.limits import Limits
from overheard.audit.records import load_records, timeless
from overheard.audit.workers import LOST, Workers
from overheard.errors import InputError

PATIENCE = 400.0
"""Seconds for workers to start and do a job, on a machine that is busy."""

TROUBLE = """
import os, time
import torch
from torch import nn
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import MFCC_26

class Trouble(nn.Module):
    front_end, alphabet = MFCC_26, Alphabet()

    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(26, 200, 5, padding=2)
        self.out = nn.Linear(200, 29)

    def output_lengths(self, num_frames):
        return num_frames

    def forward(self, features, num_frames):
        self.trouble(len(features))
        hidden = self.front(features.permute(1, 2, 0)).relu()
        return self.out(hidden.permute(2, 0, 1)), num_frames

    def trouble(self, frames):
        pass

class Faulty(Trouble):
    def trouble(self, frames):
        if frames < 30:
            os.kill(os.getpid(), 9)
        elif frames < 35:
            torch.ones(10**10)
        else:
            time.sleep(600)

class Slow(Trouble):
    def trouble(self, frames):
        time.sleep(0.2)
"""


@pytest.fixture
def place(noises: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a corpus, models of one's own, and a grid of six jobs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "troubles.py").write_text(TROUBLE)
    attack = {"attacks": ["span"], "examples": 0}
    write(tmp_path / "slow.toml", corpus="corpus", models=["troubles:Slow"], **attack)
    write(tmp_path / "faulty.toml", corpus="corpus", models=["troubles:Trouble", "troubles:Faulty"], **attack)
    return tmp_path


def test_jobs_that_kill_hang_or_eat_memory_are_records(place: Path) -> None:
    """One fails in each way and with each reason; all that ran beside them is there."""
    workers = Workers(2, limits=Limits(seconds=12.0, memory_mb=2000))
    grid = replace(read_grid(place / "faulty.toml"), speakers=("11",))
    with opened(grid, place / "out", workers) as folder:
        list(finish(folder, workers))
    records = load_records(place / "out")
    assert len(records) == 6
    assert all(each.recovered for each in records if each.model == "troubles:Trouble")
    reasons = {each.utterance: each.reason for each in records if each.model == "troubles:Faulty"}
    assert reasons == {
        "11-1-0000": LOST,
        "11-1-0001": "out of memory: more than 2000 MB beyond the model",
        "11-1-0002": "over time: more than 12 s",
    }


def test_a_run_that_is_killed_or_interrupted_goes_on(place: Path, here: list[Job]) -> None:
    """What is left is done in this process: who does it makes no difference to a record."""
    out = place / "out"
    for wanted, ending in ((1, signal.SIGKILL), (2, signal.SIGINT)):
        _stop_behind(place, out, wanted, ending)
    kept = load_records(out)
    assert 2 <= len(kept) < 6
    grid = read_grid(place / "slow.toml")
    records = run(grid, out)
    assert records[: len(kept)] == kept, "a finished record was lost or done again"
    assert len(records) == 6
    assert timeless(records) == timeless(run(grid, place / "undisturbed"))


def test_a_model_that_cannot_be_had_is_no_record(place: Path) -> None:
    grid = replace(read_grid(place / "slow.toml"), models=("troubles:Nobody",))
    with pytest.raises(InputError, match="has no function 'Nobody'"):
        run(grid, place / "out")
    assert not (place / "out" / "results.jsonl").exists()


def _workers_of(group: int) -> list[Path]:
    """Processes of a group that loky started, below /proc."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(each.name)) == group and b"popen_loky" in (each / "cmdline").read_bytes():
                found.append(each)
    assert len(found) >= 2
    return found


def _blocks_interrupts(process: Path) -> bool:
    blocked = re.search(r"^SigBlk:\s*(\w+)", (process / "status").read_text(), re.MULTILINE)
    return blocked is not None and bool(int(blocked[1], 16) >> (signal.SIGINT - 1) & 1)


def _stop_behind(place: Path, out: Path, wanted: int, ending: signal.Signals) -> None:
    """Start the command and stop it when it has kept so many records, in a group of its own as a terminal does."""
    command = [sys.executable, "-m", "overheard", "grid", "slow.toml", "--out", str(out), "--workers", "2"]
    # Not a pipe: workers hold it open for a while when their caller has been killed.
    errors = place / "errors.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            # Tests that run in the background ignore Ctrl-C, and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    results = out / "results.jsonl"
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if results.exists() and results.read_text().count("\n") >= wanted:
            break
        time.sleep(0.02)
    if sys.platform == "linux":
        assert all(_blocks_interrupts(worker) for worker in _workers_of(process.pid))
    os.kill(process.pid, ending) if ending == signal.SIGKILL else os.killpg(process.pid, ending)
    process.wait(timeout=PATIENCE)
    said = errors.read_text()
    assert results.read_text().count("\n") >= wanted
    if ending == signal.SIGINT:
        assert process.returncode == 130, said
        assert "what was done is kept" in said
        assert "Traceback" not in said
    else:
        assert process.returncode == -ending
