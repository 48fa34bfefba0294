"""Signals of an utterance that a report shows and plays: features, audio, spectrum of the attacked layer."""

import json
from dataclasses import asdict
from pathlib import Path

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.observation import Reconstruction
from overheard.metrics.features import match_utterances
from overheard.metrics.truth import Truth
from overheard.metrics.waveform import waveform_from_features
from overheard.storage import write_tensors, write_text, written_whole


def keep_example(folder: Path, reconstruction: Reconstruction, truth: Truth) -> None:
    """Write the first utterance of an update: what was said, and what came back, as features and as audio."""
    said = truth.utterances[0]
    index = match_utterances(reconstruction.features, (said.features,)).get(0)
    recovered = None if index is None else reconstruction.features[index].float()
    tensors = {"true": said.features} | ({} if recovered is None else {"recovered": recovered})
    write_tensors(folder / "features.safetensors", tensors, {"front_end": asdict(truth.front_end)})
    if said.waveform is not None:
        _write_audio(folder / "original.flac", said.waveform, truth.front_end.sample_rate)
    made = waveform_from_features(said.features, truth.front_end)
    _write_audio(folder / "true_features.flac", made.samples, made.sample_rate)
    reanalysis = None
    if recovered is not None:
        remade = waveform_from_features(recovered, truth.front_end)
        _write_audio(folder / "recovered.flac", remade.samples, remade.sample_rate)
        reanalysis = remade.reanalysis_mae
    described = {
        "transcript_true": said.transcript,
        "transcript_recovered": None if index is None else reconstruction.transcripts[index],
        "spectrum": reconstruction.diagnostics.get("spectrum"),
        "audio_method": made.method,
        "recovered_audio_reanalysis_mae": reanalysis,
    }
    write_text(folder / "example.json", json.dumps(described, indent=1))


def _write_audio(path: Path, samples: Float[Tensor, " S"], sample_rate: int) -> None:
    with written_whole(path) as temporary:
        clipped = torch.clamp(samples.detach().float(), -1.0, 1.0)
        soundfile.write(temporary, clipped.numpy(), sample_rate, format="FLAC", subtype="PCM_16")
