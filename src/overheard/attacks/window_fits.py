"""The newest unknowns of one window from an `ActivatedSpan`: Levenberg-Marquardt with exact Jacobians.

It solves a random part of the equations; one step with all of them follows, since errors of older frames enter the
newest ones and would grow.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.activated_span import ActivatedSpan
from overheard.attacks.windows import WindowedLayer

STEP_EQUATIONS = 256
LM_STEPS = 40
WRONG = 2e-2
"""Residual, relative to the inputs, that no right window leaves, whatever the noise; wrong frames leave 5e-2."""
TELLS = 2.0
"""How many times the residual expected of rounding a window may leave that rounding moves as far as wrong frames do."""
ABOVE_ROUNDING = 30.0
"""How many times the residual expected of rounding a window may leave: older frames' errors add to it."""


@dataclass(frozen=True)
class Fit:
    """Unknowns x of one window, and how well it lies in the span.

    Attributes:
        unknowns: x.
        residual: norm of Pi a.
        expected: norm that rounding alone would give it.
        size: norm of a.
    """

    unknowns: Float[Tensor, " U"]
    residual: float
    expected: float
    size: float

    @property
    def accepted(self) -> bool:
        """Whether this is a window of the utterance, as far as its residual tells."""
        return self.residual <= min(ABOVE_ROUNDING * self.expected, max(WRONG * self.size, TELLS * self.expected))


@dataclass(frozen=True)
class StepProblem:
    """An `ActivatedSpan` in float32 with the part of its equations that single steps use, transposed.

    Attributes:
        span: all of it.
        equations: (A, E) orthonormal columns.
    """

    span: ActivatedSpan
    equations: Float[Tensor, "A E"]


def step_problem(span: ActivatedSpan, layer: WindowedLayer, generator: torch.Generator) -> StepProblem:
    """Enough equations for the first window, which has most unknowns."""
    unknowns = (layer.window - layer.before) * layer.num_features
    return StepProblem(
        span.single_precision(), span.sketch(max(STEP_EQUATIONS, 2 * unknowns), generator).float().contiguous()
    )


def fit_window(
    problem: StepProblem,
    offset: Float[Tensor, " H"],
    weight: Float[Tensor, "H U"],
    start: Float[Tensor, " U"],
) -> Fit:
    """Levenberg-Marquardt on Pi a / |a|, a = [phi(offset + weight x), 1].

    Without the division, frames that shrink to nothing come close: they leave only the constant outside the span.
    """
    equations = problem.equations[:, : max(STEP_EQUATIONS, 2 * len(start))]
    unknowns, damping = start, 1e-3
    here = _Point.at(problem.span, offset, weight, unknowns, equations)
    hessian = torch.eye(len(start))
    for _ in range(LM_STEPS):
        jacobian = here.jacobian(equations, weight)
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ here.residual
        level = float(hessian.diagonal().mean())
        for _ in range(6):
            damped = hessian + damping * level * torch.eye(len(hessian))
            change, failed = torch.linalg.solve_ex(damped, gradient)
            there = _Point.at(problem.span, offset, weight, unknowns - change, equations)
            if not int(failed) and there.square < here.square:
                break
            damping = 8 * max(damping, 1e-4)
        else:
            break
        damping = damping / 10 if damping > 1e-7 else 0.0
        unknowns, here = unknowns - change, there
        if float(change.norm()) <= 1e-5 * float(unknowns.norm()):
            break
    scale = here.size**2 * problem.span.num_equations / equations.shape[1]
    return _with_all_equations(problem, offset, weight, unknowns, scale * hessian)


@dataclass(frozen=True)
class _Point:
    """Residual Pi a / |a| in a part of the equations, and what its Jacobian takes."""

    inputs: Float[Tensor, " A"]
    slopes: Float[Tensor, " H"]
    residual: Float[Tensor, " E"]
    size: float
    square: float

    @staticmethod
    def at(
        span: ActivatedSpan,
        offset: Float[Tensor, " H"],
        weight: Float[Tensor, "H U"],
        unknowns: Float[Tensor, " U"],
        equations: Float[Tensor, "A E"],
    ) -> "_Point":
        inputs, slopes = span.inputs(offset + weight @ unknowns)
        size = max(float(inputs.norm()), torch.finfo(inputs.dtype).tiny)
        residual = (inputs @ equations) / size
        return _Point(inputs, slopes, residual, size, float(residual @ residual))

    def jacobian(self, equations: Float[Tensor, "A E"], weight: Float[Tensor, "H U"]) -> Float[Tensor, "E U"]:
        active = self.slopes.nonzero()[:, 0]
        moved = weight[active] * self.slopes[active, None]
        growth = self.inputs[active] @ moved / self.size**2
        return (equations[active].T @ moved) / self.size - torch.outer(self.residual, growth)


def _with_all_equations(
    problem: StepProblem,
    offset: Float[Tensor, " H"],
    weight: Float[Tensor, "H U"],
    unknowns: Float[Tensor, " U"],
    hessian: Float[Tensor, "U U"],
) -> Fit:
    """One step on the gradient of all equations, with the Hessian that a part of them gave, scaled up."""
    span = problem.span
    inputs, slopes = span.inputs(offset + weight @ unknowns)
    rest, _, _ = span.outside(inputs)
    gradient = weight.T @ (rest[: len(weight)] * slopes)
    change = torch.linalg.lstsq(hessian, gradient[:, None]).solution[:, 0]
    inputs, _ = span.inputs(offset + weight @ (unknowns - change))
    _, residual, expected = span.outside(inputs)
    return Fit(unknowns - change, float(residual), float(expected), float(inputs.norm()))
