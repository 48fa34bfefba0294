"""Features -> a waveform to listen to, with a statement of how far its own features are from those asked for.

Three steps: undo the normalisation, return to magnitudes of the STFT, find a phase by fast Griffin-Lim. A neural
vocoder may say the outcome again; see `vocoders`.

What no step can return, because the features do not hold it:
- every kind: the phase, and with it the sign of the waveform;
- `normalise="utterance"`: level and contrast. They are set to what read speech has (`TYPICAL_LOUDNESS` and below);
- `normalise="feature"`: besides, the long-term spectrum, which is that of the speaker and the microphone. There is no
  plausible guess at F of each, so other speech has to lend them (`reference`);
- `log_mel`: what lies within one band: with 80 bands, the harmonics of a low voice above 1 to 2 kHz;
- `mfcc`: besides, detail finer than about num_mel / num_mfcc bands. Of 26 coefficients the words and the timbre remain;
  the pitch of a high voice (300 Hz) mostly, of a lower one (below 200 Hz) hardly: it sounds hoarse.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.metrics.vocoders import Vocoder
from overheard.speech.features import MEL_POWER_FLOOR, FrontEnd, FrontEndConfig

Decibels = float

# Medians over utterances of LibriSpeech read at full length, 25 ms and 32 ms windows: root mean square below full
# scale, standard deviation of natural-log mel power (80 bands), and of all 26 MFCC together (40 bands).
TYPICAL_LOUDNESS: Decibels = -25.0
TYPICAL_DEVIATION = {"log_mel": 3.8, "mfcc": 11.4}

# Natural log of power: what stays this close to the floor, or varies this little over all bands and frames, as no
# other sound does, is digital silence.
SILENT_RANGE = 1e-3
MOMENTUM = 0.99
MEL_ITERATIONS = 50


@dataclass(frozen=True)
class Waveform:
    """Audio made from features.

    Attributes:
        samples: (S,) within [-1, 1], S = (T - 1) * hop + hop // 2.
        sample_rate: Hertz.
        method: how it was made, for a report.
        vocoder: its name.
        reanalysis_mae: mean absolute difference between the features of `samples` and those asked for; 0 is best.
        reanalysis_distance: root mean square of that difference over the standard deviation of the features asked for:
            0 is exact, 1 is as far as their mean. None where the features asked for are constant, as in silence.
    """

    samples: Float[Tensor, " S"]
    sample_rate: int
    method: str
    vocoder: str
    reanalysis_mae: float
    reanalysis_distance: float | None


def waveform_from_features(
    features: Float[Tensor, "T F"],
    config: FrontEndConfig,
    *,
    loudness: Decibels = TYPICAL_LOUDNESS,
    iterations: int = 100,
    reference: Float[Tensor, " _"] | None = None,
    generator: torch.Generator | None = None,
    vocoder: Vocoder = Vocoder(),
) -> Waveform:
    """A waveform whose features are close to those given.

    Args:
        features: as `FrontEnd(config)` makes them, true or recovered.
        loudness: root mean square in decibels relative to full scale, where the normalisation has removed the level.
        iterations: of fast Griffin-Lim; 100 take about 0.4 s of one core for 6 s of audio.
        reference: any speech at the same sample rate; its mean and deviation then undo the normalisation, and
            `loudness` is not used. Features that were not normalised need neither.
        generator: draws the phases to start from; None is a new one with seed 0.
        vocoder: what says the outcome of Griffin-Lim again, if anything.

    Raises:
        InputError: wrong shape, no frames, NaN or infinity, or `normalise="feature"` without a reference.
    """
    if features.ndim != 2 or features.shape[0] < 1 or features.shape[1] != config.num_features:
        raise InputError("features", f"shape {tuple(features.shape)}", f"give (T, {config.num_features}), T at least 1")
    if not bool(features.isfinite().all()):
        raise InputError("features", "NaN or infinity", "leave those frames out")
    wanted = features.detach().float()
    front_end = FrontEnd(config, dtype=torch.float32).to(wanted.device)
    magnitude = _magnitude(wanted, front_end, loudness, reference)
    generator = generator or torch.Generator(wanted.device).manual_seed(0)
    samples = fast_griffin_lim(magnitude, front_end, iterations, generator)
    method = f"{config.kind}, fast Griffin-Lim with {iterations} iterations"
    if vocoder.speak is not None:
        samples = vocoder.speak(samples, config.sample_rate).to(samples)
        method = f"{method}, said again by {vocoder.name}"
    samples = samples / samples.abs().max().clamp_min(1.0)

    difference = front_end(samples)[: len(wanted)] - wanted
    spread = float(wanted.std(correction=0))
    return Waveform(
        samples=samples,
        sample_rate=config.sample_rate,
        method=method,
        vocoder=vocoder.name,
        reanalysis_mae=float(difference.abs().mean()),
        reanalysis_distance=float(difference.square().mean().sqrt()) / spread if spread > 1e-5 else None,
    )


def fast_griffin_lim(
    magnitude: Float[Tensor, "T bins"], front_end: FrontEnd, iterations: int, generator: torch.Generator
) -> Float[Tensor, " S"]:
    """A waveform whose STFT has nearly the given magnitudes.

    Perraudin, Balazs and Sondergaard, A fast Griffin-Lim algorithm, WASPAA 2013, algorithm 2: project on the given
    magnitudes (P_C2), then on the STFTs of waveforms (P_C1), and step beyond, c_n + a (c_n - c_{n-1}), a = 0.99.
    """
    config = front_end.config
    num_samples = (len(magnitude) - 1) * config.hop + max(1, config.hop // 2)

    def synthesise(spectrum: Tensor) -> Tensor:
        return torch.istft(
            spectrum.mT, config.n_fft, config.hop, config.window, front_end.window, center=True, length=num_samples
        )

    phase = 2 * math.pi * torch.rand(magnitude.shape, generator=generator, device=magnitude.device)
    direction = torch.polar(torch.ones_like(magnitude), phase)
    previous = torch.zeros_like(direction)
    for _ in range(iterations):
        consistent = front_end.spectrum(synthesise(magnitude * direction))[: len(magnitude)]
        ahead = consistent + MOMENTUM * (consistent - previous)
        direction = ahead / ahead.abs().clamp_min(1e-12)
        previous = consistent
    return synthesise(magnitude * direction)


def _magnitude(
    features: Float[Tensor, "T F"], front_end: FrontEnd, loudness: Decibels, reference: Float[Tensor, " _"] | None
) -> Float[Tensor, "T bins"]:
    """Magnitudes of the STFT that plausibly gave the features."""
    config = front_end.config
    if config.normalise == "none":
        return _undo_logarithm(features, front_end)
    if reference is not None:
        other = FrontEnd(replace(config, normalise="none"))(reference.float()).to(features)
        over = (0, 1) if config.normalise == "utterance" else (0,)
        deviation, mean = torch.std_mean(other, dim=over, keepdim=True)
        return _undo_logarithm(features * deviation + mean, front_end)
    if config.normalise == "feature":
        remedy = "give a reference, any speech at the same sample rate, that lends each feature a mean and a deviation"
        raise InputError("reference", "none, though normalise is 'feature'", remedy)

    level = 10 ** (loudness / 20)
    if config.kind == "log_spectrogram":
        return _undo_logarithm(_plausible_contrast(features, front_end, level), front_end)
    deviation = TYPICAL_DEVIATION[config.kind]
    if config.kind == "mfcc":
        # Coefficients of high order average 0 before normalisation, whoever speaks: that is where zero was.
        features = features - features[:, config.num_mfcc // 2 :].mean()
    logarithm = _log_mel(features * deviation, front_end)
    if float(logarithm.max() - logarithm.min()) < SILENT_RANGE:
        return features.new_zeros(len(features), config.num_bins)
    # Gain is an offset here; as much as fits, so that none of the range is lost before the level is set.
    magnitude = _undo_mel(logarithm - logarithm.max() + _highest_log_mel(front_end), front_end)
    return magnitude * (level / _root_mean_square(magnitude, front_end))


def _plausible_contrast(
    features: Float[Tensor, "T bins"], front_end: FrontEnd, level: float
) -> Float[Tensor, "T bins"]:
    """log(1 + magnitude) from its normalised form x: a (x - q), where q and a stand for the lost mean and deviation.

    Quiet bins of speech are near 0 (below 1e-3 for one bin in a hundred), so q is the 0.1 % quantile, not the minimum,
    which one wrong value would move. The level rises with a, so bisection finds the a that gives the level wanted.
    """
    floor = features.flatten().kthvalue(1 + features.numel() // 1000).values
    above = (features - floor).clamp_min(0)
    low, high = 0.0, float(front_end.window.sum().log1p() / above.max().clamp_min(1e-6))
    for _ in range(40):
        middle = (low + high) / 2
        too_loud = _root_mean_square((middle * above).expm1(), front_end) > level
        low, high = (low, middle) if too_loud else (middle, high)
    return high * above


def _undo_logarithm(features: Float[Tensor, "T F"], front_end: FrontEnd) -> Float[Tensor, "T bins"]:
    """Magnitudes from features before normalisation."""
    if front_end.config.kind == "log_spectrogram":
        # No waveform within [-1, 1] goes beyond the sum of the window, so nothing overflows.
        return features.clamp(min=0.0, max=float(front_end.window.sum().log1p())).expm1()
    return _undo_mel(_log_mel(features, front_end), front_end)


def _log_mel(features: Float[Tensor, "T F"], front_end: FrontEnd) -> Float[Tensor, "T num_mel"]:
    """Log mel power; the rows of the transform are orthonormal, so its transpose is its pseudo-inverse."""
    return features @ front_end.dct if front_end.config.kind == "mfcc" else features


def _highest_log_mel(front_end: FrontEnd) -> float:
    """What no band of a waveform within [-1, 1] exceeds."""
    return float(2 * front_end.window.sum().log() + front_end.mel.sum(1).max().log())


def _undo_mel(logarithm: Float[Tensor, "T num_mel"], front_end: FrontEnd) -> Float[Tensor, "T bins"]:
    """Magnitudes, non-negative and smooth, whose mel power is the given one.

    Fewer bands than bins: many spectra fit. Multiplicative updates for the divergence (Lee and Seung, NIPS 2001, eq. 5)
    keep the shape of their start, which spreads each band evenly over its bins, where least squares would leave spikes.
    """
    filters = front_end.mel  # (num_mel, bins)
    power = logarithm.clamp(max=_highest_log_mel(front_end)).exp()
    power = torch.where(logarithm > math.log(MEL_POWER_FLOOR) + SILENT_RANGE, power, 0.0)
    weight = filters.sum(0).clamp_min(1e-12)  # 0 Hz and half the sample rate lie in no band
    estimate = (power / filters.sum(1)) @ filters / weight
    for _ in range(MEL_ITERATIONS):
        ratio = power / (estimate @ filters.mT).clamp_min(1e-30)
        estimate = estimate * (ratio @ filters / weight)
    return estimate.sqrt()


def _root_mean_square(magnitude: Float[Tensor, "T bins"], front_end: FrontEnd) -> Float[Tensor, ""]:
    """Of the waveform, by Parseval: a frame's energy over its window's, averaged over frames."""
    both_sides = 2 * magnitude.square().sum(1) - magnitude[:, 0].square() - magnitude[:, -1].square()
    return (both_sides.mean() / (front_end.config.n_fft * front_end.window.square().sum())).sqrt()
