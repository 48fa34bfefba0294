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
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor, nn

from overheard.attacks.pointwise import Activation
from overheard.attacks.span_equations import normal_equations
from overheard.attacks.windows import WindowedLayer

MOST_STEPS = 30
MOST_ITERATIONS = 40
CLOSE_ENOUGH = 3e-2
"""Relative accuracy of conjugate gradients, in the preconditioner's norm; Gauss-Newton makes up for the rest."""
STANDS_STILL = 1e-7
"""Fall of the logarithm of the likelihood, per equation, at which features change by less than their own error."""


@dataclass(frozen=True)
class NoisyLayer:
    """One layer's noisy update, and how its inputs follow from the windows.

    Attributes:
        matrix: D, each column over its scale; the last is the bias's where `affine`. Rows may be any rotation of the
            units'.
        rows: R, units that `matrix` stands for.
        affine: whether the constant is one of its inputs.
        scales: of the columns' noise.
        weight: W of the windowed layer for the layer behind it, (H, windowed); None for the windowed layer itself.
        bias: b.
        activation: of the windowed layer's outputs.
    """

    matrix: Float[Tensor, "R C"]
    rows: int
    affine: bool
    scales: Float[Tensor, " C"]
    weight: Float[Tensor, "H K"] | None = None
    bias: Float[Tensor, " H"] | None = None
    activation: Activation | None = None

    def inputs(self, windows: Float[Tensor, "P K"]) -> tuple[Float[Tensor, "P C"], Float[Tensor, "P2 H"]]:
        """A over the scales, and the slopes of its columns but the constant's, one row where all rows are equal."""
        slopes = torch.ones_like(windows[:1])
        if self.weight is not None and self.bias is not None and self.activation is not None:
            windows, slopes = self.activation(windows @ self.weight.T + self.bias)
        inputs = nn.functional.pad(windows, (0, 1), value=1.0) if self.affine else windows
        return inputs / self.scales, slopes / self.scales[: slopes.shape[1]]


@dataclass(frozen=True)
class LikelyFeatures:
    """The most likely features, and how well an update of such noise determines them.

    Attributes:
        features: (T_i, F) of each utterance.
        deviations: of each layer's noise, in the unit of its update, from what the features leave unexplained.
        predicted_error: root mean square error that the noise causes, relative to the features' root mean square.
        steps: of Gauss-Newton.
        iterations: of conjugate gradients, in all.
        settled: whether the last step changed nothing any more.
    """

    features: tuple[Float[Tensor, "_ F"], ...]
    deviations: tuple[float, ...]
    predicted_error: float
    steps: int
    iterations: int
    settled: bool


@dataclass(frozen=True)
class _Fitted:
    """A layer at given features: Q (C, P) spans the rows of A, G (P, R) is the best, E = D - G'A is what is left."""

    layer: NoisyLayer
    inside: Float[Tensor, "C P"]
    triangle: Float[Tensor, "P P"]
    shown: Float[Tensor, "R P"]
    rest: Float[Tensor, "R C"]
    slopes: Float[Tensor, "P2 H"]
    unknowns: int

    @cached_property
    def square(self) -> float:
        return float(self.rest.square().sum())

    @property
    def equations(self) -> int:
        return self.layer.rows * (self.inside.shape[0] - self.inside.shape[1])

    @property
    def variance(self) -> float:
        """Of the noise, as these features leave it."""
        return self.square / max(1, self.equations - self.unknowns)

    @cached_property
    def gradients(self) -> Float[Tensor, "P R"]:
        """G over the noise's deviation."""
        return torch.linalg.solve_triangular(self.triangle, self.shown.T, upper=True) / self.variance**0.5

    @cached_property
    def weights(self) -> Float[Tensor, "P P"]:
        """GG'."""
        return self.gradients @ self.gradients.T

    @cached_property
    def columns(self) -> Float[Tensor, "K P"]:
        """Q without the constant's row."""
        return self.inside[:-1] if self.layer.affine else self.inside

    def pulled(self, inputs: Float[Tensor, "P H"]) -> Float[Tensor, "P K"]:
        """From the layer's inputs back to the windows."""
        inputs = inputs * self.slopes
        return inputs if self.layer.weight is None else inputs @ self.layer.weight

    def pull(self) -> Float[Tensor, "P K"]:
        """Minus half the derivative of f over the noise's variance, by windows."""
        return self.pulled((self.gradients @ self.rest)[:, : len(self.columns)] / self.variance**0.5)

    def drawn(self, generator: torch.Generator) -> Float[Tensor, "P K"]:
        """`pull` of noise alone, a draw of it."""
        root = torch.linalg.cholesky_ex(self.weights)[0]
        inputs = root @ torch.randn(len(root), len(self.columns), generator=generator, dtype=root.dtype)
        return self.pulled(inputs - (inputs @ self.columns) @ self.columns.T)

    def operator(self) -> Callable[[Float[Tensor, "P K"]], Float[Tensor, "P K"]]:
        """Change of windows to this layer's part of the normal equations; float32, which is all that they need."""
        weights, columns, slopes = self.weights.float(), self.columns.float(), self.slopes.float()
        weight = None if self.layer.weight is None else self.layer.weight.float()

        def operate(windows: Tensor) -> Tensor:
            change = (windows if weight is None else windows @ weight.T) * slopes
            change = (weights @ (change - (change @ columns) @ columns.T)) * slopes
            return change if weight is None else change @ weight

        return operate

    def block(self) -> Float[Tensor, "K K"]:
        """The mean over positions of one window's part of the normal operator."""
        together = (self.slopes.T @ self.slopes) / len(self.slopes) * self.weights.diagonal().mean()
        together = together * (torch.eye(len(together), dtype=together.dtype) - self.columns @ self.columns.T)
        weight = self.layer.weight
        return together if weight is None else weight.T @ (together @ weight)


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
        settled = fall < STANDS_STILL * sum(each.equations for each in state)
    return LikelyFeatures(
        features=torch.split(features, list(cut.lengths)),
        deviations=tuple(each.variance**0.5 for each in state),
        predicted_error=_predicted_error(features, state, cut, solve, generator),
        steps=steps,
        iterations=iterations,
        settled=settled,
    )


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


def _fit(features: Float[Tensor, "T F"], layers: Sequence[NoisyLayer], cut: _Cut) -> list[_Fitted]:
    windows = cut.windows(features)
    fitted = []
    for layer in layers:
        inputs, slopes = layer.inputs(windows)
        inside, triangle = torch.linalg.qr(inputs.T)
        shown = layer.matrix @ inside
        rest = layer.matrix - shown @ inside.T
        fitted.append(_Fitted(layer, inside, triangle, shown, rest, slopes, features.numel()))
    return fitted


def _height(state: list[_Fitted]) -> float:
    """Minus the logarithm of the likelihood, but for a constant."""
    tiny = torch.finfo(torch.float64).tiny
    return sum(each.equations / 2 * math.log(max(each.square, tiny)) for each in state)


Solve = Callable[[Float[Tensor, "T F"]], tuple[Float[Tensor, "T F"], int]]


def _solver(state: list[_Fitted], cut: _Cut) -> Solve:
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

    operators = [each.operator() for each in state]

    def operate(vector: Tensor) -> Tensor:
        windows = cut.windows(vector.float())
        return cut.gather(torch.stack([each(windows) for each in operators]).sum(dim=0)).double()

    def solve(right: Tensor) -> tuple[Tensor, int]:
        solution, rest = torch.zeros_like(right), right.clone()
        step = shifted = precondition(rest)
        size = first = float((rest * shifted).sum())
        count = 0
        while count < MOST_ITERATIONS and size > CLOSE_ENOUGH**2 * first:
            product = operate(step)
            length = size / float((step * product).sum())
            solution, rest, count = solution + length * step, rest - length * product, count + 1
            shifted = precondition(rest)
            size, former = float((rest * shifted).sum()), size
            step = shifted + size / former * step
        return solution, count

    return solve


def _factor(block: Float[Tensor, "C C"], windowed: WindowedLayer, num_frames: int) -> tuple[np.ndarray, bool]:
    band, _ = normal_equations(block, windowed, num_frames, windowed.num_positions(num_frames))
    # A trace of the identity: unknowns that no equation holds would leave it singular.
    band[0] += 1e-10 * band[0].mean()
    return cholesky_banded(band, lower=True, check_finite=False), True


def _predicted_error(
    features: Float[Tensor, "T F"], state: list[_Fitted], cut: _Cut, solve: Solve, generator: torch.Generator
) -> float:
    """Errors drawn from the noise that was found, pushed through the normal equations: their relative size."""
    squares = []
    for _ in range(2):
        pull = torch.stack([each.drawn(generator) for each in state]).sum(dim=0)
        squares.append(float(solve(cut.gather(pull))[0].square().mean()))
    size = max(float(features.square().mean()), torch.finfo(torch.float64).tiny)
    return (sum(squares) / len(squares) / size) ** 0.5
