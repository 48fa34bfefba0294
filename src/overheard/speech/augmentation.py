"""More voices and rooms than were recorded: speed, tempo, tract length, level, noise, and masks over features.

What is drawn for an utterance depends on its id, the epoch and the seed alone: not on the order of batches, the number
of processes, or where a run was taken up again.
"""

import hashlib
import math
from dataclasses import dataclass

import soxr
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from overheard.errors import InputError


@dataclass(frozen=True)
class AugmentationConfig:
    """What training changes in what it hears; the default changes nothing.

    Attributes:
        speed: lowest and highest factor of playing speed, which moves pitch, formants and tempo together
            (Ko et al. 2015, there 0.9, 1 and 1.1).
        tempo: lowest and highest factor of tempo alone, by interpolating feature frames over time.
        warp: largest relative stretch of the frequency axis, up or down, as of a longer or shorter vocal tract
            (Jaitly and Hinton 2013); for features whose axis is frequency.
        tilt: standard deviation of a random smooth curve over frequency that is added to the features, in their own
            unit: another microphone, another room.
        noise: highest level of white noise relative to the utterance, as a ratio of root mean squares.
        time_masks: stretches of frames set to zero (Park et al. 2019, SpecAugment).
        time_mask_frames: longest of them, frames.
        time_mask_share: all of them together at most cover this share of the utterance.
        frequency_masks: bands set to zero.
        frequency_mask_share: widest of them, as a share of the features.

    Raises:
        InputError: a value out of range.
    """

    speed: tuple[float, float] = (1.0, 1.0)
    tempo: tuple[float, float] = (1.0, 1.0)
    warp: float = 0.0
    tilt: float = 0.0
    noise: float = 0.0
    time_masks: int = 0
    time_mask_frames: int = 30
    time_mask_share: float = 0.2
    frequency_masks: int = 0
    frequency_mask_share: float = 0.15

    def __post_init__(self) -> None:
        for name in ("speed", "tempo"):
            low, high = getattr(self, name)
            if not 0.25 <= low <= high <= 4:
                raise InputError(name, f"{low} to {high}", "give two factors from 0.25 to 4, the lower first")
        for name in ("warp", "tilt", "noise", "time_mask_share", "frequency_mask_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(name, value, "give a number from 0 to 1")
        for name in ("time_masks", "time_mask_frames", "frequency_masks"):
            if getattr(self, name) < 0:
                raise InputError(name, getattr(self, name), "give 0 or more")


def generator_for(seed: int, epoch: int, utterance: str) -> torch.Generator:
    """The source of all that is drawn for one utterance in one epoch."""
    digest = hashlib.sha256(f"{seed} {epoch} {utterance}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def augment_waveform(
    waveform: Float[Tensor, " S"], config: AugmentationConfig, generator: torch.Generator
) -> Float[Tensor, " S_out"]:
    """Another speed and some noise; S_out = S / speed."""
    speed = _between(*config.speed, generator)
    if speed != 1:
        # Samples taken at `speed` times the rate and played at the rate itself sound faster.
        waveform = torch.from_numpy(soxr.resample(waveform.numpy(), speed, 1.0, quality="MQ"))
    if config.noise > 0:
        level = _between(0.0, config.noise, generator) * waveform.square().mean().sqrt()
        waveform = waveform + level * torch.randn(waveform.shape, generator=generator)
    return waveform


def augment_features(
    features: Float[Tensor, "T F"], config: AugmentationConfig, generator: torch.Generator
) -> Float[Tensor, "T_out F"]:
    """Another tempo, tract and room, then masks; T_out = T / tempo."""
    frames, bands = features.shape
    tempo = _between(*config.tempo, generator)
    warp = 1 + _between(-config.warp, config.warp, generator)
    if tempo != 1 or warp != 1:
        features = _resampled(features, max(1, round(frames / tempo)), warp)
    if config.tilt > 0:
        # A few cosines over frequency: smooth, and without a mean that normalisation has already taken out.
        band = torch.arange(bands) / bands
        for harmonic in range(1, 5):
            amount = config.tilt / 2 * float(torch.randn((), generator=generator))
            features = features + amount * torch.cos(math.pi * harmonic * (band + 0.5 / bands))
    if config.time_masks or config.frequency_masks:
        features = masked(features, config, generator)
    return features


def masked(features: Float[Tensor, "T F"], config: AugmentationConfig, generator: torch.Generator) -> Tensor:
    """SpecAugment's masks (Park et al. 2019, section 2) at zero, the mean of normalised features."""
    features = features.clone()
    frames, bands = features.shape
    if config.time_masks:
        longest = min(config.time_mask_frames, int(frames * config.time_mask_share / config.time_masks))
        for _ in range(config.time_masks):
            start, width = _stretch(frames, longest, generator)
            features[start : start + width] = 0.0
    for _ in range(config.frequency_masks):
        start, width = _stretch(bands, int(bands * config.frequency_mask_share), generator)
        features[:, start : start + width] = 0.0
    return features


def _resampled(features: Float[Tensor, "T F"], frames: int, warp: float) -> Tensor:
    """Frames interpolated over time, and value at band f taken from band f * warp, the last band repeated."""
    bands = features.shape[1]
    across = torch.linspace(-1, 1, frames) if frames > 1 else torch.zeros(1)
    source = (torch.arange(bands) * warp).clamp(max=bands - 1) / max(1, bands - 1) * 2 - 1
    grid = torch.stack(torch.meshgrid(across, source, indexing="ij")[::-1], dim=-1)
    return functional.grid_sample(features[None, None], grid[None], align_corners=True, padding_mode="border")[0, 0]


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low if low == high else low + (high - low) * float(torch.rand((), generator=generator))


def _stretch(size: int, longest: int, generator: torch.Generator) -> tuple[int, int]:
    width = int(torch.randint(longest + 1, (), generator=generator))
    return int(torch.randint(size - width + 1, (), generator=generator)), width
