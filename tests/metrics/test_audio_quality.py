"""Audio measures: perfect on itself, worse with noise, equal to slow references, and silent about silence."""

import math
import sys

import librosa
import numpy
import pytest
import torch
from a_voice import voice

from overheard.errors import InputError
from overheard.metrics.audio_quality import MEASURES, log_spectral_distance, mel_cepstral_distortion, score_audio

RATE = 16000
VOICE = voice(1.5)


def noisy(level: float) -> torch.Tensor:
    return VOICE + level * torch.randn(len(VOICE), generator=torch.Generator().manual_seed(1))


def test_itself_is_perfect_at_any_level() -> None:
    score = score_audio(0.3 * VOICE, VOICE, RATE)
    assert score.log_spectral_distance_db == pytest.approx(0.0, abs=1e-2)
    assert score.mel_cepstral_distortion_db == pytest.approx(0.0, abs=1e-2)
    assert score.stoi == pytest.approx(1.0, abs=1e-3)
    assert score.si_sdr_db is None or score.si_sdr_db > 80


def test_noise_makes_every_measure_worse() -> None:
    little, much = score_audio(noisy(0.01), VOICE, RATE), score_audio(noisy(0.1), VOICE, RATE)
    for name, worse in (
        ("log_spectral_distance_db", 1),
        ("mel_cepstral_distortion_db", 1),
        ("stoi", -1),
        ("si_sdr_db", -1),
    ):
        assert worse * (getattr(much, name) - getattr(little, name)) > 0, name


def test_what_did_not_come_back_counts() -> None:
    half = score_audio(VOICE[: len(VOICE) // 2], VOICE, RATE)
    assert half.stoi is not None
    assert half.stoi < 0.9
    assert half.log_spectral_distance_db is not None
    assert half.log_spectral_distance_db > 3


def test_a_doubled_amplitude_is_six_decibels() -> None:
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert log_spectral_distance(2 * noise, noise) == pytest.approx(20 * math.log10(2), abs=0.01)


def test_cepstral_distortion_of_librosas_cepstra() -> None:
    """The definition, from librosa's mel spectrogram and scipy's DCT."""
    from scipy.fft import dct

    spoken = noisy(0.05)
    decibels = []
    for waveform in (spoken, VOICE):
        mel = librosa.feature.melspectrogram(
            y=waveform.numpy(), sr=RATE, n_fft=512, hop_length=320, win_length=512, window="hamming", n_mels=40,
            htk=True, norm=None, pad_mode="constant",
        )  # fmt: skip
        decibels.append(10 * numpy.log10(numpy.maximum(mel, 1e-10)))
    distance = mel_cepstral_distortion(spoken, VOICE)
    floor = decibels[1].max() - 60
    clipped = [numpy.asarray(dct(numpy.maximum(power, floor), norm="ortho", axis=0))[1:25] for power in decibels]
    # Root mean square over bands of the smoothed difference in dB of power.
    expected = numpy.sqrt(((clipped[0] - clipped[1]) ** 2).sum(axis=0) / 40).mean()
    assert distance == pytest.approx(expected, rel=0.15)


def test_what_is_undefined_is_none_and_says_why() -> None:
    silent = torch.zeros(RATE)
    for score, reason in (
        (score_audio(VOICE, silent, RATE), "the original is silent"),
        (score_audio(silent, VOICE, RATE), "the audio is silent"),
        (score_audio(VOICE, torch.zeros(0), RATE), "the original is silent"),
    ):
        assert [getattr(score, name) for name in MEASURES] == [None] * len(MEASURES)
        assert score.reasons == dict.fromkeys(MEASURES, reason)


def test_a_short_sound_has_no_intelligibility() -> None:
    score = score_audio(VOICE[:4000], VOICE[:4000], RATE)
    assert score.stoi is None
    assert score.reasons["stoi"].startswith("shorter than")


@pytest.mark.parametrize(("package", "measure"), [("pystoi", "stoi"), ("pesq", "pesq")])
def test_a_package_that_is_missing_is_the_reason(monkeypatch: pytest.MonkeyPatch, package: str, measure: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    score = score_audio(noisy(0.1), VOICE, RATE)
    assert getattr(score, measure) is None
    assert score.reasons[measure] == f"{package} is not installed"


def test_none_has_a_reason_and_a_value_has_none() -> None:
    score = score_audio(noisy(0.1), VOICE, RATE)
    for name in MEASURES:
        assert (getattr(score, name) is None) == (name in score.reasons), name


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        score_audio(torch.full((RATE,), torch.nan), VOICE, RATE)
