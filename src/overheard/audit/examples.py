"""Signals of an utterance that a report shows and plays: features, audio, spectrum of the attacked layer."""

import json
from dataclasses import asdict
from pathlib import Path

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.observation import Reconstruction
from overheard.errors import InputError
from overheard.metrics.features import match_utterances
from overheard.metrics.truth import Truth
from overheard.metrics.vocoders import Vocoder
from overheard.metrics.waveform import waveform_from_features
from overheard.recognition.configuration import config_from_file
from overheard.speech.features import FrontEndConfig
from overheard.storage import parse_json, read_tensors, read_text, write_tensors, write_text, written_whole

FEATURES = "features.safetensors"
DETAILS = "example.json"
MADE = {"true": "true_features", "recovered": "recovered"}
"""Features that an example keeps, and where the audio made of them is."""


def keep_example(folder: Path, reconstruction: Reconstruction, truth: Truth) -> None:
    """Write the first utterance of an update: what was said, and what came back, as features and as audio."""
    said = truth.utterances[0]
    index = match_utterances(reconstruction.features, (said.features,)).get(0)
    tensors = {"true": said.features}
    if index is not None:
        tensors["recovered"] = reconstruction.features[index].float()
    write_tensors(folder / FEATURES, tensors, {"front_end": asdict(truth.front_end)})
    if said.waveform is not None:
        _write_audio(folder / "original.flac", said.waveform, truth.front_end.sample_rate)
    described = {
        "transcript_true": said.transcript,
        "transcript_recovered": None if index is None else reconstruction.transcripts[index],
        "spectrum": reconstruction.diagnostics.get("spectrum"),
        **_write_made(folder, tensors, truth.front_end, Vocoder()),
    }
    write_text(folder / DETAILS, json.dumps(described, indent=1))


def remake_audio(folder: Path, vocoder: Vocoder) -> None:
    """Make the audio of an example's features anew, with another vocoder.

    Raises:
        InputError: no example there, or one that cannot be read.
    """
    path = folder / FEATURES
    tensors, metadata = read_tensors(path, "example's features")
    front_end = config_from_file(FrontEndConfig, metadata.get("front_end"), path, "front end")
    remedy = "audit again"
    described = parse_json(read_text(folder / DETAILS, remedy), str(folder / DETAILS), remedy)
    if not isinstance(described, dict) or "true" not in tensors:
        raise InputError(str(folder), "no example", remedy)
    made = _write_made(folder, {name: tensor.float() for name, tensor in tensors.items()}, front_end, vocoder)
    write_text(folder / DETAILS, json.dumps(described | made, indent=1))


def _write_made(
    folder: Path, tensors: dict[str, Tensor], front_end: FrontEndConfig, vocoder: Vocoder
) -> dict[str, str | float | None]:
    """Write audio made from features, true and recovered; returns what there is to say of it."""
    said: dict[str, str | float | None] = {}
    for name, stem in MADE.items():
        said[f"{name}_audio_reanalysis_mae"] = None
        if name in tensors and len(tensors[name]):
            made = waveform_from_features(tensors[name], front_end, vocoder=vocoder)
            _write_audio(folder / f"{stem}.flac", made.samples, made.sample_rate)
            said |= {"audio_method": made.method, "vocoder": made.vocoder}
            said[f"{name}_audio_reanalysis_mae"] = made.reanalysis_mae
    return said


def _write_audio(path: Path, samples: Float[Tensor, " S"], sample_rate: int) -> None:
    with written_whole(path) as temporary:
        clipped = torch.clamp(samples.detach().float(), -1.0, 1.0)
        soundfile.write(temporary, clipped.numpy(), sample_rate, format="FLAC", subtype="PCM_16")
