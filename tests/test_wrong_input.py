"""Wrong input of every kind gives one clear line and exit code 2, and leaves nothing half done."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from builders import batch_of, small_deepspeech1
from overheard.cli import main
from overheard.federation.client import ClientSettings, client_update
from overheard.recognition.weights import save_model, weights_fingerprint

TINY = '{"name": "deepspeech1", "config": {"hidden_size": 8, "context": 2}}'
NAME = "11-1-0000"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a corpus of one good utterance, an update and a model."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "corpus")
    model = small_deepspeech1(hidden_size=8)
    save_model(model, tmp_path / "model.safetensors")
    update = client_update(model, batch_of(20), ClientSettings(), "model.safetensors", weights_fingerprint(model))
    update.save(tmp_path / "update.safetensors")
    return tmp_path


def write(root: Path, text: str = "ONE TWO", seconds: float = 1.0, sample_rate: int = 16000, channels: int = 1) -> None:
    """A corpus of one utterance."""
    chapter = root / "part" / "11" / "1"
    chapter.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    samples = 0.1 * generator.standard_normal((round(seconds * sample_rate), channels))
    soundfile.write(chapter / f"{NAME}.flac", samples, sample_rate)
    (chapter / "11-1.trans.txt").write_text(f"{NAME} {text}\n")


SHARE = ["share", "--model", TINY, "--threads", "1", "--out", "o.safetensors", "--truth", "t.safetensors"]
SHARE_CORPUS = [*SHARE, "--corpus", "corpus"]
SHARE_BATCH = [*SHARE, "--batch", "batch.safetensors"]
ATTACK = ["attack", "update.safetensors", "--threads", "1", "--out", "r.safetensors"]


def write_batch(place: Path, **changes: object) -> None:
    tensors = {**batch_of(20, 15).tensors(), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, place / "batch.safetensors")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


CASES = {
    "missing folder": (lambda place: None, [*SHARE, "--corpus", "nowhere"], "nowhere: no such folder"),
    "folder without transcripts": (
        lambda place: (place / "empty").mkdir(), [*SHARE, "--corpus", "empty"], "no *.trans.txt in it"),
    "empty transcript": (lambda place: write(place / "corpus", text=""), SHARE_CORPUS, f"{NAME}: empty transcript"),
    "unknown symbol": (lambda place: write(place / "corpus", text="ONE 2"), SHARE_CORPUS, "unknown symbol '2'"),
    "8 kHz": (lambda place: write(place / "corpus", sample_rate=8000), SHARE_CORPUS, f"{NAME}: 8000 Hz audio"),
    "stereo": (lambda place: write(place / "corpus", channels=2), SHARE_CORPUS, f"{NAME}: 2 channels"),
    "corrupt audio": (
        lambda place: (place / f"corpus/part/11/1/{NAME}.flac").write_bytes(b"fLaC" + b"x" * 99),
        SHARE_CORPUS, f"{NAME}: corrupt audio"),
    "missing audio": (
        lambda place: (place / f"corpus/part/11/1/{NAME}.flac").unlink(), SHARE_CORPUS, f"{NAME}: no audio"),
    "truncated audio": (
        lambda place: truncate(place / f"corpus/part/11/1/{NAME}.flac"), SHARE_CORPUS, NAME),
    "too short for its transcript": (
        lambda place: write(place / "corpus", text="AABBCC", seconds=0.1), SHARE_CORPUS,
        f"{NAME}: too short: 6 frames give 6 output frames, its transcript needs 9 (6 labels and 3 repeats)"),
    "unknown utterance": (lambda place: None, [*SHARE_CORPUS, "--utterance", "99"], "utterance 99: not in corpus"),
    "nothing selected": (lambda place: None, [*SHARE_CORPUS, "--min-seconds", "9"], "no utterance meets it"),
    "neither corpus nor batch": (lambda place: None, SHARE, "give one of them"),
    "truth in the update's file": (
        lambda place: None, [*SHARE_CORPUS, "--truth", "o.safetensors"], "keep the truth apart"),
    "unknown model": (lambda place: None, [*SHARE_CORPUS, "--model", "deepspeech3"], "deepspeech3: no such model"),
    "delta without a rate": (lambda place: None, [*SHARE_CORPUS, "--kind", "delta"], "learning_rate: None"),
    "unknown device": (lambda place: None, [*SHARE_CORPUS, "--device", "tpu9"], "device: 'tpu9'"),
    "no threads": (lambda place: None, [*SHARE_CORPUS, "--threads", "0"], "threads: 0"),
    "1-D targets": (
        lambda place: write_batch(place, targets=torch.tensor([1, 2])), SHARE_BATCH,
        "targets are 1-D, shape (2,); CTC wants (N, L)"),
    "lengths longer than the tensor": (
        lambda place: write_batch(place, num_frames=torch.tensor([21, 15])), SHARE_BATCH,
        "num_frames has a length of 21; each must be between 0 and the 20 frames"),
    "target lengths longer than the targets": (
        lambda place: write_batch(place, target_lengths=torch.tensor([2, 3])), SHARE_BATCH,
        "target_lengths has a length of 3"),
    "a label that is no symbol": (
        lambda place: write_batch(place, targets=torch.tensor([[1, 29], [1, 2]])), SHARE_BATCH, "labels from 1 to 29"),
    "lengths as fractions": (
        lambda place: write_batch(place, num_frames=torch.tensor([1.0, 0.5])), SHARE_BATCH, "type torch.float32"),
    "other features": (
        lambda place: write_batch(place, features=torch.zeros(20, 2, 161)), SHARE_BATCH, "161 features per frame"),
    "features without a batch": (
        lambda place: write_batch(place, features=torch.zeros(20, 26)), SHARE_BATCH, "(T, N, F)"),
    "a tensor missing": (lambda place: write_batch(place, targets=None), SHARE_BATCH, "no tensor 'targets'"),
    "NaN features": (
        lambda place: write_batch(place, features=torch.full((20, 2, 26), torch.nan)), SHARE_BATCH, "NaN"),
    "missing update": (
        lambda place: (place / "update.safetensors").unlink(), ATTACK, "update.safetensors: no such file"),
    "truncated safetensors": (
        lambda place: truncate(place / "update.safetensors"), ATTACK, "not a whole safetensors file"),
    "a model file for an update": (
        lambda place: None, ["attack", "model.safetensors", "--out", "r.safetensors"], "no client update"),
    "update that does not fit the model": (
        lambda place: None, [*ATTACK, "--model", TINY.replace("8", "9")], "the model's has (9"),
    "update of other weights": (
        lambda place: None, [*ATTACK, "--model", TINY[:-1] + ', "seed": 1}'], "it was computed from other weights"),
    "unknown setting": (
        lambda place: None, [*ATTACK, "--attack", "span", "--settings", "steps=3"], "unknown setting 'steps'"),
    "setting without a value": (lambda place: None, [*ATTACK, "--settings", "steps"], "give NAME=VALUE"),
    "setting of the wrong type": (
        lambda place: None, [*ATTACK, "--attack", "matching", "--settings", "iterations=many"], "give a whole number"),
    "unknown attack": (lambda place: None, [*ATTACK, "--attack", "magic"], "choose one of auto, span"),
    "more prior knowledge than utterances": (
        lambda place: None, [*ATTACK, "--known-frames", "3", "4"], "known-frames: 2 given"),
    "nothing came back": (lambda place: None, ATTACK, "nothing came back"),
    "truth that is none": (
        lambda place: None, ["score", "update.safetensors", "model.safetensors"], "no reconstruction"),
    "report of nothing": (lambda place: None, ["report", "corpus"], "no such file"),
    "listening to nothing": (lambda place: None, ["listen", "corpus"], "no results.jsonl"),
    "voices without a corpus": (
        lambda place: None, ["listen", "corpus", "--speakers", "timbre"], "no corpus to learn voices from"),
    "audit in which nothing succeeds": (
        lambda place: write(place / "corpus", text="ONE 2"),
        ["audit", "--corpus", "corpus", "--model", TINY, "--out", "run", "--threads", "1"], "nothing succeeded"),
    "audit into another folder": (
        lambda place: None, ["audit", "--corpus", "corpus", "--model", TINY, "--out", "corpus"], "other things in it"),
    "manifest of another kind": (
        lambda place: None, ["data", "prepare", "--corpus", "corpus", "--out", "m.json"], "end in .jsonl.gz"),
    "inspecting what cannot be used": (
        lambda place: write(place / "corpus", channels=2), ["data", "inspect", "--corpus", "corpus"], "2 channels"),
    "unknown subset": (lambda place: None, ["data", "download", "test-dirty", "."], "test-dirty"),
}  # fmt: skip
"""What is wrong, the command, and what its one line must say."""


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_code_2(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spoil, arguments, message = CASES[name]
    spoil(place)
    before = {path for path in place.iterdir() if path.name.endswith("safetensors")}
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert output.err.startswith("overheard: ")
    assert output.err.count("\n") == 1, output.err
    assert message in output.err
    left = {path for path in place.iterdir() if path.name.endswith("safetensors")} - before
    assert left <= {place / "r.safetensors"}, "half done"
    assert not list(place.rglob("*.part"))


def test_the_utterance_is_named_in_the_record_of_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place / "corpus", text="ONE 2")
    with pytest.raises(SystemExit):
        main(["audit", "--corpus", "corpus", "--model", TINY, "--out", "run", "--threads", "1"])
    assert "unknown symbol '2'" in (place / "run" / "results.jsonl").read_text()
    page = (place / "run" / "report.html").read_text()
    assert "unknown symbol" in page
    assert "audio" not in [line.strip() for line in page.splitlines()]
