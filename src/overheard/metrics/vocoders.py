"""Vocoders by name: a draft of the audio -> the same speech in a voice that sounds less hoarse.

Features hold no phase. `waveform_from_features` finds one by fast Griffin-Lim, which is its draft and, by the name
`griffin-lim`, all there is. A neural vocoder has learnt what phases speech has: it looks at the draft in its own
setting of the mel spectrogram and says it again. That its input is a draft, and no spectrum stretched from our bins to
its bands, lets it take every front end and leaves its analysis to itself. On six utterances of LibriSpeech, the logs of
its bands were nearer to those of the original by 40 % for two front ends (log-mel, 161 bins) than with bins stretched,
and farther by 2 and 10 % for the others (257 bins, MFCC).

A vocoder makes up what the features do not hold. What is heard in its audio is therefore to be read beside the
distance of its features from those asked for, which `Waveform` states for every vocoder alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError

GRIFFIN_LIM = "griffin-lim"
VOCOS_WEIGHTS = ("charactr/vocos-mel-24khz", "0feb3fdd929bcd6649e0e7c5a688cf7dd012ef21")
"""Repository on the Hugging Face hub and its revision: another may hold other weights, or name other code to run."""
VOCOS_RATE = 24000
VOCOS_HOP = 256
VOCOS_SHORTEST = 1024
"""Samples of one of its windows, which it reflects at both ends."""

Speak = Callable[[Float[Tensor, " S"], int], Float[Tensor, " S"]]
"""A draft and its sample rate to audio of the same rate and length."""


@dataclass(frozen=True)
class Vocoder:
    """What makes audio of a draft.

    Attributes:
        name: in `VOCODERS`.
        speak: see `Speak`; None keeps the draft.
    """

    name: str = GRIFFIN_LIM
    speak: Speak | None = None


def vocoder(name: str) -> Vocoder:
    """A vocoder by name; see `VOCODERS`.

    Raises:
        InputError: unknown, its package is not installed, or its weights cannot be had.
    """
    if name not in VOCODERS:
        raise InputError("vocoder", repr(name), f"choose one of {', '.join(VOCODERS)}")
    build = VOCODERS[name]
    return Vocoder(name, None if build is None else build())


def _vocos() -> Speak:
    """Siuzdak, Vocos: closing the gap between time-domain and Fourier-based neural vocoders (ICLR 2024): 100 mel bands
    at 24 kHz; 54 MB of weights, fetched the first time and kept by huggingface_hub. torch reads them as weights only.
    """
    try:
        from vocos import Vocos  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as error:
        # OSError, RuntimeError: torchaudio, which it needs, does not load beside another torch than its own.
        found = f"vocos cannot be imported ({error})"
        raise InputError("vocoder", found, "pip install 'overheard[vocoder]', or choose griffin-lim") from error
    try:
        network = Vocos.from_pretrained(VOCOS_WEIGHTS[0], revision=VOCOS_WEIGHTS[1])
    except (OSError, ValueError, RuntimeError) as error:
        found = f"the weights of vocos cannot be had ({error})"
        remedy = "connect to the network once, for the Hugging Face hub, or choose griffin-lim"
        raise InputError("vocoder", found, remedy) from error

    def speak(draft: Float[Tensor, " S"], sample_rate: int) -> Float[Tensor, " S"]:
        samples = _resampled(draft, sample_rate, VOCOS_RATE)
        # It gives back whole hops.
        whole = max(VOCOS_SHORTEST, -(-len(samples) // VOCOS_HOP) * VOCOS_HOP)
        with torch.inference_mode():
            said = network(torch.nn.functional.pad(samples, (0, whole - len(samples)))[None])[0]
        said = _resampled(said[: len(samples)], VOCOS_RATE, sample_rate)[: len(draft)]
        return torch.nn.functional.pad(said, (0, len(draft) - len(said)))

    return speak


def _resampled(samples: Float[Tensor, " S"], rate: int, wanted: int) -> Float[Tensor, " R"]:
    if rate == wanted:
        return samples
    return torch.from_numpy(soxr.resample(samples.detach().cpu().float().numpy(), rate, wanted))


VOCODERS: dict[str, Callable[[], Speak] | None] = {GRIFFIN_LIM: None, "vocos": _vocos}
"""Vocoders by name; `griffin-lim` needs nothing, the others a package and, once, a network."""
