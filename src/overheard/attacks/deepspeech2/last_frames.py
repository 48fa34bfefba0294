"""Whether each utterance has the last frames that its number of windows leaves open.

Windows of the first convolution start at every second frame, so that T - 1 frames may have as many windows as T. The
longest are assumed at first. What an utterance has too much is padding and comes out near zero, where features come out
well: nearer to their error than to speech, on a logarithmic scale. Where they do not, both lengths are fitted, the
shorter one with its last frames held at zero, and an utterance keeps them if they leave clearly less misfit in the few
frames of H that see them. One fit decides for all utterances, each by its own misfit.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.deepspeech2.conv_features import Evidence, FeatureSolution, solve_features
from overheard.attacks.deepspeech2.line_up import LineUp
from overheard.recognition.deepspeech2 import KERNELS, STRIDES, DeepSpeech2Config

LONGER = 0.85
"""Part of the misfit that the longer of two fits must go below. Where it is wrong, its 257 unknowns more explain 3 % of
the noise in 6 frames of some 720 active units each; where it is right, it leaves 0.7 even of features at 15 dB."""

STEPS = 4
"""Gauss-Newton steps for the shorter lengths: features start where the longer ones ended."""


def open_frames(config: DeepSpeech2Config, utterances: LineUp, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Last frames of each utterance that it may lack with as many output frames."""
    found = []
    for (start, end), length in zip(utterances.spans, lengths, strict=True):
        count = end - start
        while config.output_length(count - 1) == length:
            count -= 1
        found.append(end - start - count)
    return tuple(found)


def small_ends(
    features: Float[Tensor, "T F"], utterances: LineUp, spare: tuple[int, ...], error: float
) -> tuple[int, ...]:
    """Last frames of each utterance that are nearer to an error than to speech.

    Args:
        features: of all utterances.
        utterances: where they are.
        spare: frames that each may lack.
        error: of the features, relative.
    """
    bound = error**0.5 * float(features[utterances.features].square().mean().sqrt())
    sizes = features.square().mean(dim=1).sqrt()
    found = []
    for (_, end), most in zip(utterances.spans, spare, strict=True):
        count = 0
        while count < most and float(sizes[end - 1 - count]) < bound:
            count += 1
        found.append(count)
    return tuple(found)


def fitted_ends(
    evidence: Evidence, best: FeatureSolution, utterances: LineUp, spare: tuple[int, ...], tolerance: float
) -> tuple[FeatureSolution, tuple[int, ...]]:
    """The features with last frames only where they explain more, and how many each utterance lacks.

    Args:
        evidence: of the longest utterances.
        best: their features.
        utterances: where they are.
        spare: last frames that each may lack.
        tolerance: residual at which features are exact.
    """
    shorter = _solved(evidence, best, utterances, spare, tolerance)
    before, after = (_misfits(evidence, each, utterances) for each in (best, shorter))
    dropped = tuple(
        0 if long < LONGER * short else count for long, short, count in zip(before, after, spare, strict=True)
    )
    if dropped == spare:
        return shorter, dropped
    if not any(dropped):
        return best, dropped
    return _solved(evidence, best, utterances, dropped, tolerance), dropped


def _solved(
    evidence: Evidence, best: FeatureSolution, utterances: LineUp, dropped: tuple[int, ...], tolerance: float
) -> FeatureSolution:
    """Features with some last frames held at zero."""
    spoken = utterances.features.clone()
    for (_, end), count in zip(utterances.spans, dropped, strict=True):
        spoken[end - count : end] = False
    front = replace(evidence.front, utterances=replace(utterances, features=spoken))
    return solve_features(replace(evidence, front=front), best.features * spoken[:, None], STEPS, tolerance)


def _misfits(evidence: Evidence, solution: FeatureSolution, utterances: LineUp) -> list[float]:
    """Norm of what those of each utterance's frames are off by that see its last frame of features."""
    predicted = evidence.predict(solution.features)
    misfit = torch.where(evidence.checked(predicted), predicted - evidence.frames, 0.0).square().sum(dim=(0, 1))
    seeing = -(-KERNELS[0][1] // STRIDES[0][1]) + evidence.second.padding[1]
    places = utterances.outputs.nonzero()[:, 0]
    ends = (places.diff() > 1).nonzero()[:, 0] + 1
    return [float(misfit[some[-seeing:]].sum().sqrt()) for some in torch.tensor_split(places, ends)]
