"""A small run folder as an audit would leave it, made by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import soundfile
import torch

from overheard.audit.records import AuditRecord
from overheard.storage import write_tensors

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror=alert(1)> & \"'"
RATE = 16000
HOP = 320

BuildRun = Callable[..., Path]


def record(index: int, **changes: object) -> AuditRecord:
    """A recovered utterance, but for the changes."""
    seconds = 1.0 + 0.37 * index
    frames = 1 + int(seconds * RATE / HOP)
    recovered = AuditRecord(
        utterance=f"84-121123-{index:04d}",
        speaker=str(84 + index % 3),
        seconds_audio=seconds,
        model="deepspeech1",
        weights="random",
        kind="gradient",
        mode="eval",
        batch=1,
        local_steps=1,
        defence="none",
        attack="span",
        status="ok",
        frames_true=frames,
        frames_recovered=frames,
        feature_mae=2e-6 * (1 + index),
        feature_snr_db=118.0 - index,
        transcript_true="go do you hear",
        unique=True,
        seconds=0.15 + 0.02 * index,
        peak_mb=212.5,
        seed=0,
        version="0.1.0",
    )
    return replace(recovered, **changes)


def failed(index: int, reason: str) -> AuditRecord:
    """An utterance of which nothing came back."""
    nothing = {"status": "failed", "frames_recovered": None, "feature_mae": None, "feature_snr_db": None}
    return record(index, **nothing, unique=None, reason=reason)


def mixed_records() -> list[AuditRecord]:
    """Nine recovered, one in part, two failed."""
    records = [record(index) for index in range(9)]
    records.append(record(9, feature_mae=0.31, feature_snr_db=4.2, frames_recovered=190, reason="digital silence"))
    records.append(failed(10, "longer than the capacity: 620 frames, 312 at most"))
    records.append(failed(11, HOSTILE))
    return records


def tone(seconds: float, hertz: float) -> numpy.ndarray:
    """A quiet tone with noise beneath it."""
    time = numpy.arange(round(seconds * RATE)) / RATE
    noise = numpy.random.default_rng(0).normal(0.0, 0.01, len(time))
    return 0.2 * numpy.sin(2 * numpy.pi * hertz * time) + noise


def add_example(folder: Path, of: AuditRecord, read: str | None) -> None:
    """Signals of a record that names an example."""
    assert of.example is not None
    assert of.frames_true is not None
    place = folder / of.example
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(of.frames_true)
    true = torch.randn(of.frames_true, 26, generator=generator)
    tensors = {"true": true}
    names = ["original", "true_features"]
    if of.frames_recovered:
        noise = torch.randn(of.frames_recovered, 26, generator=generator)
        tensors["recovered"] = true[: of.frames_recovered] + 3e-6 * noise
        names.append("recovered")
    front_end = {"kind": "mfcc", "sample_rate": RATE, "hop": HOP, "num_mfcc": 26}
    write_tensors(place / "features.safetensors", tensors, {"front_end": front_end})
    for index, name in enumerate(names):
        soundfile.write(place / f"{name}.flac", tone(of.seconds_audio or 1.0, 300.0 + 50 * index), RATE)
    falling = [1.0 * 0.97**index for index in range(of.frames_true)] + [3e-8] * 40
    details = {
        "transcript_true": of.transcript_true,
        "transcript_recovered": read,
        "spectrum": falling,
        "audio_method": "fast Griffin-Lim, 60 iterations",
        "recovered_audio_reanalysis_mae": 0.21 if of.frames_recovered else None,
    }
    (place / "example.json").write_text(json.dumps(details), encoding="utf-8")


def rank_scans() -> list[dict[str, object]]:
    """DeepSpeech 1 attacked, DeepSpeech 2 only scanned."""

    def layer(name: str, kind: str, rows: int, columns: int, rank: int, margin: float, verdict: str) -> dict:
        given = locals()
        return {"layer": given.pop("name"), **given}

    first = [
        layer("hidden.0", "Linear", 2048, 495, 51, 5120.4, "span exposed"),
        layer("recurrence", "LSTM", 16384, 2048, 51, 900.0, "span exposed"),
        layer("output", "Linear", 29, 2049, 28, 1.0, "saturated"),
    ]
    second = [
        layer("convolution.0", "Conv2d", 32, 452, 32, 1.0, "saturated"),
        layer("recurrences.0", "GRU", 4800, 1440, 44, 6.5, "no clear rank"),
    ]
    return [
        {"model": "deepspeech1", "attacked": True, "note": None, "layers": first, "frames": 51, "seconds": 0.42},
        {
            "model": "deepspeech2",
            "attacked": False,
            "note": "Its first layer is a convolution, whose update is saturated.",
            "layers": second,
            "frames": 98,
            "seconds": 1.9,
        },
    ]


def write_run(folder: Path, records: Sequence[AuditRecord] | None = None, examples: Sequence[int] = (0, 9, 10)) -> Path:
    """A run folder: of the mixed records with three examples, unless told otherwise."""
    folder.mkdir()
    records = mixed_records() if records is None else records
    lines = []
    for index, each in enumerate(records):
        if index in examples:
            each = replace(each, example=f"examples/{each.utterance}")
            add_example(folder, each, {0: "go do hear " + HOSTILE}.get(index))
        lines.append(json.dumps(asdict(each)) + "\n")
    (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    config = {
        "command": f"overheard audit --corpus speech --note '{HOSTILE}' --out run",
        "created": "2025-05-17T12:00:00+00:00",
        "versions": {"overheard": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
        "models": ["deepspeech1", "deepspeech2"],
        "threat_model": {
            "given": ["the model and its weights", "the gradient of one utterance"],
            "not_given": ["audio, features or their length", f"the transcript {HOSTILE}"],
        },
        "settings": {"seed": 0, "limit": 12, "comment": HOSTILE},
        "corpus": {"path": "speech/LibriSpeech", "utterances": 12, "speakers": 3},
        "threads": 2,
        "device": "cpu",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "ranks.json").write_text(json.dumps(rank_scans()), encoding="utf-8")
    return folder
