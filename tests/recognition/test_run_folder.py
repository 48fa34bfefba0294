"""Checkpoints appear whole or not at all; damage of any kind is seen; the best is found."""

import json
from pathlib import Path

import pytest
import torch

from overheard.errors import InputError
from overheard.recognition.checkpoint import last_checkpoint, write_checkpoint
from overheard.recognition.models import build_model, model_spec
from overheard.recognition.run_folder import (
    CHECKSUMS,
    MODEL,
    STATE,
    TENSORS,
    best_of,
    checkpoint_folders,
    damage,
    model_file,
    new_checkpoint,
)
from overheard.recognition.weights import resolve_model, weights_fingerprint

MODEL_SPEC = model_spec("deepspeech1", hidden_size=4, context=0)


def write(run: Path, step: int, wer: float | None = None, keep: int = 9) -> None:
    tensors = {"optimiser.0.exp_avg": torch.full((3,), float(step))}
    write_checkpoint(run, step, build_model(MODEL_SPEC), tensors, {"wer": wer, "step": step}, keep)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 7)
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.state == {"wer": None, "step": 7}
    assert torch.equal(found.tensors["optimiser.0.exp_avg"], torch.full((3,), 7.0))
    assert weights_fingerprint(found.model) == weights_fingerprint(build_model(MODEL_SPEC))
    assert last_checkpoint(tmp_path / "elsewhere") is None


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """What a kill leaves is a hidden folder without a name of a checkpoint; the next write removes it."""
    write(tmp_path, 1)
    leftover = tmp_path / "checkpoints" / ".step-000000002.part"
    leftover.mkdir()
    (leftover / MODEL).write_bytes(b"half of a model")
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-000000001"]
    with pytest.raises(FileNotFoundError), new_checkpoint(tmp_path, 3) as folder:
        (folder / MODEL).write_bytes(b"and neither of the others")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


@pytest.mark.parametrize("name", [MODEL, TENSORS, STATE, CHECKSUMS])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damage_is_seen_and_the_one_before_is_used(tmp_path: Path, name: str, how: str) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    last = checkpoint_folders(tmp_path)[-1]
    content = bytearray((last / name).read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 4
    (last / name).write_bytes(content[:-1] if how == "cut" else content)
    if how == "gone":
        (last / name).unlink()
    assert damage(last) is not None
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 1
    assert len(found.damaged) == 1


def test_the_best_is_kept_and_found(tmp_path: Path) -> None:
    for step, wer in enumerate([0.5, 0.2, None, 0.2, 0.4, None], start=1):
        write(tmp_path, step, wer, keep=1)
    assert [int(folder.name[-9:]) for folder in checkpoint_folders(tmp_path)] == [4, 6]
    assert model_file(tmp_path).parent.name == "step-000000004"
    best = best_of(checkpoint_folders(tmp_path))
    assert best is not None
    (best / MODEL).write_bytes(b"")
    assert model_file(tmp_path).parent.name == "step-000000006"


def test_a_folder_is_named_as_a_model(tmp_path: Path) -> None:
    write(tmp_path, 1, 0.1)
    assert weights_fingerprint(resolve_model(str(tmp_path), 5)) == weights_fingerprint(build_model(MODEL_SPEC))
    one = checkpoint_folders(tmp_path)[0]
    assert weights_fingerprint(resolve_model(str(one), 5)) == weights_fingerprint(build_model(MODEL_SPEC))
    (one / STATE).write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"no whole checkpoint \(.*state\.json is not as it was written\)"):
        resolve_model(str(tmp_path), 0)
