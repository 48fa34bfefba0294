"""Two processes learn what one does: torchrun against one process that adds up two batches for each step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tone_corpus import tiny_model

from overheard.cli import main
from overheard.errors import InputError
from overheard.recognition.models import build_model
from overheard.recognition.weights import save_model
from overheard.training.devices import Devices, launch
from overheard.training.tracking import METRICS, read_lines

FLAGS = [
    "train",
    "--recipe",
    "synthetic",
    "--epochs",
    "2",
    "--batch-seconds",
    "3",
    "--evaluate-every",
    "2",
    "--threads",
    "1",
]


def test_two_processes_have_the_loss_curve_of_one_with_the_doubled_batch(tones: Path, tmp_path: Path) -> None:
    """DeepSpeech 1: batch norm would take its statistics within each process, as it does everywhere."""
    save_model(build_model(tiny_model()), tmp_path / "tiny.safetensors")
    flags = [*FLAGS, "--corpus", str(tones), "--model", str(tmp_path / "tiny.safetensors"), "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    finished = subprocess.run(
        [*torchrun, "overheard", *flags, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.count("greedy WER") == 1, "only the first process speaks"
    main([*flags, str(tmp_path / "one"), "--accumulate", "2"])
    two, one = (read_lines(tmp_path / name / METRICS) for name in ("two", "one"))
    assert [line["kind"] for line in two] == [line["kind"] for line in one]
    assert len(one) > 3
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4, rel=1e-4)
        assert ours["utterances"] == theirs["utterances"]
    assert two[-1]["wer"] == one[-1]["wer"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (Devices(count=0), "give whole numbers from 1 up"),
        (Devices(hosts=2), "start the command with torchrun"),
        (Devices("cuda", count=64), "64 GPUs"),
    ],
)
def test_devices_that_cannot_be_had_are_refused(devices: Devices, message: str) -> None:
    with pytest.raises(InputError, match=message):
        launch(devices, "32")
