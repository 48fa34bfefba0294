"""Audio made from features: its own features are close, it is sound that can be played, and odd input stays finite."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from a_voice import voice
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overheard.errors import InputError
from overheard.metrics.waveform import TYPICAL_LOUDNESS, Waveform, waveform_from_features
from overheard.speech.features import (
    LOG_MEL_80,
    MFCC_26,
    SPECTROGRAM_161,
    SPECTROGRAM_257,
    FrontEnd,
    FrontEndConfig,
    Normalisation,
)

# Above the largest `reanalysis_distance` seen on the synthetic voice and on 45 real utterances: 0.11, 0.08, 0.16, 0.08.
BOUNDS = [(SPECTROGRAM_257, 0.15), (SPECTROGRAM_161, 0.12), (LOG_MEL_80, 0.25), (MFCC_26, 0.12)]
NAMED = pytest.mark.parametrize(("config", "bound"), BOUNDS, ids=["257", "161", "mel", "mfcc"])
PRESETS = [config for config, _ in BOUNDS]


def shuffled(features: Tensor) -> Tensor:
    """The same frames in random order."""
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]


def distance(result: Waveform) -> float:
    """The stated distance, where there is one."""
    assert result.reanalysis_distance is not None
    return result.reanalysis_distance


def check_playable(result: Waveform) -> None:
    assert result.samples.dtype == torch.float32
    assert result.samples.isfinite().all()
    assert result.samples.abs().max() <= 1


@NAMED
@pytest.mark.parametrize("normalise", ["none", "utterance"])
def test_features_of_the_audio_are_close(config: FrontEndConfig, bound: float, normalise: Normalisation) -> None:
    config = replace(config, normalise=normalise)
    features = FrontEnd(config)(voice())
    result = waveform_from_features(features, config)
    check_playable(result)
    assert config.num_frames(len(result.samples)) == len(features)
    assert distance(result) < bound
    # What is stated is what another reader of the audio finds.
    again = FrontEnd(config)(result.samples)
    assert result.reanalysis_mae == pytest.approx(float((again - features).abs().mean()), abs=1e-6)
    # Frames in an order that no sound has are met far less well.
    assert distance(result) < 0.5 * distance(waveform_from_features(shuffled(features), config))


@NAMED
def test_real_speech(config: FrontEndConfig, bound: float, librispeech: Path) -> None:
    paths = [path for path in sorted(librispeech.rglob("*.flac")) if soundfile.info(path).duration < 4]
    for path in paths[::25]:
        features = FrontEnd(config)(torch.from_numpy(soundfile.read(path, dtype="float32")[0]))
        result = waveform_from_features(features, config)
        check_playable(result)
        assert distance(result) < bound
        assert distance(result) < 0.5 * distance(waveform_from_features(shuffled(features), config))


@pytest.mark.parametrize("config", [SPECTROGRAM_257, LOG_MEL_80, replace(MFCC_26, normalise="utterance")])
def test_lost_level_is_set_and_known_level_is_kept(config: FrontEndConfig) -> None:
    quiet = 0.1 * voice()
    for loudness in (TYPICAL_LOUDNESS, -35.0):
        result = waveform_from_features(FrontEnd(config)(quiet), config, loudness=loudness)
        assert decibels(result.samples) == pytest.approx(loudness, abs=1.5)
    known = replace(config, normalise="none")
    result = waveform_from_features(FrontEnd(known)(quiet), known)
    assert decibels(result.samples) == pytest.approx(decibels(quiet), abs=1.5)


def decibels(samples: Tensor) -> float:
    """Root mean square relative to full scale."""
    return 10 * math.log10(float(samples.square().mean()))


@pytest.mark.parametrize("config", PRESETS)
def test_a_reference_lends_mean_and_deviation(config: FrontEndConfig) -> None:
    for normalise in ("utterance", "feature"):
        normalised = replace(config, normalise=normalise)
        features = FrontEnd(normalised)(voice())
        result = waveform_from_features(features, normalised, reference=voice(3.0))
        check_playable(result)
        assert distance(result) < 0.3
        # The speaker's own level comes back with the reference's.
        assert decibels(result.samples) == pytest.approx(decibels(voice()), abs=2.0)


@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("normalise", ["none", "utterance"])
def test_silence(config: FrontEndConfig, normalise: Normalisation) -> None:
    config = replace(config, normalise=normalise)
    result = waveform_from_features(FrontEnd(config)(torch.zeros(4000)), config)
    check_playable(result)
    assert result.samples.abs().max() < 1e-4
    assert result.reanalysis_mae < 1e-2
    if config.kind != "mfcc":
        assert result.reanalysis_distance is None


@given(
    st.sampled_from(PRESETS),
    st.sampled_from(["none", "utterance"]),
    st.integers(1, 4),
    st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_features_of_no_sound_still_give_one(
    config: FrontEndConfig, normalise: Normalisation, frames: int, scale: float
) -> None:
    config = replace(config, normalise=normalise)
    noise = torch.randn(frames, config.num_features, generator=torch.Generator().manual_seed(frames))
    result = waveform_from_features(scale * noise, config, iterations=3)
    check_playable(result)
    assert config.num_frames(len(result.samples)) == frames
    assert math.isfinite(result.reanalysis_mae)


def test_a_seed_decides_everything() -> None:
    features = FrontEnd(SPECTROGRAM_257)(voice(0.5))

    def audio(seed: int) -> Tensor:
        return waveform_from_features(features, SPECTROGRAM_257, generator=torch.Generator().manual_seed(seed)).samples

    assert torch.equal(audio(0), audio(0))
    assert torch.equal(audio(0), waveform_from_features(features, SPECTROGRAM_257).samples)
    assert not torch.equal(audio(0), audio(1))


@pytest.mark.parametrize(
    ("features", "config", "message"),
    [
        (torch.zeros(5, 26), SPECTROGRAM_257, r"features: shape \(5, 26\); give \(T, 257\)"),
        (torch.zeros(0, 257), SPECTROGRAM_257, r"features: shape \(0, 257\)"),
        (torch.full((5, 26), math.nan), MFCC_26, "features: NaN or infinity"),
        (torch.zeros(5, 257), replace(SPECTROGRAM_257, normalise="feature"), "reference: none, though"),
    ],
)
def test_wrong_input_is_one_line(features: Tensor, config: FrontEndConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        waveform_from_features(features, config)
