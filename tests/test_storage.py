"""Files are written whole or not at all, and refused with one line when they are not what they should be."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from overheard.attacks.observation import Reconstruction, load_reconstruction
from overheard.errors import InputError
from overheard.federation.update import load_update
from overheard.metrics.truth import TrueUtterance, Truth, load_truth
from overheard.speech.features import MFCC_26
from overheard.storage import METADATA_KEY, parse_json, read_tensors, write_tensors, written_whole


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("old")

    def fail(path: Path) -> None:
        with written_whole(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail(kept)
    assert kept.read_text() == "old"
    assert list(tmp_path.iterdir()) == [kept]


def test_tensors_and_metadata_survive(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2])}
    write_tensors(tmp_path / "x.safetensors", tensors, {"name": "é"})
    loaded, metadata = read_tensors(tmp_path / "x.safetensors", "test")
    assert metadata == {"name": "é"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_reconstruction_and_a_truth_survive(tmp_path: Path) -> None:
    features = torch.randn(4, 26, dtype=torch.float64)
    found = Reconstruction("span", (features,), ("A",), unique=True, diagnostics={"rank": 4}, seconds=1.5)
    found.save(tmp_path / "r.safetensors")
    loaded = load_reconstruction(tmp_path / "r.safetensors")
    assert torch.equal(loaded.features[0], features)
    assert (loaded.transcripts, loaded.unique, loaded.diagnostics) == (("A",), True, {"rank": 4})
    said = Truth((TrueUtterance("u", "s", "A", features.float(), torch.zeros(7)),), MFCC_26)
    said.save(tmp_path / "t.safetensors")
    again = load_truth(tmp_path / "t.safetensors")
    assert again.front_end == MFCC_26
    assert (again.utterances[0].id, again.utterances[0].transcript) == ("u", "A")


READERS = (load_update, load_reconstruction, load_truth)


def metadata(**entries: object) -> dict[str, str]:
    return {METADATA_KEY: json.dumps(entries)}


BROKEN = {
    "empty": b"",
    "no header": b"\x00" * 5,
    "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "header that is no JSON": struct.pack("<Q", 4) + b"nope",
    "pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
    "truncated": save({"a": torch.zeros(100)}, metadata=metadata(client_update={}))[:-50],
    "foreign": save({"a": torch.zeros(2)}),
    "metadata that is no JSON": save({"a": torch.zeros(2)}, metadata={METADATA_KEY: "{"}),
    "metadata that is a list": save({"a": torch.zeros(2)}, metadata={METADATA_KEY: "[]"}),
    "nested without end": save({"a": torch.zeros(2)}, metadata={METADATA_KEY: "[" * 100_000}),
    "another kind": save({"a": torch.zeros(2)}, metadata=metadata(something={})),
    "fields of another type": save(
        {"a": torch.zeros(2)}, metadata=metadata(client_update=[], truth=3, reconstruction=1)
    ),
    "unknown fields": save(
        {"a": torch.zeros(2)},
        metadata=metadata(client_update={"x": 1}, truth=[{"x": 1}], reconstruction={"x": 1}, front_end={}),
    ),
    "wrong values": save(
        {"a": torch.zeros(2)},
        metadata=metadata(client_update={"kind": "weights"}, truth=[{}], reconstruction={}, front_end={"hop": -1}),
    ),
    "NaN": save({"a": torch.tensor([float("nan")])}, metadata=metadata(client_update={})),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, reader, name: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(BROKEN[name])
    with pytest.raises(InputError, match=r"file\.safetensors") as error:
        reader(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_missing_file_is_refused(tmp_path: Path, reader) -> None:
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "nothing")


@given(data=st.data())
def test_no_flipped_byte_gets_past_a_reader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A damaged update is read as it stands or refused; nothing else happens."""
    path = tmp_path_factory.mktemp("fuzz") / "update.safetensors"
    save_file({"a": torch.ones(3, 2)}, path, metadata=metadata(client_update={"kind": "gradient"}))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with contextlib.suppress(InputError):
        load_update(path)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDFFF": 1}', '[["a\\ud83d"]]', "NaN", "[1e999, Infinity]"])
def test_json_that_cannot_be_written_again_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no JSON"):
        parse_json(text, "somewhere", "leave it out")


def test_characters_may_be_escaped() -> None:
    assert parse_json('"\\u00e9\\ud83d\\ude00"', "somewhere", "leave it out") == "é😀"
