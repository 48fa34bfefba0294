"""Features against librosa and torch, their lengths, their gradients, silence, and settings that contradict."""

import dataclasses
import json
import math
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overheard.errors import InputError
from overheard.speech.features import (
    LOG_MEL_80,
    MEL_POWER_FLOOR,
    MFCC_26,
    SPECTROGRAM_161,
    SPECTROGRAM_257,
    FrontEnd,
    FrontEndConfig,
    Normalisation,
    mel_filters,
)

PRESETS = {"257": SPECTROGRAM_257, "161": SPECTROGRAM_161, "mfcc": MFCC_26, "mel": LOG_MEL_80}
# One small front end of each kind, for gradients: F in the tens and few samples.
SMALL = [
    FrontEndConfig(kind=kind, n_fft=64, window=48, hop=32, num_mel=8, num_mfcc=5, normalise=normalise)
    for kind in ("log_spectrogram", "log_mel", "mfcc")
    for normalise in ("none", "utterance", "feature")
]


def chirp_in_noise(num_samples: int = 12345) -> Tensor:
    """Float64 samples: a rising tone over faint noise."""
    seconds = torch.arange(num_samples, dtype=torch.float64) / 16000
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 0.3 * torch.sin(2 * math.pi * (200 + 2000 * seconds) * seconds) + 0.003 * noise


def from_librosa(waveform: Tensor, config: FrontEndConfig) -> np.ndarray:
    """The same features by librosa alone, (T, F)."""
    samples = waveform.double().numpy()
    stft = {"n_fft": config.n_fft, "hop_length": config.hop, "win_length": config.window, "window": "hamming"}
    if config.kind == "log_spectrogram":
        features = np.log1p(np.abs(librosa.stft(samples, pad_mode="constant", **stft)))
    else:
        power = librosa.feature.melspectrogram(
            y=samples, sr=config.sample_rate, n_mels=config.num_mel, pad_mode="constant", dtype=np.float64, **stft
        )
        features = np.log(np.maximum(power, MEL_POWER_FLOOR))
        if config.kind == "mfcc":
            features = librosa.feature.mfcc(S=features, n_mfcc=config.num_mfcc, dct_type=2, norm="ortho")
    if config.normalise == "utterance":
        features = (features - features.mean()) / features.std(ddof=1)
    if config.normalise == "feature":
        features = (features - features.mean(1, keepdims=True)) / features.std(1, keepdims=True, ddof=1)
    return features.T


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("normalise", ["none", "utterance", "feature"])
def test_agrees_with_librosa(config: FrontEndConfig, normalise: Normalisation) -> None:
    config = dataclasses.replace(config, normalise=normalise)
    waveform = chirp_in_noise()
    expected = from_librosa(waveform, config)
    features = FrontEnd(config, dtype=torch.float64)(waveform)
    assert features.shape == expected.shape == (config.num_frames(len(waveform)), config.num_features)
    np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=1e-9)
    # Float32 rounds the STFT at 1e-7 of its loudest bin; dividing a faint bin by its own deviation magnifies that.
    single = FrontEnd(config)(waveform.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=3e-4 if normalise == "feature" else 1e-4)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_agrees_with_librosa_on_real_speech(config: FrontEndConfig, librispeech: Path) -> None:
    for path in sorted(librispeech.rglob("*.flac"))[::60]:
        waveform = torch.from_numpy(soundfile.read(path, dtype="float64")[0])
        expected = from_librosa(waveform, config)
        features = FrontEnd(config, dtype=torch.float64)(waveform)
        np.testing.assert_allclose(features.numpy(), expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(FrontEnd(config)(waveform.float()).numpy(), expected, rtol=0, atol=1e-4)


def test_spectrogram_is_the_published_one_line() -> None:
    waveform = chirp_in_noise().float()
    window = torch.hamming_window(512)
    spectrum = torch.stft(waveform, 512, 320, window=window, center=True, pad_mode="constant", return_complex=True)
    magnitude = spectrum.abs().log1p().T
    expected = (magnitude - magnitude.mean()) / magnitude.std()
    torch.testing.assert_close(FrontEnd(SPECTROGRAM_257)(waveform), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [LOG_MEL_80, MFCC_26], ids=["mel", "mfcc"])
def test_mel_filters_are_librosas(config: FrontEndConfig) -> None:
    expected = librosa.filters.mel(sr=16000, n_fft=config.n_fft, n_mels=config.num_mel, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(config).numpy(), expected, rtol=0, atol=1e-12)


@given(st.integers(1, 3000), st.sampled_from([*PRESETS.values(), *SMALL]))
def test_num_frames_is_what_comes_out(num_samples: int, config: FrontEndConfig) -> None:
    features = FrontEnd(config)(chirp_in_noise(num_samples))
    assert features.shape == (config.num_frames(num_samples), config.num_features)
    assert features.isfinite().all()


def test_waveforms_side_by_side_are_normalised_apart() -> None:
    loud = chirp_in_noise()
    for config in PRESETS.values():
        front_end = FrontEnd(config)
        pair = front_end(torch.stack([loud, 0.1 * loud.flip(0)])[:, None])
        assert pair.shape[:2] == (2, 1)
        torch.testing.assert_close(pair[0, 0], front_end(loud))
        torch.testing.assert_close(pair[1, 0], front_end(0.1 * loud.flip(0)))


@pytest.mark.parametrize("config", SMALL, ids=lambda config: f"{config.kind}-{config.normalise}")
@pytest.mark.parametrize("num_samples", [1, 200])
def test_gradient(config: FrontEndConfig, num_samples: int) -> None:
    waveform = chirp_in_noise(num_samples + 7)[7:].requires_grad_()
    assert torch.autograd.gradcheck(FrontEnd(config, dtype=torch.float64), waveform)


@pytest.mark.parametrize("config", [*PRESETS.values(), *SMALL])
@pytest.mark.parametrize("silent", [slice(None), slice(2000, None)], ids=["all", "end"])
def test_digital_silence(config: FrontEndConfig, silent: slice) -> None:
    waveform = chirp_in_noise(4000).float()
    waveform[silent] = 0
    waveform.requires_grad_()
    features = FrontEnd(config)(waveform)
    features.square().sum().backward()
    assert features.isfinite().all()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()


def test_configuration_survives_json_and_tables_stay_out_of_checkpoints() -> None:
    for config in PRESETS.values():
        assert FrontEndConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
        assert FrontEnd(config).state_dict() == {}
    with pytest.raises(TypeError, match="n_ftt"):
        FrontEndConfig(**json.loads('{"n_ftt": 512}'))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "plp"}, "kind: 'plp'; choose one of log_spectrogram"),
        ({"normalise": "speaker"}, "normalise: 'speaker'; choose one of none"),
        ({"hop": 0}, "hop: 0; give a whole number"),
        ({"n_fft": 512.0}, "n_fft: 512.0; give a whole number"),
        ({"n_fft": 511, "window": 400}, "n_fft: 511; give an even"),
        ({"n_fft": 256}, "front end: hop 320, window 512, n_fft 256 samples; hop may not exceed"),
        ({"hop": 600}, "front end: hop 600"),
        ({"kind": "mfcc", "num_mel": 20}, "num_mfcc: 26; at most num_mel, which is 20"),
    ],
)
def test_contradictions_are_refused(settings: dict, message: str) -> None:
    # Under pytest the type checker would refuse some of these before the configuration sees them; users have none.
    config = FrontEndConfig()
    vars(config).update(settings)
    with pytest.raises(InputError, match=message):
        config.__post_init__()


def test_empty_band_and_empty_waveform_are_refused() -> None:
    with pytest.raises(InputError, match="num_mel: 200 bands for 257 bins"):
        FrontEnd(FrontEndConfig(kind="log_mel", num_mel=200))
    with pytest.raises(InputError, match="waveform: 0 samples"):
        FrontEnd(SPECTROGRAM_257)(torch.zeros(0))
