"""A small part of `make fuzz`, and the inputs that a fuzzer does not come upon."""

import gzip
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from fuzz import Count, try_one
from hypothesis import given
from hypothesis import strategies as st
from readers import Reader, bomb, packed, readers, write_corpus
from safetensors.torch import save_file

from overheard.audit.records import load_records
from overheard.errors import InputError
from overheard.federation.update import load_update
from overheard.speech.audio import read_audio
from overheard.speech.corpus import load_corpus, load_utterance, prepare
from overheard.storage import METADATA_KEY

NAMES = (
    "update", "truth", "reconstruction", "matching checkpoint", "model", "batch", "records", "config", "ranks",
    "checkpoint state", "checksums", "model specification", "grid", "manifest", "transcripts", "flac", "wav",
)  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return readers(tmp_path_factory.mktemp("good"))


def test_every_reader_reads_what_is_good(table: dict[str, Reader], tmp_path: Path) -> None:
    assert set(table) == set(NAMES)
    for name, reader in table.items():
        count = Count()
        place = tmp_path / name
        if name == "transcripts":
            write_corpus(place)
        try_one(reader, place, reader.good, count)
        assert count.read == 1, name


@pytest.mark.parametrize("name", NAMES)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=4, max_size=4))
def test_spoiled_files_are_read_or_refused(
    table: dict[str, Reader], tmp_path_factory: pytest.TempPathFactory, name: str, seeds: list[int]
) -> None:
    place = tmp_path_factory.getbasetemp() / "spoiled" / name.replace(" ", "-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            try_one(table[name], place, table[name].mutate(table[name].good, random.Random(seed)), Count())


def test_hours_of_silence_are_not_read(tmp_path: Path) -> None:
    chapter = write_corpus(tmp_path / "corpus") / "part" / "11" / "1"
    silence = bomb(2 * 3600 + 1200)
    assert len(silence) < 1_000_000
    (chapter / "11-1-0001.flac").write_bytes(silence)
    corpus = load_corpus(tmp_path / "corpus")
    assert [problem.reason.split(" in ")[0] for problem in corpus.problems] == ["8400 s of audio"]
    with pytest.raises(InputError, match="134400000 samples"):
        read_audio(chapter / "11-1-0001.flac", 16000)


def test_a_manifest_may_not_lead_elsewhere(tmp_path: Path) -> None:
    own, other = write_corpus(tmp_path / "own" / "corpus"), write_corpus(tmp_path / "other")
    manifest = tmp_path / "own" / "m.jsonl.gz"
    for corpus in (own, other):
        prepare(corpus, manifest)
        assert len(load_corpus(manifest).cuts) == 2, "it is known to be of that folder"
    (tmp_path / "own" / "m.source.json").unlink()
    with pytest.raises(InputError, match="lies outside the manifest's folder"):
        load_corpus(manifest)
    prepare(own, manifest)
    (tmp_path / "own" / "m.source.json").unlink()
    cut = load_corpus(manifest).cuts[0]
    assert cut.recording is not None
    inside = Path(str(cut.recording.sources[0].source))
    inside.unlink()
    inside.symlink_to(other / "part" / "11" / "1" / inside.name)
    with pytest.raises(InputError, match="lies outside the manifest's folder"):
        load_corpus(manifest)


def test_a_source_that_is_a_command_is_not_run(tmp_path: Path) -> None:
    prepare(write_corpus(tmp_path / "corpus"), tmp_path / "m.jsonl.gz")
    (tmp_path / "m.source.json").unlink()
    line = json.loads(gzip.decompress((tmp_path / "m.jsonl.gz").read_bytes()).splitlines()[0])
    line["recording"]["sources"][0] |= {"type": "command", "source": f"touch {tmp_path}/sprung"}
    (tmp_path / "m.jsonl.gz").write_bytes(packed(json.dumps(line)))
    with pytest.raises(InputError, match="without a recording in a file"):
        load_utterance(load_corpus(tmp_path / "m.jsonl.gz").cuts[0])
    assert not (tmp_path / "sprung").exists()


def test_a_manifest_that_unpacks_without_end_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl.gz").write_bytes(packed("[" + " " * (1 << 23)))
    with pytest.raises(InputError, match="larger than a manifest can be"):
        load_corpus(tmp_path / "m.jsonl.gz")


def test_huge_headers_and_strange_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "update.safetensors"
    path.write_bytes((1 << 25).to_bytes(8, "little") + b" " * (1 << 25))
    with pytest.raises(InputError, match="a header of 33554432 bytes"):
        load_update(path)
    metadata = {METADATA_KEY: json.dumps({"client_update": {}})}
    for kind in (torch.float8_e4m3fn, torch.complex64):
        save_file({"a": torch.zeros(2, dtype=kind)}, path, metadata=metadata)
        with pytest.raises(InputError, match="has type torch"):
            load_update(path)


def test_numbers_that_python_does_not_hold_are_refused(tmp_path: Path) -> None:
    for number in ("1e999", "NaN", "1" * 5000):
        (tmp_path / "results.jsonl").write_text(f'{{"utterance": "a", "feature_mae": {number}}}\n')
        with pytest.raises(InputError, match=r"results\.jsonl:1"):
            load_records(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"utterance": 3}\n')
    with pytest.raises(InputError, match="utterance: 3"):
        load_records(tmp_path)
