"""All frames of an utterance fitted together to an `ActivatedSpan`: Gauss-Newton by conjugate gradients.

Every window is weighed by w_p, one over the squared error that rounding gives it: a trained model's gradients differ a
millionfold from frame to frame, and so do those errors. The Hessian sum_p w_p S_p' W' D_p Pi D_p W S_p, S_p cutting
window p out of the frames, is block-banded but costs a large product for each window. It is therefore only multiplied
with, for all windows at once, and the banded Cholesky factor of the same sum with every block replaced by their mean,
W' mean(D_p Pi D_p) W, preconditions it. Steps are taken, and solved for, as far as they matter beside the error that
rounding causes (inexact Newton; Dembo, Eisenstat and Steihaug 1982).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded, eigvalsh_tridiagonal
from torch import Tensor

from overheard.attacks.spans.activated_span import ActivatedSpan
from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.spans.span_solver import WindowEquations, error_draws, smallest_eigenvalue
from overheard.attacks.windows import WindowedLayer

MOST_ITERATIONS = 60
TOLERANCES = (1e-2, 1e-3)
"""Of conjugate gradients in the first step and in those that follow, relative, in the preconditioner's norm."""
WEIGHINGS = 2
"""Steps after which windows are weighed anew."""
OUTLIER = 10.0
"""Residual of a window over that of rounding, from which on it is weighed by what it leaves: where gradients are
smaller than rounding, the span does not hold it."""
ENOUGH = 1e-3
"""Squared length of a step, in units of the error that rounding causes, at which it changes nothing any more."""
SHIFTS = (1e-7, 1e-5, 1e-3)
"""Part of its diagonal, and a thousandth of it of the diagonal's mean, added to a preconditioner until it can be
factorised."""


@dataclass(frozen=True)
class Refinement:
    """Frames that fit together.

    Attributes:
        rows: fixed and free frames.
        residual: root mean square of Pi a_p, relative to that of a_p.
        left: of each window, the norm of Pi a_p over that which rounding alone would give it.
        predicted_error: root mean square error of the free frames that this residual can cause along the
            worst-determined direction, relative to their root mean square.
        likely_error: the same, expected over all directions, by the preconditioner.
        errors: (D, T, F) draws of the free frames' error, by the preconditioner too.
        iterations: of conjugate gradients, in all.
    """

    rows: Float[Tensor, "R F"]
    residual: float
    left: Float[Tensor, " P"]
    predicted_error: float
    likely_error: float
    errors: Float[Tensor, "D T F"]
    iterations: int

    def behind(self, rows: Float[Tensor, "B F"]) -> "Refinement":
        """The same with rows ahead of its own."""
        return replace(self, rows=torch.cat([rows.to(self.rows), self.rows]))

    @property
    def excess(self) -> float:
        """Root mean square of what windows leave over rounding, outliers cut down."""
        return float(self.left.clamp(max=OUTLIER).square().mean().sqrt())


def mean_hessian(span: ActivatedSpan, windows: Float[Tensor, "P C"]) -> Float[Tensor, "C C"]:
    """W' mean over positions of (D_p Pi D_p) W, float64."""
    slopes = span.inputs(windows @ span.weight.T + span.bias)[1]
    units = slopes.shape[1]
    basis = span.basis[:, :units].to(slopes)
    together = (slopes.T @ slopes) / len(slopes)
    together *= torch.eye(units, dtype=slopes.dtype) - basis.T @ basis
    weight = span.weight.to(slopes)
    return (weight.T @ (together @ weight)).double()


def refine(
    span: ActivatedSpan,
    rows: Float[Tensor, "R F"],
    free: tuple[int, int],
    layer: WindowedLayer,
    block: Float[Tensor, "C C"],
    steps: int = 4,
    first_layer: WindowEquations | None = None,
    enough: float = ENOUGH,
    outlier: float = OUTLIER,
) -> Refinement:
    """Gauss-Newton on the free frames until the residual falls no more.

    Args:
        span: in the arithmetic wanted for residuals; products inside conjugate gradients are in float32.
        rows: frames, windows of which start every `stride` from the first on.
        free: first free frame, and the one behind the last.
        layer: window and stride.
        block: the mean Hessian of a window.
        steps: of Gauss-Newton at most.
        first_layer: equations on the same windows from the layer that sees them, if there are any.
        enough: squared length of a step, in units of the error that rounding causes, at which it is not worth taking.
        outlier: residual of a window over that of rounding from which on it is weighed by what it leaves.
    """
    first, last = free
    rows = rows.to(span.basis)
    within = replace(layer, before=first, after=len(rows) - last)
    low = span.single_precision()
    state = _state(span, rows, layer, first_layer, outlier)
    unknowns = (last - first) * layer.num_features
    count = span.num_equations + (0 if first_layer is None else first_layer.count)
    equations = max(1, len(state.rest) * count - unknowns)
    preconditioner = _Preconditioner(block, within, last - first, state)
    iterations, ritz = 0, 1.0
    for step in range(steps):
        gradient = _gather(state.pull(span), layer, len(rows))[first:last]
        little = enough * unknowns * min(state.square / equations, 1.0)
        start = float((gradient * preconditioner.solve(gradient)).sum())
        if step and start <= little:
            break
        least = max(little, TOLERANCES[min(step, 1)] ** 2 * start)
        change, count, smallest = _conjugate_gradients(
            low, state, gradient, (first, len(rows)), layer, preconditioner, least
        )
        iterations, ritz = iterations + count, min(ritz, smallest)
        moved = rows.clone()
        moved[first:last] -= change.to(rows)
        after = _state(span, moved, layer, first_layer, outlier)
        if after.under(state.weights) >= state.square:
            break
        # From a start that is far off, windows seem to err more than they do.
        if step < WEIGHINGS:
            preconditioner = _Preconditioner(block, within, last - first, after)
        else:
            after = replace(after, weights=state.weights)
        rows, state = moved, after
    smallest = ritz * preconditioner.smallest
    noise, draws = state.square / equations, preconditioner.errors
    return summed_up(rows, free, (state.residual, state.left), noise, smallest, draws, iterations)


def summed_up(
    rows: Float[Tensor, "R F"],
    free: tuple[int, int],
    left: tuple[float, Float[Tensor, " P"]],
    noise: float,
    smallest: float,
    draws: Float[Tensor, "D T F"],
    iterations: int,
) -> Refinement:
    """What a least-squares fit says of itself.

    Args:
        rows: fixed and free frames.
        free: first free frame, and the one behind the last.
        left: root mean square of what lies outside the span, relative to the inputs, and of each window over rounding.
        noise: variance of an equation's error.
        smallest: eigenvalue of the Hessian.
        draws: errors that residuals of unit variance cause.
        iterations: that it took.
    """
    errors = noise**0.5 * draws
    size = max(float(rows[free[0] : free[1]].square().mean().sqrt()), 1e-300)
    likely, worst = float(errors.square().mean().sqrt()), (noise / smallest) ** 0.5
    return Refinement(rows, *left, worst / size, likely / size, errors, iterations)


@dataclass(frozen=True)
class _State:
    """Windows u_p at some frames: Pi a_p, slopes, weights w_p by which an equation of each has variance 1, norms of Pi
    a_p over rounding's, their relative root mean square, and the first layer's equations on them."""

    windows: Float[Tensor, "P C"]
    rest: Float[Tensor, "P A"]
    slopes: Float[Tensor, "P H"]
    weights: Float[Tensor, " P"]
    left: Float[Tensor, " P"]
    residual: float
    first_layer: WindowEquations | None

    @property
    def square(self) -> float:
        return self.under(self.weights)

    def under(self, weights: Float[Tensor, " P"]) -> float:
        """Sum of squares of all equations, with these weights behind the first layer."""
        behind = float((weights * self.rest.square().sum(dim=1)).sum())
        return behind + (0.0 if self.first_layer is None else self.first_layer.square(self.windows))

    def pull(self, span: ActivatedSpan) -> Float[Tensor, "P C"]:
        """Half the derivative of the sum of squares by the windows."""
        moved = self.weights[:, None] * self.rest[:, : self.slopes.shape[1]] * self.slopes
        pull = moved @ span.weight
        return pull if self.first_layer is None else pull + self.first_layer.pull(self.windows)

    def operator(self, span: ActivatedSpan) -> Callable[[Float[Tensor, "P C"]], Float[Tensor, "P C"]]:
        """Change of windows to that of the pull, in float32, where equations have the mean of their weights."""
        mean = float(self.weights.mean())
        slopes, weights = self.slopes.float(), (self.weights / mean).float()[:, None]
        basis = span.basis[:, : slopes.shape[1]]
        first_layer = None if self.first_layer is None else self.first_layer.single_precision()

        def operate(windows: Tensor) -> Tensor:
            moved = (windows @ span.weight.T) * slopes
            moved = mean * ((weights * (moved - (moved @ basis.T) @ basis) * slopes) @ span.weight)
            return moved if first_layer is None else moved + first_layer.pull(windows, 0.0)

        return operate


def _state(
    span: ActivatedSpan,
    rows: Float[Tensor, "R F"],
    layer: WindowedLayer,
    first_layer: WindowEquations | None,
    outlier: float,
) -> _State:
    windows = layer.cut(rows)
    inputs, slopes = span.inputs(windows @ span.weight.T + span.bias)
    rest, norms, expected = span.outside(inputs)
    weights = span.num_equations / torch.maximum(expected, norms / outlier).square()
    return _State(windows, rest, slopes, weights, norms / expected, float(norms.norm() / inputs.norm()), first_layer)


def _gather(windows: Float[Tensor, "P C"], layer: WindowedLayer, num_rows: int) -> Float[Tensor, "R F"]:
    """Transpose of `WindowedLayer.cut`: each row's sum over the windows that hold it."""
    rows = windows.new_zeros(num_rows, layer.num_features)
    places = windows.view(len(windows), layer.window, layer.num_features)
    for place in range(layer.window):
        rows[place : place + (len(windows) - 1) * layer.stride + 1 : layer.stride] += places[:, place]
    return rows


class _Preconditioner:
    """The Hessian with the layer behind's block of every window replaced by the mean one, factorised in float32."""

    def __init__(self, block: Float[Tensor, "C C"], layer: WindowedLayer, num_frames: int, state: _State) -> None:
        padded = torch.nn.functional.pad(block, (0, 1, 0, 1)).float()
        band, _ = normal_equations(padded, layer, num_frames, state.weights.float())
        if state.first_layer is not None:
            own = state.first_layer
            band += normal_equations(own.projector.float(), layer, num_frames, own.weights.float())[0]
        self._factor, self._shape = (banded_factor(band), True), (num_frames, layer.num_features)

    @property
    def smallest(self) -> float:
        return smallest_eigenvalue(self._factor, self._shape[0] * self._shape[1])

    @property
    def errors(self) -> Float[Tensor, "D T F"]:
        return error_draws(self._factor, *self._shape)

    def solve(self, vector: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        flat = cho_solve_banded(self._factor, vector.float().flatten().numpy(), check_finite=False)
        return torch.from_numpy(flat).view_as(vector).to(vector)


def banded_factor(band: np.ndarray) -> np.ndarray:
    """Cholesky factor of a band with a little added to its diagonal: frames that few active units see would leave it
    singular, and a block that was summed in float32 may fall below zero by as much as that rounds."""
    for little in SHIFTS:
        shifted = band.copy(order="F")
        shifted[0] += little * np.abs(band[0]) + 1e-3 * little * band[0].mean()
        try:
            return cholesky_banded(shifted, overwrite_ab=True, lower=True, check_finite=False)
        except LinAlgError:
            continue
    raise LinAlgError("the windows' mean Hessian is not positive definite")


def _conjugate_gradients(
    span: ActivatedSpan,
    state: _State,
    right: Float[Tensor, "T F"],
    place: tuple[int, int],
    layer: WindowedLayer,
    preconditioner: _Preconditioner,
    least: float,
) -> tuple[Float[Tensor, "T F"], int, float]:
    """(solution, iterations, smallest Ritz value of the preconditioned Hessian).

    Products are in float32; the error's squared length in the preconditioner's norm is brought down to `least`.
    """
    first, num_rows = place
    operate = state.operator(span)

    def product(vector: Tensor) -> Tensor:
        rows = torch.zeros(num_rows, layer.num_features)
        rows[first : first + len(vector)] = vector
        return _gather(operate(layer.cut(rows)), layer, num_rows)[first : first + len(vector)]

    left = right.float()
    solution = torch.zeros_like(left)
    direction = solved = preconditioner.solve(left)
    energy = float((left * solved).sum())
    steps, ratios = [], []
    while len(steps) < MOST_ITERATIONS and energy > least:
        image = product(direction)
        steps.append(energy / float((direction * image).sum()))
        solution = solution + steps[-1] * direction
        left = left - steps[-1] * image
        solved = preconditioner.solve(left)
        following = float((left * solved).sum())
        ratios.append(following / energy)
        direction = solved + ratios[-1] * direction
        energy = following
    return solution, len(steps), _smallest_ritz(steps, ratios)


def _smallest_ritz(steps: list[float], ratios: list[float]) -> float:
    """Of the tridiagonal matrix that conjugate gradients build on their way (Saad 2003, section 6.7.3)."""
    if not steps:
        return 1.0
    inverse = 1 / np.array(steps)
    diagonal = inverse + np.append(0.0, np.array(ratios[:-1]) * inverse[:-1])
    beside = np.sqrt(np.array(ratios[:-1])) * inverse[:-1]
    return float(max(eigvalsh_tridiagonal(diagonal, beside)[0], np.finfo(np.float32).eps))
