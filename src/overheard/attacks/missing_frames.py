"""Frames that volume and sparsity did not find, solved for where a path through the recurrence breaks off.

Frames of silence are nearly parallel, and volume says nothing about them. But the path breaks off just there, between
neighbours that are much like them, and the state after the missing frame h = a R still has to lie in the span of
states: H - T + 1 equations for the T coordinates a, whose start is a neighbour. Sparsity, reweighted, adds a soft
equation for every unit that is about to be zero, and carries the solution where states alone leave it loose.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.trajectory import Direction, State

STATE_PRECISION = 1e-5
"""Relative part of a state outside the span that counts as one unit of misfit, unless noise makes more."""


def solve_frame(
    direction: Direction,
    basis: Float[Tensor, "T C"],
    state: State,
    guess: Float[Tensor, " T"],
    steps: int = 40,
) -> tuple[Float[Tensor, " T"], float]:
    """Levenberg-Marquardt for one frame after a known state.

    Args:
        direction: which way the path goes.
        basis: rows that span all frames.
        state: before the frame.
        guess: coordinates to start from, strength included.
        steps: at most.

    Returns:
        Coordinates, strength included, and the part of the new state that is outside the span.
    """
    into_gates = basis @ direction.into_gates.T  # (T, K)
    # Most states lie better than in the mean; what a loose state leaves open, sparsity would fill with a neighbour.
    precision = max(STATE_PRECISION, 0.1 * direction.blur)

    def outside(row: Float[Tensor, "*P T"]) -> Float[Tensor, "*P J"]:
        return direction.outside_part(direction.step(row @ into_gates, state))

    def misfit(row: Float[Tensor, " T"], softness: float, units: Float[Tensor, " C"]) -> Float[Tensor, " R"]:
        return torch.cat([outside(row) / precision, (row @ basis) * _weights(units, softness)])

    row, damping = guess, 1e-3
    for number in range(steps):
        # From sparse at large to sparse to the unit.
        softness = max(3e-2 * 0.7**number, 1e-3)
        units = row @ basis
        now = misfit(row, softness, units)
        slope = _slope(outside, row) / precision
        jacobian = torch.cat([slope, (basis * _weights(units, softness)).T])
        normal, right = jacobian.T @ jacobian, jacobian.T @ now
        for _ in range(6):
            scaled = normal + damping * torch.diag(normal.diagonal())
            step = torch.linalg.solve(scaled, right)
            if float(misfit(row - step, softness, units).norm()) < float(now.norm()):
                damping = max(damping / 5, 1e-12)
                row = row - step
                break
            damping *= 5
        else:
            break
        if softness <= 1e-3 and float(step.norm()) < 1e-9 * float(row.norm()):
            break
    return row, float(outside(row).norm())


def _weights(units: Float[Tensor, " C"], softness: float) -> Float[Tensor, " C"]:
    """Reweighting that counts a unit far from zero as one and a unit near zero by its distance."""
    scale = units.abs().topk(max(1, len(units) // 10)).values.mean()
    weights = 1.0 / ((units / scale).square() + softness**2).sqrt() / scale
    return torch.where(units < 0, 2.0 * weights, weights)


def _slope(outside, row: Float[Tensor, " T"], width: float = 1e-6) -> Float[Tensor, "J T"]:
    size = width * row.norm()
    moved = row + size * torch.eye(len(row), dtype=row.dtype, device=row.device)
    return ((outside(moved) - outside(row)) / size).T
