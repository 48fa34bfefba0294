"""The signals an audit kept of some utterances: features, sounds, transcripts, ready to be put in a page."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.audit.records import AuditRecord
from overheard.errors import InputError
from overheard.report.run_folder import REMEDY, read_object
from overheard.storage import read_tensors

SOUNDS = (
    ("original", "Original", "what was said"),
    ("true_features", "From the true features", "the best that any attack could give back"),
    ("recovered", "From the recovered features", "what the attack gave back"),
)
SOUND_BYTES = 360_000
"""What all sounds of one example may take before base64; longer ones are cut, and the page says where."""
DETAILS: dict[str, tuple[type, ...]] = {
    "transcript_true": (str,),
    "transcript_recovered": (str,),
    "audio_method": (str,),
    "recovered_audio_reanalysis_mae": (int, float),
    "spectrum": (list,),
}
"""Entries of example.json that a page shows; each may be absent."""
AUDIBLE = 0.1
"""Of less, s, browsers play nothing."""


@dataclass(frozen=True)
class Sound:
    """One player.

    Attributes:
        label: what is heard.
        meaning: what that stands for.
        source: FLAC as a data URI.
        seconds: how much of it is in the page, s.
        seconds_whole: how long it was, s.
    """

    label: str
    meaning: str
    source: str
    seconds: float
    seconds_whole: float


@dataclass(frozen=True)
class Example:
    """One utterance with its signals.

    Attributes:
        record: its record.
        front_end: the fields of its `FrontEndConfig`.
        true: its features.
        recovered: what came back; None where nothing did.
        spectrum: singular values of the attacked layer's update relative to the largest, where they were kept.
        details: of example.json, by the names in `DETAILS`; None where it says nothing.
        sounds: its players.
        too_short: labels of sounds that nobody could hear, such as a single frame.
    """

    record: AuditRecord
    front_end: dict[str, Any]
    true: Float[Tensor, "T F"]
    recovered: Float[Tensor, "T_r F"] | None
    spectrum: Float[Tensor, " R"] | None
    details: dict[str, Any]
    sounds: tuple[Sound, ...]
    too_short: tuple[str, ...]


def read_example(folder: Path, record: AuditRecord) -> Example | None:
    """The example of a record; None where its folder is no longer there.

    Raises:
        InputError: the folder lies outside the run, or a file in it cannot be read.
    """
    if record.example is None:
        return None
    place = (folder / record.example).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise InputError(f"example of {record.utterance}", f"{record.example} lies outside the run", REMEDY)
    if not place.is_dir():
        return None
    path = place / "features.safetensors"
    tensors, metadata = read_tensors(path, "example's features")
    details = _details(place / "example.json")
    if "true" not in tensors or any(tensor.ndim != 2 for tensor in tensors.values()):
        raise InputError(str(path), "no tensor 'true' of shape (T, F)", REMEDY)
    recovered = tensors.get("recovered")
    if recovered is not None and recovered.shape[1] != tensors["true"].shape[1]:
        raise InputError(str(path), "true and recovered features differ in F", REMEDY)
    spectrum = details["spectrum"]
    sounds, too_short = _sounds(place)
    return Example(
        record=record,
        front_end=_front_end(metadata, path),
        true=tensors["true"].float(),
        recovered=None if recovered is None or recovered.shape[0] == 0 else recovered.float(),
        spectrum=torch.tensor(spectrum, dtype=torch.float64) if spectrum else None,
        details=details,
        sounds=sounds,
        too_short=too_short,
    )


def examples_shown(records: Sequence[AuditRecord], limit: int) -> list[AuditRecord]:
    """At most `limit` records with an example, each example once, taking turns between models and defences."""
    seen: set[str] = set()
    turns: dict[tuple[str | None, str | None], int] = {}
    ranked = []
    for index, record in enumerate(records):
        if record.example is None or record.example in seen:
            continue
        seen.add(record.example)
        kind = (record.model, record.defence)
        turns[kind] = turns.get(kind, 0) + 1
        ranked.append((turns[kind], index))
    chosen = sorted(index for _, index in sorted(ranked)[:limit])
    return [records[index] for index in chosen]


def _details(path: Path) -> dict[str, Any]:
    found = read_object(path)
    details = {name: found.get(name) for name in DETAILS}
    for name, value in details.items():
        numbers = value if isinstance(value, list) else [value] if isinstance(value, float) else []
        usable = value is None or isinstance(value, DETAILS[name])
        if not usable or not all(isinstance(each, int | float) and 0 <= each < math.inf for each in numbers):
            raise InputError(str(path), f"no usable entry {name!r}", REMEDY)
    return details


def _front_end(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    front_end = metadata.get("front_end", {})
    wanted = {"kind": str, "hop": int, "sample_rate": int}
    usable = isinstance(front_end, dict) and all(
        name not in front_end or isinstance(front_end[name], kind) for name, kind in wanted.items()
    )
    if not usable or any(front_end.get(name, 1) < 1 for name in ("hop", "sample_rate")):
        raise InputError(str(path), "no usable front end", REMEDY)
    return front_end


def _sounds(place: Path) -> tuple[tuple[Sound, ...], tuple[str, ...]]:
    """What there is to hear, and the labels of what is too short for it."""
    found, too_short = [], []
    for name, label, meaning in SOUNDS:
        path = place / f"{name}.flac"
        if not path.is_file():
            continue
        try:
            samples, rate = soundfile.read(path, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise InputError(str(path), "no readable audio", REMEDY) from error
        if len(samples) < AUDIBLE * rate:
            too_short.append(label)
        else:
            found.append((label, meaning, samples, rate))
    longest = max((len(samples) / rate for *_, samples, rate in found), default=0.0)
    shown = longest
    while True:
        encoded = [_flac(samples[: round(shown * rate)], rate) for *_, samples, rate in found]
        size = sum(map(len, encoded))
        if size <= SOUND_BYTES:
            break
        shown *= 0.97 * SOUND_BYTES / size
    players = tuple(
        Sound(
            label=label,
            meaning=meaning,
            source=f"data:audio/flac;base64,{base64.b64encode(content).decode()}",
            seconds=min(shown, len(samples) / rate),
            seconds_whole=len(samples) / rate,
        )
        for (label, meaning, samples, rate), content in zip(found, encoded, strict=True)
    )
    return players, tuple(too_short)


def _flac(samples: numpy.ndarray, rate: int) -> bytes:
    # Clipped to the range of 16 bits: audio made from features may overshoot.
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1.0, 1.0), rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    return buffer.getvalue()
