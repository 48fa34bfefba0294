"""Augmentation: what is drawn, what is kept, and the defaults that change nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overheard.errors import InputError
from overheard.speech.augmentation import (
    AugmentationConfig,
    augment_features,
    augment_waveform,
    generator_for,
)

NOTHING = AugmentationConfig()


def test_the_default_changes_nothing() -> None:
    waveform, features = torch.randn(1000), torch.randn(20, 8)
    generator = generator_for(0, 0, "u")
    assert augment_waveform(waveform, NOTHING, generator) is waveform
    assert augment_features(features, NOTHING, generator) is features


def test_speed_shortens_and_raises_the_pitch() -> None:
    time = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 400 * time)
    faster = augment_waveform(tone, AugmentationConfig(speed=(1.25, 1.25)), generator_for(0, 0, "u"))
    assert len(faster) == 12800
    spectrum = torch.fft.rfft(faster).abs()
    assert int(spectrum.argmax()) * 16000 / len(faster) == pytest.approx(500, abs=2)


@given(tempo=st.floats(0.5, 2), frames=st.integers(1, 50))
def test_tempo_changes_the_number_of_frames_alone(tempo: float, frames: int) -> None:
    ramp = torch.arange(6.0).repeat(frames, 1)
    slower = augment_features(ramp, AugmentationConfig(tempo=(tempo, tempo)), generator_for(0, 0, "u"))
    assert slower.shape == (max(1, round(frames / tempo)), 6)
    torch.testing.assert_close(slower, torch.arange(6.0).expand_as(slower), atol=1e-4, rtol=0)


def test_warp_moves_along_frequency() -> None:
    ramp = torch.arange(40.0).repeat(5, 1)
    config = AugmentationConfig(warp=0.2)
    slopes = {
        round(float(augment_features(ramp, config, generator_for(0, epoch, "u"))[0, 10] / 10), 3) for epoch in range(20)
    }
    assert all(0.8 <= slope <= 1.2 for slope in slopes)
    assert len(slopes) > 10


@given(frames=st.integers(1, 80), bands=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_masks_stay_within_their_shares(frames: int, bands: int, seed: int) -> None:
    config = AugmentationConfig(time_masks=2, time_mask_frames=10, time_mask_share=0.5, frequency_masks=1)
    masked = augment_features(torch.ones(frames, bands), config, generator_for(seed, 0, "u"))
    whole_frames = int((masked == 0).all(dim=1).sum())
    whole_bands = int((masked == 0).all(dim=0).sum())
    assert whole_frames <= 0.5 * frames
    assert whole_bands <= 0.15 * bands
    assert masked.shape == (frames, bands)


def test_noise_keeps_to_its_level() -> None:
    silence_and_tone = torch.sin(torch.arange(16000.0))
    config = AugmentationConfig(noise=0.1)
    noisy = augment_waveform(silence_and_tone, config, generator_for(0, 0, "u"))
    added = (noisy - silence_and_tone).square().mean().sqrt() / silence_and_tone.square().mean().sqrt()
    assert 0 < float(added) <= 0.105


def test_every_utterance_and_epoch_has_draws_of_its_own() -> None:
    def draw(*key: object) -> float:
        return float(torch.rand((), generator=generator_for(*key)))  # pyright: ignore[reportArgumentType]

    assert draw(0, 0, "u") == draw(0, 0, "u")
    assert len({draw(0, 0, "u"), draw(1, 0, "u"), draw(0, 1, "u"), draw(0, 0, "v")}) == 4


@pytest.mark.parametrize(
    ("name", "value"), [("speed", (1.2, 0.9)), ("tempo", (0.0, 1.0)), ("warp", 2.0), ("time_masks", -1)]
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        AugmentationConfig(**{name: value})  # pyright: ignore[reportArgumentType]
