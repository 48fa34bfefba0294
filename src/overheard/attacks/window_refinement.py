"""All frames of an utterance fitted together to an `ActivatedSpan`: Gauss-Newton by conjugate gradients.

The Hessian sum_p S_p' W' D_p Pi D_p W S_p, S_p cutting window p out of the frames, is block-banded but costs a large
product for each window. It is therefore only multiplied with, for all windows at once, and the banded Cholesky factor
of the same sum with every block replaced by their mean, W' mean(D_p Pi D_p) W, preconditions it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded, eigvalsh_tridiagonal
from torch import Tensor

from overheard.attacks.activated_span import ActivatedSpan
from overheard.attacks.span_equations import normal_equations
from overheard.attacks.span_solver import error_draws, smallest_eigenvalue
from overheard.attacks.windows import WindowedLayer

MOST_ITERATIONS = 60
SHIFTS = (1e-9, 1e-6, 1e-3)
"""Of the identity, relative to the mean of the diagonal, added to a preconditioner until it can be factorised."""


@dataclass(frozen=True)
class Refinement:
    """Frames that fit together.

    Attributes:
        rows: fixed and free frames.
        residual: root mean square of Pi a_p, relative to that of a_p.
        expected: the same as rounding alone would make it.
        predicted_error: root mean square error of the free frames that this residual can cause along the
            worst-determined direction, relative to their root mean square.
        likely_error: the same, expected over all directions, by the preconditioner.
        errors: (D, T, F) draws of the free frames' error, by the preconditioner too.
        iterations: of conjugate gradients, in all.
    """

    rows: Float[Tensor, "R F"]
    residual: float
    expected: float
    predicted_error: float
    likely_error: float
    errors: Float[Tensor, "D T F"]
    iterations: int

    def behind(self, rows: Float[Tensor, "B F"]) -> "Refinement":
        """The same with rows ahead of its own."""
        return replace(self, rows=torch.cat([rows.to(self.rows), self.rows]))


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
    tolerance: float = 1e-3,
    steps: int = 4,
) -> Refinement:
    """Gauss-Newton on the free frames until the residual falls no more.

    Args:
        span: in the arithmetic wanted for residuals; products inside conjugate gradients are in float32.
        rows: frames, windows of which start every `stride` from the first on.
        free: first free frame, and the one behind the last.
        layer: window and stride.
        block: the mean Hessian of a window.
        tolerance: of conjugate gradients, relative, in the preconditioner's norm.
        steps: of Gauss-Newton at most.
    """
    first, last = free
    rows = rows.to(span.basis)
    preconditioner = _Preconditioner(block, replace(layer, before=first, after=len(rows) - last), last - first)
    low = span.single_precision()
    state = _state(span, rows, layer)
    iterations, ritz = 0, 1.0
    for _ in range(steps):
        gradient = _gather((state.rest[:, : state.slopes.shape[1]] * state.slopes) @ span.weight, layer, len(rows))
        change, count, ritz = _conjugate_gradients(
            low, state.slopes.float(), gradient[first:last], (first, len(rows)), layer, preconditioner, tolerance
        )
        iterations += count
        moved = rows.clone()
        moved[first:last] -= change.to(rows)
        after = _state(span, moved, layer)
        if after.square >= state.square:
            break
        settled = after.square > 0.98 * state.square
        rows, state = moved, after
        if settled:
            break
    sums = state.square, state.expected, state.size
    equations = len(state.rest) * span.num_equations
    smallest = ritz * preconditioner.smallest
    return summed_up(rows, free, sums, equations, smallest, preconditioner.errors, iterations)


def summed_up(
    rows: Float[Tensor, "R F"],
    free: tuple[int, int],
    sums: tuple[float, float, float],
    equations: int,
    smallest: float,
    draws: Float[Tensor, "D T F"],
    iterations: int,
) -> Refinement:
    """What a least-squares fit says of itself.

    Args:
        rows: fixed and free frames.
        free: first free frame, and the one behind the last.
        sums: of squares over all windows: of what lies outside the span, as rounding makes it, and of inputs.
        equations: of all windows.
        smallest: eigenvalue of the Hessian.
        draws: errors that residuals of unit variance cause.
        iterations: that it took.
    """
    noise = sums[0] / max(1, equations - draws[0].numel())
    errors = noise**0.5 * draws
    size = max(float(rows[free[0] : free[1]].square().mean().sqrt()), 1e-300)
    residual, expected = ((each / sums[2]) ** 0.5 for each in sums[:2])
    likely = float(errors.square().mean().sqrt())
    return Refinement(rows, residual, expected, (noise / smallest) ** 0.5 / size, likely / size, errors, iterations)


@dataclass(frozen=True)
class _State:
    """Residuals of all windows: Pi a_p, slopes, and sums of squares of Pi a_p, as expected, and of a_p."""

    rest: Float[Tensor, "P A"]
    slopes: Float[Tensor, "P H"]
    square: float
    expected: float
    size: float


def _state(span: ActivatedSpan, rows: Float[Tensor, "R F"], layer: WindowedLayer) -> _State:
    inputs, slopes = span.inputs(_cut(rows, layer) @ span.weight.T + span.bias)
    rest, norms, expected = span.outside(inputs)
    return _State(
        rest, slopes, float(norms.square().sum()), float(expected.square().sum()), float(inputs.square().sum())
    )


def _cut(rows: Float[Tensor, "R F"], layer: WindowedLayer) -> Float[Tensor, "P C"]:
    return rows.unfold(0, layer.window, layer.stride).transpose(1, 2).flatten(1)


def _gather(windows: Float[Tensor, "P C"], layer: WindowedLayer, num_rows: int) -> Float[Tensor, "R F"]:
    """Transpose of `_cut`: each row's sum over the windows that hold it."""
    rows = windows.new_zeros(num_rows, layer.num_features)
    places = windows.view(len(windows), layer.window, layer.num_features)
    for place in range(layer.window):
        rows[place : place + (len(windows) - 1) * layer.stride + 1 : layer.stride] += places[:, place]
    return rows


class _Preconditioner:
    """The Hessian with every window's block replaced by the mean one, factorised."""

    def __init__(self, block: Float[Tensor, "C C"], layer: WindowedLayer, num_frames: int) -> None:
        padded = torch.nn.functional.pad(block, (0, 1, 0, 1))
        band, _ = normal_equations(padded, layer, num_frames, layer.num_positions(num_frames))
        self._factor = (banded_factor(band), True)
        self.smallest = smallest_eigenvalue(self._factor, band.shape[1])
        self.errors = error_draws(self._factor, num_frames, layer.num_features)

    def solve(self, vector: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        flat = cho_solve_banded(self._factor, vector.double().flatten().numpy(), check_finite=False)
        return torch.from_numpy(flat).view_as(vector).to(vector)


def banded_factor(band: np.ndarray) -> np.ndarray:
    """Cholesky factor of a band with a little of the identity added: frames that few active units see would leave it
    singular, and a block that was summed in float32 may fall below zero by as much as that rounds."""
    size = band[0].mean()
    for little in SHIFTS:
        band = band.copy()
        band[0] += little * size
        try:
            return cholesky_banded(band, lower=True, check_finite=False)
        except LinAlgError:
            continue
    raise LinAlgError("the windows' mean Hessian is not positive definite")


def _conjugate_gradients(
    span: ActivatedSpan,
    slopes: Float[Tensor, "P H"],
    right: Float[Tensor, "T F"],
    place: tuple[int, int],
    layer: WindowedLayer,
    preconditioner: _Preconditioner,
    tolerance: float,
) -> tuple[Float[Tensor, "T F"], int, float]:
    """(solution, iterations, smallest Ritz value of the preconditioned Hessian)."""
    first, num_rows = place
    basis = span.basis[:, : slopes.shape[1]]

    def product(vector: Tensor) -> Tensor:
        rows = torch.zeros(num_rows, layer.num_features)
        rows[first : first + len(vector)] = vector
        moved = (_cut(rows, layer) @ span.weight.T) * slopes
        moved = (moved - (moved @ basis.T) @ basis) * slopes
        return _gather(moved @ span.weight, layer, num_rows)[first : first + len(vector)]

    left = right.float()
    solution = torch.zeros_like(left)
    direction = solved = preconditioner.solve(left)
    energy = start = float((left * solved).sum())
    steps, ratios = [], []
    while len(steps) < MOST_ITERATIONS and energy > tolerance**2 * start:
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
