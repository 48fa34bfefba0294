"""Waveform -> features, as differentiable modules: log-magnitude STFT, log-mel, MFCC.

All three start from one centred, zero-padded STFT with a Hamming window. Its edge is 0.08 and not 0, so that every
sample of the waveform leaves a trace in some frame, and one window serves every kind.

Normalisation is over one utterance. Utterances of unequal length are therefore turned into features one by one and
padded afterwards (`speech.batching.collate`): padding never enters a mean or a deviation.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from overheard.errors import InputError

Kind = Literal["log_spectrogram", "log_mel", "mfcc"]
Normalisation = Literal["none", "utterance", "feature"]

# Power below which a mel band counts as silent. One bit of 16-bit audio gives about 1e-8.
MEL_POWER_FLOOR = 1e-10
# Standard deviation below which an utterance counts as digital silence. One bit of 16-bit audio gives about 2e-4.
DEVIATION_FLOOR = 1e-5


LARGEST = {
    "sample_rate": 1 << 20, "n_fft": 1 << 16, "window": 1 << 16, "hop": 1 << 16, "num_mel": 1 << 12,
    "num_mfcc": 1 << 12,
}  # fmt: skip
"""Of a front end's numbers, which also come in files from outside: filters of these sizes take half a gigabyte."""


@dataclass(frozen=True)
class FrontEndConfig:
    """What turns a waveform into features; a JSON object with these keys is its stored form.

    Attributes:
        kind: `log_spectrogram` is log(1 + magnitude), F = n_fft / 2 + 1; `log_mel` is the natural log of mel power,
            F = num_mel; `mfcc` is the first num_mfcc coefficients of the orthonormal DCT-II of `log_mel`, F = num_mfcc.
        sample_rate: Hertz.
        n_fft: samples, even.
        window: samples, at most `n_fft`.
        hop: samples between frames, at most `window`: no sample falls between two frames.
        num_mel: mel bands from 0 Hz to half the sample rate; `log_spectrogram` has none and ignores it.
        num_mfcc: coefficients, at most `num_mel`; only `mfcc` reads it.
        normalise: `utterance` subtracts one mean and divides by one standard deviation, taken over all frames and
            features; `feature` does so for each feature over time.

    Raises:
        InputError: a value is none of the choices, or no positive whole number, or contradicts another.
    """

    kind: Kind = "log_spectrogram"
    sample_rate: int = 16000
    n_fft: int = 512
    window: int = 512
    hop: int = 320
    num_mel: int = 80
    num_mfcc: int = 26
    normalise: Normalisation = "utterance"

    def __post_init__(self) -> None:
        for name, choices in (("kind", get_args(Kind)), ("normalise", get_args(Normalisation))):
            if getattr(self, name) not in choices:
                raise InputError(name, repr(getattr(self, name)), f"choose one of {', '.join(choices)}")
        for name, most in LARGEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(name, repr(value), f"give a whole number from 1 to {most}")
        if self.n_fft % 2:
            raise InputError("n_fft", self.n_fft, "give an even number of samples")
        if not self.hop <= self.window <= self.n_fft:
            found = f"hop {self.hop}, window {self.window}, n_fft {self.n_fft} samples"
            raise InputError("front end", found, "hop may not exceed window, nor window n_fft")
        if self.kind == "mfcc" and self.num_mfcc > self.num_mel:
            raise InputError("num_mfcc", self.num_mfcc, f"at most num_mel, which is {self.num_mel}")

    @property
    def num_bins(self) -> int:
        """Frequencies of the STFT, 0 Hz and half the sample rate included."""
        return self.n_fft // 2 + 1

    @property
    def num_features(self) -> int:
        """F."""
        return {"log_spectrogram": self.num_bins, "log_mel": self.num_mel, "mfcc": self.num_mfcc}[self.kind]

    def num_frames(self, num_samples: int) -> int:
        """T of a waveform of S samples: frame t is centred on sample t * hop.

        Raises:
            InputError: no samples.
        """
        if num_samples < 1:
            raise InputError("waveform", f"{num_samples} samples", "give at least one sample")
        return 1 + num_samples // self.hop


# DeepSpeech 2 here (257 bins) and in most public implementations (161 bins: 20 ms windows every 10 ms).
SPECTROGRAM_257 = FrontEndConfig()
SPECTROGRAM_161 = FrontEndConfig(n_fft=320, window=320, hop=160)
# DeepSpeech 1: 26 coefficients of 40 bands, as they are.
MFCC_26 = FrontEndConfig(kind="mfcc", num_mel=40, num_mfcc=26, normalise="none")
# 25 ms every 10 ms. n_fft 512 and not 400: the lowest of 80 bands are 37 Hz wide on each side, and bins 40 Hz apart
# would leave some with a single bin. Normalised, since gain only shifts a log: the features do not depend on the
# microphone's level, and zeros of padding are the mean.
LOG_MEL_80 = FrontEndConfig(kind="log_mel", n_fft=512, window=400, hop=160, num_mel=80, normalise="utterance")


class FrontEnd(nn.Module):
    """Waveform -> features; differentiable, with finite gradients at digital silence.

    The tables (window, mel filters, cosine transform) are buffers that no checkpoint stores: the configuration remakes
    them. They are computed in float64 and kept in `dtype`.

    Args:
        dtype: of the tables; None is torch's default. In float32 they limit a log of faint power to about 1e-4.

    Raises:
        InputError: more mel bands than the STFT can fill.
    """

    window: Tensor
    mel: Tensor
    dct: Tensor

    def __init__(self, config: FrontEndConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        tables = {"window": torch.hamming_window(config.window, dtype=torch.float64)}
        if config.kind != "log_spectrogram":
            tables["mel"] = mel_filters(config)
        if config.kind == "mfcc":
            tables["dct"] = cosine_transform(config.num_mfcc, config.num_mel)
        for name, table in tables.items():
            self.register_buffer(name, table.to(dtype or torch.get_default_dtype()), persistent=False)

    def forward(self, waveform: Float[Tensor, "*N S"]) -> Float[Tensor, "*N T F"]:
        """Features of one waveform, or of several that are equally long.

        Args:
            waveform: samples within [-1, 1] at `config.sample_rate`; float32 or float64, which the features keep.

        Raises:
            InputError: no samples.
        """
        features = self._compress(self.spectrum(waveform).abs())
        if self.config.normalise == "none":
            return features
        return standardise(features, over=(-2, -1) if self.config.normalise == "utterance" else (-2,))

    def spectrum(self, waveform: Float[Tensor, "*N S"]) -> Complex[Tensor, "*N T bins"]:
        """The STFT itself: centred frames, zeros beyond both ends, not scaled."""
        config = self.config
        *leading, num_samples = waveform.shape
        frames = config.num_frames(num_samples)
        spectrum = torch.stft(
            waveform.reshape(-1, num_samples),
            config.n_fft,
            config.hop,
            config.window,
            self.window.to(waveform.dtype),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )  # (N, bins, T)
        return spectrum.mT.reshape(*leading, frames, config.num_bins)

    def _compress(self, magnitude: Float[Tensor, "*N T bins"]) -> Float[Tensor, "*N T F"]:
        if self.config.kind == "log_spectrogram":
            return magnitude.log1p()
        power = magnitude.square() @ self.mel.to(magnitude.dtype).mT
        log_power = power.clamp_min(MEL_POWER_FLOOR).log()
        return log_power @ self.dct.to(magnitude.dtype).mT if self.config.kind == "mfcc" else log_power


def standardise(features: Float[Tensor, "*N T F"], over: tuple[int, ...]) -> Float[Tensor, "*N T F"]:
    """Mean 0 and sample standard deviation 1 over the given dimensions.

    Where the deviation is below `DEVIATION_FLOOR`, the floor divides instead: silence gives zeros. The square root is
    taken after the floor, since its gradient at 0 is infinite.
    """
    count = math.prod(features.shape[dim] for dim in over)
    variance = features.var(dim=over, keepdim=True, correction=min(1, count - 1))
    return (features - features.mean(dim=over, keepdim=True)) / variance.clamp_min(DEVIATION_FLOOR**2).sqrt()


def mel_filters(config: FrontEndConfig) -> Float[Tensor, "num_mel bins"]:
    """Triangles of equal area on Slaney's mel scale (Auditory Toolbox, 1998), in float64: weights of power.

    The scale is linear to 1 kHz, 3 mel per 200 Hz, and logarithmic above, 27 mel per factor 6.4.

    Raises:
        InputError: a band is so narrow that no bin falls into it.
    """
    top = config.sample_rate / 2
    top_mel = 0.015 * top if top < 1000 else 15 + 27 * math.log(top / 1000) / math.log(6.4)
    mel = torch.linspace(0, top_mel, config.num_mel + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel / 0.015, 1000 * 6.4 ** ((mel - 15) / 27))  # Hertz
    bins = torch.linspace(0, top, config.num_bins, dtype=torch.float64)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0)
    if not bool(triangles.any(dim=1).all()):
        found = f"{config.num_mel} bands for {config.num_bins} bins, so that some band is empty"
        raise InputError("num_mel", found, "take fewer bands or a longer n_fft")
    return 2 / (right - left) * triangles


def cosine_transform(num_mfcc: int, num_mel: int) -> Float[Tensor, "num_mfcc num_mel"]:
    """The first rows of the orthonormal DCT-II, in float64."""
    row = torch.arange(num_mfcc, dtype=torch.float64)[:, None]
    column = torch.arange(num_mel, dtype=torch.float64)
    table = torch.cos(math.pi / num_mel * row * (column + 0.5)) * math.sqrt(2 / num_mel)
    table[0] /= math.sqrt(2)
    return table
