"""Whose voice it is: other utterances of all speakers are enrolled, and the recovered audio's embedding is ranked.

A back end turns a waveform into an embedding. It is only as good as it is on the original audio, which is why every
measure here is to be read beside the same measure of the original.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.metrics.identification import Trial
from overheard.speech.features import FrontEnd, FrontEndConfig

SAMPLE_RATE = 16000
"""Hz, of all that is embedded."""

Encoder = Callable[[Float[Tensor, " S"]], Float[Tensor, " D"]]
"""A waveform at `SAMPLE_RATE` to an embedding of norm 1."""


@dataclass(frozen=True)
class Enrolment:
    """The voices that a listener knows.

    Attributes:
        speakers: ids, each once.
        centres: (K, D), each speaker's mean embedding, of norm 1.
    """

    speakers: tuple[str, ...]
    centres: Float[Tensor, "K D"]


def enrol(encode: Encoder, utterances: Iterable[tuple[str, Float[Tensor, " _"]]]) -> Enrolment:
    """Learn voices from pairs of speaker and waveform.

    Raises:
        InputError: no utterance.
    """
    embeddings: dict[str, list[Tensor]] = {}
    for speaker, waveform in utterances:
        embeddings.setdefault(speaker, []).append(encode(waveform))
    if not embeddings:
        raise InputError("enrolment", "no utterance", "give a corpus with utterances besides those that were attacked")
    centres = torch.stack([torch.stack(own).mean(dim=0) for own in embeddings.values()])
    return Enrolment(tuple(embeddings), torch.nn.functional.normalize(centres, dim=1))


def identify(enrolment: Enrolment, embedding: Float[Tensor, " D"], speaker: str) -> Trial | None:
    """Compare one voice with all enrolled; None where its speaker is not among them."""
    if speaker not in enrolment.speakers:
        return None
    cosines = (enrolment.centres @ embedding).tolist()
    true = cosines.pop(enrolment.speakers.index(speaker))
    return Trial(1 + sum(other >= true for other in cosines), len(enrolment.speakers), true, tuple(cosines))


def speaker_encoder(name: str) -> Encoder:
    """A back end by name; see `ENCODERS`.

    Raises:
        InputError: unknown, or its package is not installed.
    """
    if name not in ENCODERS:
        raise InputError("speaker encoder", repr(name), f"choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]()


def _timbre() -> Encoder:
    """Mean and deviation of 25 mel-frequency cepstra over time: no training, no weights, and no great ear."""
    front_end = FrontEnd(FrontEndConfig(kind="mfcc", num_mel=40, num_mfcc=26, normalise="none"))

    def encode(waveform: Float[Tensor, " S"]) -> Float[Tensor, " D"]:
        cepstra = front_end(waveform.float())[:, 1:]  # without the level
        deviation, mean = torch.std_mean(cepstra, dim=0, correction=0)
        return torch.nn.functional.normalize(torch.cat([mean, deviation.clamp_min(1e-3)]), dim=0)

    return encode


def _resemblyzer() -> Encoder:
    """The d-vector network of Wan et al., Generalized end-to-end loss for speaker verification (ICASSP 2018), with the
    weights that the package resemblyzer ships."""
    try:
        from resemblyzer import VoiceEncoder  # pyright: ignore[reportMissingImports]
        from resemblyzer.audio import normalize_volume  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        found = f"resemblyzer cannot be imported ({error})"
        raise InputError("speaker encoder", found, "install overheard[speakers], or choose timbre") from error
    network = VoiceEncoder("cpu", verbose=False)

    def encode(waveform: Float[Tensor, " S"]) -> Float[Tensor, " D"]:
        samples = normalize_volume(waveform.float().numpy(), target_dBFS=-30, increase_only=True)
        return torch.from_numpy(network.embed_utterance(samples))

    return encode


ENCODERS: dict[str, Callable[[], Encoder]] = {"resemblyzer": _resemblyzer, "timbre": _timbre}
"""Speaker encoders by name; all work without a network."""
