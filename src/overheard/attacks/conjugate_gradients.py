"""Conjugate gradients for an operator that is known by what it does, with a preconditioner."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Float[Tensor, "M N"],
    precondition: Callable[[Tensor], Tensor],
    steps: int,
    rest: float = 1e-6,
) -> Float[Tensor, "M N"]:
    """Solve normal(x) = right (Hestenes and Stiefel 1952).

    Args:
        normal: symmetric and positive.
        right: any.
        precondition: an approximate inverse of `normal`, symmetric and positive.
        steps: at most.
        rest: part of the right side's energy, in the preconditioner's norm, at which to stop.
    """
    solution, residual = torch.zeros_like(right), right
    direction = scaled = precondition(residual)
    energy = first = float((residual * scaled).sum())
    for _ in range(steps):
        if energy <= rest * first:
            break
        along = normal(direction)
        length = energy / float((direction * along).sum())
        solution = solution + length * direction
        residual = residual - length * along
        scaled = precondition(residual)
        before, energy = energy, float((residual * scaled).sum())
        direction = scaled + energy / before * direction
    return solution
