"""kill -9 at moments that nobody chose: the run goes on from its last checkpoint and ends with the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tone_corpus import tiny_model

from overheard.cli import main
from overheard.recognition.models import build_model
from overheard.recognition.run_folder import checkpoint_folders
from overheard.recognition.weights import resolve_model, save_model, weights_fingerprint
from overheard.training.tracking import METRICS, read_lines

PATIENCE = 120.0
"""Seconds for a process to come to its first checkpoint, on a machine that is busy."""


def test_a_killed_process_loses_at_most_the_steps_since_its_last_checkpoint(tones: Path, tmp_path: Path) -> None:
    start = tmp_path / "tiny.safetensors"
    save_model(build_model(tiny_model()), start)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(2):
        _kill_behind_next_checkpoint(_flags(tones, start, killed), killed)
    main(_flags(tones, start, killed))
    main(_flags(tones, start, whole))
    assert weights_fingerprint(resolve_model(str(killed), 0)) == weights_fingerprint(resolve_model(str(whole), 0))
    ours, theirs = (
        [(line["step"], line["loss"]) for line in read_lines(run / METRICS) if line["kind"] == "step"]
        for run in (killed, whole)
    )
    assert ours == theirs


def _kill_behind_next_checkpoint(flags: list[str], run: Path) -> None:
    before = _last_step(run)
    process = subprocess.Popen([sys.executable, "-m", "overheard", *flags], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while _last_step(run) <= before and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert _last_step(run) > before, "no step was finished"


def _last_step(run: Path) -> str:
    folders = checkpoint_folders(run)
    return folders[-1].name if folders else ""


def _flags(corpus: Path, model: Path, out: Path) -> list[str]:
    flags = [
        "train",
        "--recipe",
        "synthetic",
        "--corpus",
        corpus,
        "--model",
        model,
        "--out",
        out,
        "--checkpoint-every",
        "1",
    ]
    return [*map(str, flags), "--epochs", "15", "--batch-seconds", "4", "--evaluate-every", "15", "--threads", "1"]
