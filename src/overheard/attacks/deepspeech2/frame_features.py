"""Features from frames alone, where the layers before the recurrence are smooth.

A front without a rectifier loses nothing: its frames H = phi(x) are 1,440 equations for the 514 unknowns that each
adds, so x is least |phi(x) - H|^2, by Gauss-Newton from silence on. A rectifier hides about
half of both layers, and what is left is too near the number of unknowns for that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn import functional

from overheard.attacks.conjugate_gradients import conjugate_gradients
from overheard.attacks.deepspeech2.conv_features import FeatureSolution

DAMPING = 1e-3
"""Of the first step, relative to the mean curvature; a fifth of it in each one that succeeds."""

PROBES = 8
"""Random frames that tell the curvature of each feature."""

NEIGHBOURS = 4
"""Frames on each side whose curvature is averaged: it is much alike along time."""

REST = 1e-5
"""Part of the energy of a step's right side at which its conjugate gradients stop."""

STALLED, SMALL = 0.9, 1e-3
"""Part of the residual that is left, and of the features that changed, in a step that no longer gains."""

MOVED, AGAIN, STEPS_BACK = 0.05, 1e-6, 3
"""Part by which features are moved to be found again, with which damping, and in how many steps."""

Frames = Callable[[Float[Tensor, "T F"]], Float[Tensor, "P C"]]


@dataclass(frozen=True)
class _Point:
    features: Float[Tensor, "T F"]
    misfit: Float[Tensor, "P C"]
    damping: float


def solve_from_frames(
    frames_of: Frames,
    frames: Float[Tensor, "P C"],
    start: Float[Tensor, "T F"],
    most_steps: int,
    generator: torch.Generator,
) -> FeatureSolution:
    """Features whose frames are those known, found once more from features moved a little.

    Args:
        frames_of: phi, in the precision of its argument.
        frames: H, float64.
        start: features to start from.
        most_steps: Gauss-Newton steps at most.
        generator: of probes and the move.

    Returns:
        Features. Both residuals are relative to how much frames vary; `change` is how far the second solution is from
        the first: what the frames do not tell stays moved.
    """
    varied = float((frames - frames.mean(dim=0)).norm()) or 1.0
    here, steps = _descend(frames_of, frames, _Point(start, frames_of(start) - frames, DAMPING), most_steps, generator)
    noise = torch.randn(start.shape, generator=generator).to(start)
    moved = here.features + MOVED * float(here.features.norm() / noise.norm()) * noise
    again, more = _descend(frames_of, frames, _Point(moved, frames_of(moved) - frames, AGAIN), STEPS_BACK, generator)
    change = float((again.features - here.features).norm() / here.features.norm().clamp(min=1e-300))
    residual = float(here.misfit.norm()) / varied
    return FeatureSolution(here.features, residual, residual, change, steps + more)


def _descend(
    frames_of: Frames, frames: Float[Tensor, "P C"], here: _Point, most_steps: int, generator: torch.Generator
) -> tuple[_Point, int]:
    """Damped Gauss-Newton steps until they no longer gain, and their number."""
    for steps in range(most_steps):
        moved, damping = None, here.damping
        while moved is None and damping < 1.0:
            features = here.features + _step(frames_of, here, damping, generator)
            misfit = frames_of(features) - frames
            if float(misfit.norm()) < float(here.misfit.norm()):
                moved = _Point(features, misfit, damping / 5)
            damping = max(10 * damping, AGAIN)
        if moved is None:
            return here, steps
        stalled = float(moved.misfit.norm()) > STALLED * float(here.misfit.norm())
        small = float((moved.features - here.features).norm()) < SMALL * float(moved.features.norm())
        here = moved
        if stalled and small:
            return here, steps + 1
    return here, most_steps


def _step(
    frames_of: Frames, here: _Point, damping: float, generator: torch.Generator, most_gradients: int = 40
) -> Float[Tensor, "T F"]:
    """A step; its inside runs in float32."""
    at, size = here.features.float(), float(here.misfit.norm()) or 1.0
    back = vjp(frames_of, at)[1]

    def slope(values: Tensor) -> Tensor:
        return back(values)[0]

    curvature = torch.zeros_like(at)
    for _ in range(PROBES):
        drawn = torch.randn(here.misfit.shape, generator=generator).to(at)
        curvature += slope(drawn).square() / PROBES
    padded = functional.pad(curvature.T[None], (NEIGHBOURS, NEIGHBOURS), mode="replicate")
    curvature = functional.avg_pool1d(padded, 2 * NEIGHBOURS + 1, 1)[0].T
    ridge = damping * float(curvature.mean())

    def normal(change: Tensor) -> Tensor:
        return slope(jvp(frames_of, (at,), (change,))[1]) + ridge * change

    right = -slope((here.misfit / size).float())
    return (
        size
        * conjugate_gradients(normal, right, lambda rest: rest / (curvature + ridge), most_gradients, REST).double()
    )
