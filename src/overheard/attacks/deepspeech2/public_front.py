"""What the public model makes of features before its first recurrence, run as the client ran it.

Steps 3 and 4 of the attack on DeepSpeech 2 hold for two convolutions with folded norms and a rectifier behind each.
Whether a model has that in front, and units that were dropped, shows in what it makes of noise.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.deepspeech2.conv_front import make_front, make_second
from overheard.federation.update import Mode
from overheard.recognition.deepspeech2 import DeepSpeech2
from overheard.recognition.normalisation import MaskedBatchNorm

FRAMES = 12
"""Output frames of noise by which a front is judged."""

SAME = 1e-6
"""Relative difference up to which two values in float64 are one."""

SILENT = 1e-3
"""Part of the mean of all units below which one counts as zero."""

FEW_ZEROS = 0.01
"""Part of the units that are exactly zero below which a front counts as smooth."""


@dataclass(frozen=True)
class FrontKind:
    """What stands before the first recurrence.

    Attributes:
        scale: how many times larger its units are than two convolutions with folded norms and a rectifier behind each
            make them, 1 / (1 - p) where a share p is dropped; None where they are others.
        mixes: a norm that mixes frames ran, in training mode or over groups.
        smooth: hardly a unit is exactly zero.
    """

    scale: float | None
    mixes: bool
    smooth: bool


def kind_of(model: DeepSpeech2, mode: Mode) -> FrontKind:
    """Judge a model's front by what it makes of noise."""
    public = _copy(model, mode)
    generator = torch.Generator().manual_seed(0)
    length = model.config.minimum_frames + 2 * FRAMES
    device = next(model.parameters()).device
    noise = torch.randn(length, model.front_end.num_features, generator=generator, dtype=torch.float64).to(device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = _frames(public, noise)
    norms = public.convolution_norms
    mixes = any(norm.training or not isinstance(norm, MaskedBatchNorm) for norm in norms)
    scale = None if mixes else _scale(model, noise, given)
    return FrontKind(scale, mixes, float((given == 0).double().mean()) < FEW_ZEROS)


def hindrance_of(kind: FrontKind) -> str | None:
    """Why features do not follow from frames; None where they may."""
    if kind.mixes:
        return "the norm mixes frames, and only batch norm in evaluation mode is folded into the convolutions"
    if kind.scale is None and not kind.smooth:
        return "what is before the recurrence is neither smooth nor two convolutions with a rectifier behind each"
    return None


def numbers_told(frames: Float[Tensor, "P C"], weight_update: Tensor | None) -> int:
    """At most so many independent numbers about features: units that are not zero, and an update of weights."""
    units = int((frames.abs() > SILENT * frames.abs().mean()).sum())
    return units + (0 if weight_update is None else weight_update.numel())


def run_front(model: DeepSpeech2, mode: Mode) -> Callable[[Float[Tensor, "T F"]], Float[Tensor, "P C"]]:
    """All frames from the features of an utterance; differentiable, in float32 or float64 as the features are.

    Args:
        model: the public model.
        mode: in which the client ran it.
    """
    copies = {dtype: _copy(model, mode).to(dtype).requires_grad_(False) for dtype in (torch.float32, torch.float64)}
    return lambda features: _frames(copies[features.dtype], features)


def _frames(model: DeepSpeech2, features: Float[Tensor, "T F"]) -> Float[Tensor, "P C"]:
    return model.convolved(features[:, None], torch.tensor([len(features)], device=features.device))[:, 0]


def _copy(model: DeepSpeech2, mode: Mode) -> DeepSpeech2:
    """In float64 and in the client's mode; running statistics that its use moves are its own."""
    return deepcopy(model).double().train(mode == "train")


def _scale(model: DeepSpeech2, noise: Float[Tensor, "T F"], given: Float[Tensor, "P C"]) -> float | None:
    front, second = make_front(model), make_second(model)
    activations = front.pre_activations(noise).clamp(0.0, front.clip)
    before = second.convolve(activations) + second.bias[:, None, None]
    folded = before.clamp(0.0, front.clip).flatten(0, 1).T  # (P, C)
    kept = given != 0
    if not bool(kept.any()):
        return None
    scale = float((given[kept] / folded[kept]).median())
    off = float((given - scale * folded)[kept].abs().max())
    return scale if off < SAME * float(given.abs().max()) else None
