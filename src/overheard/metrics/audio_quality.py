"""How close audio made from recovered features is to what was said: spectra, intelligibility, perceived quality.

Features do not hold the level, so the audio's is set to the original's before anything is measured. Audio that is
shorter than the original is extended by silence: what did not come back counts.

| measure | unit | best | what it ignores |
|---|---|---|---|
| log-spectral distance | dB | 0 | phase |
| mel-cepstral distortion | dB | 0 | phase, level, detail within mel bands |
| STOI | 0 to 1 | 1 | level |
| SI-SDR | dB | infinite | level alone: a phase found anew, as Griffin-Lim finds it, ruins it |
| PESQ | -0.5 to 4.5 | 4.5 | level |
"""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.speech.features import FrontEnd, FrontEndConfig, cosine_transform

Decibels = float

SPECTRUM = FrontEndConfig(kind="log_spectrogram", normalise="none")
MEL = FrontEndConfig(kind="log_mel", num_mel=40, normalise="none")
COEFFICIENTS = 24
DYNAMIC_RANGE: Decibels = 60.0
"""What lies further below the loudest bin of the original than this is floor: digital silence has no logarithm."""
SILENT = 1e-6
"""Root mean square of a waveform within [-1, 1] below which there is nothing to compare with."""
STOI_SECONDS = 0.4
"""STOI correlates 30 frames of 12.8 ms: less speech than this has none (Taal et al. 2011, section II)."""


@dataclass(frozen=True)
class AudioScore:
    """Measures of one waveform against the original; None where one is undefined, with the reason.

    Attributes:
        log_spectral_distance_db: root mean square over frequency of the difference of log power spectra, mean over
            frames (Gray and Markel 1976); 0 is best.
        mel_cepstral_distortion_db: distance of 24 mel-frequency cepstral coefficients, mean over frames (Kubichek
            1993); 0 is best. Cepstra are of 40 mel bands; tools that fit a mel-generalised cepstrum differ a little.
        stoi: short-time objective intelligibility by pystoi (Taal et al. 2011), 0 to 1; 1 is best.
        si_sdr_db: scale-invariant signal-to-distortion ratio by torchmetrics (Le Roux et al. 2019); larger is better.
        pesq: wide-band perceptual quality (ITU-T P.862.2), where the package pesq is installed; larger is better.
        reasons: why a measure is None, by its name.
    """

    log_spectral_distance_db: float | None
    mel_cepstral_distortion_db: float | None
    stoi: float | None
    si_sdr_db: float | None
    pesq: float | None
    reasons: dict[str, str]


MEASURES = ("log_spectral_distance_db", "mel_cepstral_distortion_db", "stoi", "si_sdr_db", "pesq")


def score_audio(audio: Float[Tensor, " R"], original: Float[Tensor, " S"], sample_rate: int) -> AudioScore:
    """Compare audio with the original, sample 0 with sample 0.

    Args:
        audio: what features sound like.
        original: what was said.
        sample_rate: Hz, of both; 16000 for the spectra to be those that the papers take.

    Raises:
        InputError: NaN or infinity.
    """
    for name, waveform in (("audio", audio), ("original", original)):
        if not bool(waveform.isfinite().all()):
            raise InputError(name, "NaN or infinity", "leave that utterance out")
    original = original.detach().float()
    level = float(original.square().mean().sqrt()) if len(original) else 0.0
    if level < SILENT:
        return _undefined("the original is silent")
    audio = torch.nn.functional.pad(audio.detach().float()[: len(original)], (0, max(0, len(original) - len(audio))))
    found = float(audio.square().mean().sqrt())
    if found < SILENT:
        return _undefined("the audio is silent")
    audio = audio * (level / found)
    reasons: dict[str, str] = {}
    return AudioScore(
        log_spectral_distance_db=log_spectral_distance(audio, original),
        mel_cepstral_distortion_db=mel_cepstral_distortion(audio, original),
        stoi=_stoi(audio, original, sample_rate, reasons),
        si_sdr_db=_si_sdr(audio, original, reasons),
        pesq=_pesq(audio, original, sample_rate, reasons),
        reasons=reasons,
    )


def log_spectral_distance(audio: Float[Tensor, " S"], original: Float[Tensor, " S"]) -> Decibels:
    """Of two waveforms of one length, dB; 0 is best. Bins below the dynamic range count as its floor."""
    analyse = FrontEnd(SPECTRUM)
    power = [analyse.spectrum(waveform).abs().square() for waveform in (audio, original)]  # (T, bins)
    floor = float(power[1].max()) * 10 ** (-DYNAMIC_RANGE / 10)
    difference = 10 * (power[0].clamp_min(floor).log10() - power[1].clamp_min(floor).log10())
    return float(difference.square().mean(dim=1).sqrt().mean())


def mel_cepstral_distortion(audio: Float[Tensor, " S"], original: Float[Tensor, " S"]) -> Decibels:
    """10 sqrt(2) / ln 10 |c - c'| over coefficients 1 to 24, mean over frames, dB; 0 is best.

    log |H| = sum_k c_k cos(k w), so that this is the root mean square difference of the smoothed spectra in dB.
    """
    analyse = FrontEnd(MEL)
    logarithms = [analyse(waveform) for waveform in (audio, original)]  # (T, bands), natural log of power
    floor = float(logarithms[1].max()) - DYNAMIC_RANGE * math.log(10) / 10
    # Rows of the orthonormal transform are cosines of amplitude sqrt(2 / bands); log power is twice log amplitude.
    transform = cosine_transform(1 + COEFFICIENTS, MEL.num_mel)[1:].to(logarithms[0]) * math.sqrt(2 / MEL.num_mel) / 2
    difference = (logarithms[0].clamp_min(floor) - logarithms[1].clamp_min(floor)) @ transform.T  # (T, 24)
    return 10 * math.sqrt(2) / math.log(10) * float(difference.square().sum(dim=1).sqrt().mean())


def _undefined(reason: str) -> AudioScore:
    return AudioScore(None, None, None, None, None, dict.fromkeys(MEASURES, reason))


def _stoi(audio: Tensor, original: Tensor, sample_rate: int, reasons: dict[str, str]) -> float | None:
    try:
        from pystoi import stoi
    except ImportError:
        reasons["stoi"] = "pystoi is not installed"
        return None
    if len(original) < STOI_SECONDS * sample_rate:
        reasons["stoi"] = f"shorter than {STOI_SECONDS} s"
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = float(stoi(original.numpy(), audio.numpy(), sample_rate))
    # pystoi warns and returns 1e-5 where too few frames are louder than its threshold.
    if any("Not enough STFT frames" in str(each.message) for each in caught):
        reasons["stoi"] = "too few frames of speech"
        return None
    return value


def _si_sdr(audio: Tensor, original: Tensor, reasons: dict[str, str]) -> float | None:
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    value = float(scale_invariant_signal_distortion_ratio(audio.double(), original.double()))
    if not math.isfinite(value):
        reasons["si_sdr_db"] = "there is no distortion, or nothing of the signal"
        return None
    return value


def _pesq(audio: Tensor, original: Tensor, sample_rate: int, reasons: dict[str, str]) -> float | None:
    try:
        from pesq import NoUtterancesError, pesq  # pyright: ignore[reportMissingImports]
    except ImportError:
        reasons["pesq"] = "pesq is not installed"
        return None
    if sample_rate != 16000:
        reasons["pesq"] = f"wide-band PESQ takes 16000 Hz, not {sample_rate}"
        return None
    try:
        return float(pesq(sample_rate, original.numpy(), audio.numpy(), "wb"))
    except (NoUtterancesError, ValueError) as error:
        reasons["pesq"] = str(error) or "no speech found"
        return None
