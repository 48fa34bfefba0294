"""Features from what both convolutions of DeepSpeech 2 have shown: a convex start, then Gauss-Newton.

Known are the frames H = clamp(W_2 * z + b_2), with their exact zeros, and the linear equations M z = dW of the second
convolution's update (`activation_equations`), for z = clamp(W_1 * x + b_1) and unknown features x (T, F).

    start       z that solves M z = dW and is nowhere negative, by Douglas-Rachford splitting: both sets are convex.
                Most of z is zero, and zeros that are found are equations, so this comes close well beyond the length at
                which M z = dW alone has one solution.
    fit         x by least squares on the clearly active units of that z.
    polish      least |P c (z(x) - z*)|^2 + mu |c' (W_2 * z(x) + b_2 - H)|^2 on units of H that are active, or wrongly
                predicted to be; P the projection on what the update determines, c the lengths of its columns, c' their
                mean over a window. Which units of z are active follows from x; for fixed ones the problem is linear,
                and a few conjugate gradients, preconditioned by `edge_features`, solve it well enough.
                648 and 2,500 equations stand against 514 unknowns for each output frame.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overheard.attacks.conjugate_gradients import conjugate_gradients
from overheard.attacks.deepspeech2.activation_equations import ActivationEquations
from overheard.attacks.deepspeech2.conv_front import Front, Second
from overheard.attacks.deepspeech2.edge_features import preconditioner

FRAME_WEIGHT = 3.0
"""mu: brings the eigenvalues of both terms to the same size with weights as they are initialised."""

ENERGY = 1e-4
"""Part of the energy of a step's right side at which its conjugate gradients stop: what units switch in the step leaves
more than that."""

SETTLED = 2e-3
"""Part of the features that the last step may still have changed; the error is several times smaller after it."""


@dataclass(frozen=True)
class Evidence:
    """All that is known about the features.

    Attributes:
        front: the first layer.
        second: the second layer.
        equations: what its update says about activations.
        frames: H by channel, frequency and frame, zero or saturated where units are not active.
        active: units of H above zero and not saturated.
        frame_weights: mu c'^2, zero in channels whose active units are in doubt.
        dropped: a unit of H may be zero because it was dropped, which says nothing about it.
    """

    front: Front
    second: Second
    equations: ActivationEquations
    frames: Float[Tensor, "O J P"]
    active: Bool[Tensor, "O J P"]
    frame_weights: Float[Tensor, "O J P"]
    dropped: bool = False

    def predict(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "O J P"]:
        """What the second rectifier is given by features."""
        activations = self.front.pre_activations(features).clamp(0.0, self.front.clip)
        return self.second.convolve(activations) + self.second.bias[:, None, None]

    def checked(self, predicted: Float[Tensor, "O J P"]) -> Bool[Tensor, "O J P"]:
        """Units of H that count: active ones and those wrongly predicted to be."""
        saturated = self.frames >= self.front.clip
        above = torch.zeros_like(saturated) if self.dropped else (predicted > 0) & ~saturated
        wrong = above | saturated & (predicted < self.front.clip)
        return (self.frame_weights > 0) & (self.active | wrong)


def make_evidence(
    front: Front,
    second: Second,
    equations: ActivationEquations,
    frames: Float[Tensor, "O J P"],
    active: Bool[Tensor, "O J P"],
    trusted: Bool[Tensor, "O 1 P"],
    dropped: bool = False,
) -> Evidence:
    """Evidence whose two parts weigh alike everywhere.

    Args:
        front: the first layer.
        second: the second layer.
        equations: what its update says about activations.
        frames: H, rounding included.
        active: its units above zero and not saturated.
        trusted: channels of H whose active units are not in doubt, at frames that belong to an utterance.
        dropped: units may be zero that are not.
    """
    # A unit that passes nothing on is exactly zero or exactly saturated, whatever rounding made of it.
    silent = torch.where(frames >= 0.5 * front.clip, front.clip, torch.zeros_like(frames))
    known = torch.where(active, frames, silent)
    weights = FRAME_WEIGHT * trusted * second.mean(equations.lengths.square())
    return Evidence(front, second, equations, known, active, weights, dropped)


@dataclass(frozen=True)
class FeatureSolution:
    """Features, and how well they explain what is known.

    Attributes:
        features: (T, F).
        residual: of the activations that the features give, the part that the update contradicts; relative.
        frame_residual: of the frames that they give; relative.
        change: of the features in the last step, relative: what their error was before it, and at most is after it.
        steps: Gauss-Newton steps taken.
    """

    features: Float[Tensor, "T F"]
    residual: float
    frame_residual: float
    change: float
    steps: int


@dataclass(frozen=True)
class _Point:
    """Features and all that is computed from them.

    Attributes:
        features: (T, F).
        active: units of z above zero and not saturated.
        misfit: c (z - z*), z* the nearest solution of M z = dW.
        checked: units of H that count.
        frame_misfit: of the units that count.
        cost: the sum that is minimised.
        size: |c z|^2.
    """

    features: Float[Tensor, "T F"]
    active: Bool[Tensor, "C K U"]
    misfit: Float[Tensor, "C K U"]
    checked: Bool[Tensor, "O J P"]
    frame_misfit: Float[Tensor, "O J P"]
    cost: float
    size: float


def start_features(evidence: Evidence, num_frames: int, num_features: int) -> Float[Tensor, "T F"]:
    """Features that fit the non-negative solution of the linear equations.

    Args:
        evidence: what is known.
        num_frames: T.
        num_features: F.
    """
    front = evidence.front
    front = replace(front, weight=front.weight.float(), bias=front.bias.float())
    nothing = front.weight.new_zeros(num_frames, num_features)
    start = _non_negative_solution(front, evidence.equations, front.pre_activations(nothing).clamp(0.0, front.clip))
    return _fit_features(front, nothing, start).double()


def solve_features(
    evidence: Evidence, start: Float[Tensor, "T F"], most_steps: int, tolerance: float
) -> FeatureSolution:
    """Features from both layers' evidence; stops when residual and steps are small or the residual no longer falls.

    Args:
        evidence: what is known.
        start: features near them.
        most_steps: Gauss-Newton steps at most.
        tolerance: residual at which features are exact.
    """
    here = _look(evidence, start)
    target = tolerance**2 * here.size
    steps, stalled, change = 0, 0, 1.0
    while steps < most_steps and (here.cost > target or change > SETTLED) and stalled < 2:
        moved = _step(evidence, here)
        if moved is None:
            break
        stalled = stalled + 1 if moved.cost > 0.8 * here.cost else 0
        change = float((moved.features - here.features).norm() / moved.features.norm())
        here, steps = moved, steps + 1
    scale = float(evidence.frames.norm()) or 1.0
    return FeatureSolution(
        here.features,
        float(here.misfit.norm()) / here.size**0.5,
        float(here.frame_misfit.norm()) / scale,
        change,
        steps,
    )


def _non_negative_solution(
    front: Front, equations: ActivationEquations, start: Float[Tensor, "C K U"], most_steps: int = 30
) -> Float[Tensor, "C K U"]:
    """A point of both convex sets, or near both, by Douglas-Rachford splitting, in the start's precision."""
    point = start
    rectified = point
    for _ in range(most_steps):
        rectified = point.clamp(0.0, front.clip)
        solution = equations.nearest(2 * rectified - point)
        point = point + solution - rectified
        if float((solution - rectified).norm()) < 1e-2 * float(solution.norm()):
            break
    return rectified


def _fit_features(
    front: Front, features: Float[Tensor, "T F"], activations: Float[Tensor, "C K U"], steps: int = 25
) -> Float[Tensor, "T F"]:
    """Least squares on units that are clearly active: a small value may be an error on a unit far below zero."""
    clear = activations > 0.5 * activations.square().mean().sqrt()
    clear &= activations < 0.99 * front.clip
    misfit = torch.where(clear, front.pre_activations(features) - activations, 0.0)

    def normal(change: Tensor) -> Tensor:
        return front.convolve_transposed(torch.where(clear, front.convolve(change), 0.0), *features.shape)

    slope = front.convolve_transposed(misfit, *features.shape)
    # Few steps and a plain diagonal leave what windows hardly see as it is: there the start is mostly error.
    energy = front.energy(clear.to(features), *features.shape)
    return features + conjugate_gradients(normal, -slope, lambda residual: residual / energy, steps)


def _look(evidence: Evidence, features: Float[Tensor, "T F"]) -> _Point:
    front = evidence.front
    before = front.pre_activations(features)
    activations = before.clamp(0.0, front.clip)
    lengths = evidence.equations.lengths
    misfit = lengths * (activations - evidence.equations.nearest(activations))
    predicted = evidence.predict(features)
    checked = evidence.checked(predicted)
    frame_misfit = torch.where(checked, predicted - evidence.frames, 0.0)
    cost = float(misfit.square().sum()) + float((evidence.frame_weights * frame_misfit.square()).sum())
    active = (before > 0) & (before < front.clip)
    return _Point(features, active, misfit, checked, frame_misfit, cost, float((lengths * activations).square().sum()))


def _step(evidence: Evidence, here: _Point, most_steps: int = 60) -> _Point | None:
    """A Gauss-Newton step, shortened until it helps; None if it does not. Its inside runs in float32.

    Args:
        evidence: what is known.
        here: where to start.
        most_steps: of conjugate gradients.
    """
    front, second, shape = evidence.front, evidence.second, here.features.shape
    lengths, weights = evidence.equations.lengths, evidence.frame_weights
    grid = (here.misfit.shape[1], here.misfit.shape[2])
    pull = lengths * here.misfit + second.convolve_transposed(weights * here.frame_misfit, grid)
    slope = front.convolve_transposed(torch.where(here.active, pull, 0.0), *shape)
    size = float(slope.norm())
    if size == 0.0:
        return None
    rough = replace(front, weight=front.weight.float(), bias=front.bias.float())
    rough_second = replace(second, weight=second.weight.float(), bias=second.bias.float())
    rough_lengths, rough_weights = lengths.float(), torch.where(here.checked, weights.float(), 0.0)

    counted = here.active * rough_lengths.square()

    def normal(change: Tensor) -> Tensor:
        moved = torch.where(here.active, rough.convolve(change), 0.0)
        framed = rough_weights * rough_second.convolve(moved)
        seen = rough_lengths * evidence.equations.determined(moved) + rough_second.convolve_transposed(framed, grid)
        return rough.convolve_transposed(torch.where(here.active, seen, 0.0), *shape)

    precondition = preconditioner(rough, counted, *shape)
    change = conjugate_gradients(normal, (-slope / size).float(), precondition, most_steps, ENERGY)
    for part in (1.0, 0.5, 0.25, 0.1, 0.03):
        there = _look(evidence, here.features + part * size * change.double())
        if there.cost < here.cost:
            return there
    return None
