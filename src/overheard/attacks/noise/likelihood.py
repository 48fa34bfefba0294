"""The features under which a noisy update is most likely: variable projection over the layers that see them.

A layer's update is D = G'A(X) + noise, A(X) (P, C) what it was shown, one row a position, and G (P, R) unknown. For
given features X the best G is in closed form, which leaves f(X) = |D (1 - P_A)|^2 with P_A the projector on the row
space of A (Golub and Pereyra 1973). No rank is cut: every direction of the span weighs by its own singular value
against the noise, and those below the noise weigh nothing. Beside the layer that sees windows there is the one behind
its activation, whose update is far from full rank: for every position it has several times as many equations.

Each layer's noise has an unknown level. The likelihood over all of them is then sum_l n_l / 2 log f_l, n_l = R_l (C_l -
P), so a layer that fits worse from afar waits for the other. Gauss-Newton with the Jacobian of Kaufman (1975), -G'dA (1
- P_A): the normal operator is dX -> sum over windows of (GG') dA (1 - P_A), solved by conjugate gradients that the
banded Cholesky factor of the same sum with GG' replaced by its mean diagonal preconditions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor

from overheard.attacks.noise.layer_fits import NoisyLayer, WholeFit, fit_whole
from overheard.attacks.noise.masked_fit import MaskedFit, fit_masked
from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.windows import WindowedLayer

MOST_STEPS = 30
MOST_ITERATIONS = 40
CLOSE_ENOUGH = 3e-2
"""Relative accuracy of conjugate gradients, in the preconditioner's norm; Gauss-Newton makes up for the rest."""
STANDS_STILL = 1e-3
"""Fall of the logarithm of the likelihood, per unknown, at which features change by less than their own error."""
DRAWS = 2
"""Of the error that the noise causes."""
PROBE_ITERATIONS = 400
PROBED = 0.1
"""Relative accuracy in which the normal equations of entries are solved for their error."""


@dataclass(frozen=True)
class LikelyFeatures:
    """The most likely features, and how well an update of such noise determines them.

    Attributes:
        features: (T_i, F) of each utterance.
        deviations: of each layer's noise, in the unit of its update, from what the features leave unexplained.
        predicted_error: root mean square error that the noise causes, relative to the features' root mean square.
        errors: (D, T_i, F) draws of that error for each utterance; none where it is found otherwise.
        steps: of Gauss-Newton.
        iterations: of conjugate gradients, in all.
        settled: whether the last step changed nothing any more.
    """

    features: tuple[Float[Tensor, "_ F"], ...]
    deviations: tuple[float, ...]
    predicted_error: float
    errors: tuple[Float[Tensor, "D _ F"], ...]
    steps: int
    iterations: int
    settled: bool


def most_likely_features(
    start: Sequence[Float[Tensor, "_ F"]],
    layers: Sequence[NoisyLayer],
    windowed: WindowedLayer,
    generator: torch.Generator,
    most_steps: int = MOST_STEPS,
) -> LikelyFeatures:
    """Gauss-Newton from a first guess of the right lengths, such as the closed form's.

    Args:
        start: (T_i, F) of each utterance, whose windows together are all that the layers were shown.
        layers: updates of the windowed layer, of the one behind it, or of both; float64.
        windowed: how the windows lie.
        generator: of the draws from which the error is predicted.
        most_steps: of Gauss-Newton.
    """
    cut = _Cut(windowed, tuple(map(len, start)))
    features = torch.cat([each.double() for each in start])
    state = _fit(features, layers, cut)
    steps, iterations, settled = 0, 0, False
    solve = _solver(state, cut)
    while steps < most_steps and not settled:
        steps += 1
        change, count = solve(cut.gather(torch.stack([each.pull() for each in state]).sum(dim=0)))
        iterations += count
        scale, after = 1.0, _fit(features + change, layers, cut)
        while _height(after) >= _height(state) and scale > 1e-2:
            scale /= 2
            after = _fit(features + scale * change, layers, cut)
        fall = _height(state) - _height(after)
        if fall <= 0:
            settled = True
            break
        features, state = features + scale * change, after
        solve = _solver(state, cut)
        settled = fall < STANDS_STILL * features.numel()
    error, errors = _predicted_error(features, state, cut, solve, generator)
    return LikelyFeatures(
        features=torch.split(features, list(cut.lengths)),
        deviations=tuple(each.variance**0.5 for each in state),
        predicted_error=error,
        errors=tuple(torch.split(errors, list(cut.lengths), dim=1)) if len(errors) else (),
        steps=steps,
        iterations=iterations,
        settled=settled,
    )


Fit = WholeFit | MaskedFit


class _Cut:
    """Frames of all utterances to windows of all, and back."""

    def __init__(self, windowed: WindowedLayer, lengths: tuple[int, ...]) -> None:
        self.windowed, self.lengths = windowed, lengths

    def windows(self, frames: Float[Tensor, "T F"]) -> Float[Tensor, "P K"]:
        return torch.cat([self.windowed.windows(each) for each in torch.split(frames, list(self.lengths))])

    def gather(self, windows: Float[Tensor, "P K"]) -> Float[Tensor, "T F"]:
        """Transpose of `windows`."""
        layer = self.windowed
        counts = [layer.num_positions(length) for length in self.lengths]
        found = []
        for length, part in zip(self.lengths, torch.split(windows, counts), strict=True):
            places = part.view(len(part), layer.window, layer.num_features)
            reach = max(length + layer.before, (len(part) - 1) * layer.stride + layer.window)
            rows = part.new_zeros(reach, layer.num_features)
            for place in range(layer.window):
                rows[place : place + (len(part) - 1) * layer.stride + 1 : layer.stride] += places[:, place]
            found.append(rows[layer.before : layer.before + length])
        return torch.cat(found)


def _fit(features: Float[Tensor, "T F"], layers: Sequence[NoisyLayer], cut: _Cut) -> list[Fit]:
    windows = cut.windows(features)
    return [
        fit_whole(layer, windows, features.numel())
        if layer.mask is None
        else fit_masked(layer, layer.mask, windows, features.numel())
        for layer in layers
    ]


def _height(state: list[Fit]) -> float:
    """Minus the logarithm of the likelihood, but for a constant."""
    tiny = torch.finfo(torch.float64).tiny
    return sum(each.equations / 2 * math.log(max(each.square, tiny)) for each in state)


Solve = Callable[[Float[Tensor, "T F"]], tuple[Float[Tensor, "T F"], int]]


def _solver(
    state: list[Fit],
    cut: _Cut,
    kind: torch.dtype = torch.float32,
    most: int = MOST_ITERATIONS,
    enough: float = CLOSE_ENOUGH,
) -> Solve:
    """Solve the normal equations of all layers: preconditioned conjugate gradients."""
    size = cut.windowed.window * cut.windowed.num_features
    block = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    block[:-1, :-1] = sum(each.block() for each in state)
    factors = {length: _factor(block, cut.windowed, length) for length in set(cut.lengths)}

    def precondition(vector: Tensor) -> Tensor:
        parts = []
        for part in torch.split(vector, list(cut.lengths)):
            flat = cho_solve_banded(factors[len(part)], part.flatten().numpy(), check_finite=False)
            parts.append(torch.from_numpy(flat).view_as(part))
        return torch.cat(parts)

    operators = [each.operator(kind) for each in state]

    def operate(vector: Tensor) -> Tensor:
        windows = cut.windows(vector.to(kind))
        return cut.gather(torch.stack([each(windows) for each in operators]).sum(dim=0)).double()

    def solve(right: Tensor) -> tuple[Tensor, int]:
        solution, rest = torch.zeros_like(right), right.clone()
        step = shifted = precondition(rest)
        size = first = float((rest * shifted).sum())
        count = 0
        while count < most and size > enough**2 * first:
            product = operate(step)
            length = size / float((step * product).sum())
            solution, rest, count = solution + length * step, rest - length * product, count + 1
            shifted = precondition(rest)
            size, former = float((rest * shifted).sum()), size
            step = shifted + size / former * step
        return solution, count

    return solve


def _factor(block: Float[Tensor, "C C"], windowed: WindowedLayer, num_frames: int) -> tuple[np.ndarray, bool]:
    band, _ = normal_equations(block, windowed, num_frames)
    # A trace of the identity: unknowns that no equation holds would leave it singular.
    band[0] += 1e-10 * band[0].mean()
    return cholesky_banded(band, lower=True, check_finite=False), True


def _predicted_error(
    features: Float[Tensor, "T F"], state: list[Fit], cut: _Cut, solve: Solve, generator: torch.Generator
) -> tuple[float, Float[Tensor, "D T F"]]:
    """Root mean square error that the noise found causes, relative to the features', infinite where it has no bound;
    and draws of it, none where entries are missing."""
    size = max(float(features.square().mean()), torch.finfo(torch.float64).tiny)
    whole = [each for each in state if isinstance(each, WholeFit)]
    if len(whole) < len(state):
        return (_mean_variance(features, state, cut, generator) / size) ** 0.5, features.new_zeros(0, *features.shape)
    pulls = [torch.stack([each.drawn(generator) for each in whole]).sum(dim=0) for _ in range(DRAWS)]
    errors = torch.stack([solve(cut.gather(pull))[0] for pull in pulls])
    return (float(errors.square().mean()) / size) ** 0.5, errors


def _mean_variance(features: Float[Tensor, "T F"], state: list[Fit], cut: _Cut, generator: torch.Generator) -> float:
    """Mean of the diagonal of the normal equations' inverse, by a random probe (Hutchinson 1990).

    Entries that are missing may leave directions of features undetermined. Noise shows nothing along these, a probe
    does: solving for it does not end.
    """
    solve = _solver(state, cut, torch.float64, PROBE_ITERATIONS, PROBED)
    probe = torch.randn(features.shape, generator=generator, dtype=torch.float64).sign()
    found, count = solve(probe)
    return float((probe * found).mean()) if count < PROBE_ITERATIONS else math.inf
