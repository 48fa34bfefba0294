"""Unknowns of one window: damped least squares on what of a layer's inputs lies outside their span."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

LM_STEPS = 40
AT_REST = 1e-5
"""Length of a step, relative to the unknowns, at which they are taken to have come to rest."""
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


@runtime_checkable
class Point(Protocol):
    """Equations at some unknowns."""

    @property
    def residual(self) -> Float[Tensor, " E"]:
        """What is to become nothing."""
        ...

    def jacobian(self) -> Float[Tensor, "E U"]:
        """Its derivatives."""
        ...


AnyPoint = TypeVar("AnyPoint", bound=Point)


def levenberg_marquardt(
    at: Callable[[Float[Tensor, " U"]], AnyPoint], unknowns: Float[Tensor, " U"], at_rest: float = AT_REST
) -> tuple[Float[Tensor, " U"], AnyPoint, Float[Tensor, "U U"]]:
    """Unknowns of a least sum of squares near those given, the equations there, and J'J of the last step."""
    damping = 1e-3
    here = at(unknowns)
    square = float(here.residual @ here.residual)
    hessian = torch.eye(len(unknowns))
    for _ in range(LM_STEPS):
        jacobian = here.jacobian()
        hessian, gradient = jacobian.T @ jacobian, jacobian.T @ here.residual
        level = float(hessian.diagonal().mean())
        for _ in range(6):
            damped = hessian + damping * level * torch.eye(len(hessian))
            change, failed = torch.linalg.solve_ex(damped, gradient)
            there = at(unknowns - change)
            further = float(there.residual @ there.residual)
            if not int(failed) and further < square:
                break
            damping = 8 * max(damping, 1e-4)
        else:
            break
        damping = damping / 10 if damping > 1e-7 else 0.0
        unknowns, here, square = unknowns - change, there, further
        if float(change.norm()) <= at_rest * float(unknowns.norm()):
            break
    return unknowns, here, hessian
