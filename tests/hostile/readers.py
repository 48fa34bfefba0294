"""Every reader of files from outside, a good file for it, and how that file is spoiled."""

import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutation
import numpy as np
import soundfile
import torch
from torch import Tensor

from builders import batch_of, small_deepspeech1
from overheard.attacks.gradient_matching.optimiser import build_optimiser, state_of
from overheard.attacks.gradient_matching.schedules import Visit
from overheard.attacks.gradient_matching.state import ExpectedRun, MatchingState, Outcome, load_state
from overheard.attacks.observation import Reconstruction, load_reconstruction
from overheard.audit.grid import read_grid
from overheard.audit.records import AuditRecord, Hearing, load_records, to_line
from overheard.audit.steps import read_batch
from overheard.federation.client import ClientSettings, client_update
from overheard.federation.update import load_update
from overheard.metrics.truth import TrueUtterance, Truth, load_truth
from overheard.recognition.models import ModelSpec
from overheard.recognition.run_folder import CHECKSUMS, MODEL, STATE, TENSORS, damage, read_state
from overheard.recognition.weights import load_model, save_model
from overheard.report.run_folder import read_config, read_ranks
from overheard.speech.audio import read_audio
from overheard.speech.corpus import load_corpus, load_utterance, prepare
from overheard.speech.features import MFCC_26
from overheard.storage import write_tensors

RATE = 16000


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the file that it reads, in a folder of its own.
        good: what a good one holds.
        mutate: how it is spoiled.
        read: reads it, given the folder.
    """

    name: str
    good: bytes
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], Any]


def readers(folder: Path) -> dict[str, Reader]:
    """The table; good files are made in a folder, which the corpus among them goes on using."""
    folder.mkdir(parents=True, exist_ok=True)
    model = small_deepspeech1(hidden_size=4, context=1)
    batch = batch_of(9)
    client_update(model, batch, ClientSettings(), "model", "weights").save(folder / "update")
    features = batch.features[:, 0]
    Truth((TrueUtterance("a", "b", "C", features, torch.zeros(9)),), MFCC_26).save(folder / "truth")
    found = Reconstruction("span", (features.double(),), ("C",), diagnostics={"spectrum": [1.0]}, seconds=1.0)
    found.save(folder / "reconstruction")
    save_model(model, folder / "model")
    write_tensors(folder / "batch", batch.tensors(), {})
    config = {
        "command": "overheard audit", "created": "2026-01-01", "versions": {"overheard": "0"}, "settings": {"seed": 0},
        "threat_model": {"given": ["x"], "not_given": ["y"]}, "corpus": {"path": "c"}, "threads": 1, "device": "cpu",
    }  # fmt: skip
    layer = {"layer": "a", "kind": "Linear", "rows": 3, "columns": 2, "rank": 1, "margin": 9.0, "verdict": "saturated"}
    ranks = [{"model": "m", "attacked": True, "note": None, "layers": [layer], "frames": 3, "seconds": 1.0}]
    record = AuditRecord("a", "b", 1.0, status="ok", feature_mae=0.1, transcript_true="X", certified=True, seed=0)
    heard = AuditRecord("c", hearings=(Hearing("original", stoi=0.5, other_scores=(0.1,), reasons={"pesq": "short"}),))
    grid = (
        b"corpus = 'c'\nmodels = [ 'm' ]\nseeds = [ 0 , 1 ]\ndurations = [ [ 0 , 2 ] ]\n[[clients]]\nkind = 'delta'\n"
    )
    grid += b"learning_rate = 0.1\n[[attacks]]\nname = 'span'\noptions = { tolerance = 1e-3 }\n"
    corpus = write_corpus(folder / "corpus")
    prepare(corpus, folder / "manifest.jsonl.gz")
    (folder / "manifest.source.json").unlink()
    transcripts = "part/11/1/11-1.trans.txt"
    matching = half_done(batch.features, folder / "matching")
    spec = ModelSpec("deepspeech1").to_json().encode()
    safetensors = mutation.mutate_safetensors
    return {
        "update": Reader("f", (folder / "update").read_bytes(), safetensors, lambda at: load_update(at / "f")),
        "truth": Reader("f", (folder / "truth").read_bytes(), safetensors, lambda at: load_truth(at / "f")),
        "reconstruction": Reader(
            "f", (folder / "reconstruction").read_bytes(), safetensors, lambda at: load_reconstruction(at / "f")
        ),
        "matching checkpoint": Reader(
            "f",
            (folder / "matching").read_bytes(),
            safetensors,
            lambda at: load_state(at / "f", torch.Generator(), matching),
        ),
        "model": Reader("f", (folder / "model").read_bytes(), safetensors, lambda at: load_model(at / "f")),
        "batch": Reader("f", (folder / "batch").read_bytes(), safetensors, lambda at: read_batch(model, at / "f")),
        "records": Reader(
            "results.jsonl", (to_line(record) + to_line(heard)).encode(), mutation.mutate_lines, load_records
        ),
        "config": Reader("config.json", json.dumps(config).encode(), mutation.mutate_json, read_config),
        "ranks": Reader("ranks.json", json.dumps(ranks).encode(), mutation.mutate_json, read_ranks),
        "checkpoint state": Reader(STATE, b'{"wer": 0.5, "progress": {"step": 3}}', mutation.mutate_json, read_state),
        "checksums": Reader(
            CHECKSUMS, json.dumps(dict.fromkeys((MODEL, TENSORS, STATE), "0")).encode(), mutation.mutate_json, damage
        ),
        "model specification": Reader(
            "f", spec, mutation.mutate_json, lambda at: ModelSpec.from_json((at / "f").read_text("utf-8", "replace"))
        ),
        "grid": Reader("f", grid, mutation.mutate_text, lambda at: read_grid(at / "f")),
        "manifest": Reader(
            "m.jsonl.gz", (folder / "manifest.jsonl.gz").read_bytes(), mutation.mutate_packed_lines, read_manifest
        ),
        "transcripts": Reader(
            transcripts, (corpus / transcripts).read_bytes(), mutation.mutate_text, lambda at: load_corpus(at)
        ),
        "flac": Reader("f.flac", sound("FLAC"), mutation.mutate_bytes, lambda at: read_audio(at / "f.flac", RATE)),
        "wav": Reader("f.wav", sound("WAV"), mutation.mutate_bytes, lambda at: read_audio(at / "f.wav", RATE)),
    }


def half_done(features: Tensor, path: Path, optimiser: str = "signed-adam") -> ExpectedRun:
    """The checkpoint of a matching run in its second restart, at its second grid of two."""
    frames = len(features)
    grids, visit = [(0, 5), (5, frames)], Visit(1, 1, 5, frames, 3)
    block = features[visit.start :].clone().requires_grad_()
    moved = build_optimiser(optimiser, block, 0.1)

    def closure() -> float:
        block.grad = 2 * block.detach()
        return float(block.detach().square().sum())

    for _ in range(3):
        moved.step(closure)
    former = Outcome(((3, 1),), 0.5, 7, 2.0, features)
    state = MatchingState(
        features, [[3, 2]], 1, 6, 1.5, features, [[3, 2]], 0.25, visit, state_of(optimiser, moved), features, [former],
        [{"restart": 0, "loss": 1.0}],
    )  # fmt: skip
    signature = {"model": "a", "settings": {"seed": 0}}
    state.save(path, torch.Generator(), signature)
    return ExpectedRun(signature, torch.zeros_like(features), 29, grids, optimiser)


def read_manifest(folder: Path) -> None:
    """A manifest, and every utterance that it names."""
    for cut in load_corpus(folder / "m.jsonl.gz", anywhere=True).cuts:
        load_utterance(cut)


def write_corpus(folder: Path) -> Path:
    """Two utterances of a tenth of a second."""
    chapter = folder / "part" / "11" / "1"
    chapter.mkdir(parents=True, exist_ok=True)
    for index in range(2):
        (chapter / f"11-1-000{index}.flac").write_bytes(sound("FLAC"))
    (chapter / "11-1.trans.txt").write_text("11-1-0000 ONE\n11-1-0001 TWO\n")
    return folder


def sound(kind: str) -> bytes:
    """A tenth of a second of noise."""
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.random.default_rng(0).standard_normal(1600), RATE, format=kind)
    return buffer.getvalue()


def bomb(seconds: int) -> bytes:
    """Silence that is short as a file."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, format="FLAC") as file:
        for _ in range(seconds // 60):
            file.write(np.zeros(60 * RATE, dtype=np.int16))
    return buffer.getvalue()


def packed(text: str) -> bytes:
    """Gzip of a text."""
    return gzip.compress(text.encode(), 9)
