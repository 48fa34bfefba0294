"""All frames of an utterance, one behind the other, from the state that each one leaves.

Every utterance starts from the state zero, which says which frame is its first one (`state_map`). Its strength is the
one at which the state behind it lies in the span of states (`trajectory`). The frame behind a state s is s times the
state map, and some multiples alpha_k of first frames f_k. A rectified frame is nowhere negative, and zero in some unit
where f_k is not, so alpha is the least that leaves no unit below zero. Where a frame has zeros enough, they settle it
further (`sparse_rays`); the state behind it says whether it is still the same frame. That goes on until the state
leaves the span of those that were carried on, as the last one does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from overheard.attacks.deepspeech2.sparse_rays import Cone, settle
from overheard.attacks.deepspeech2.state_map import StateMap
from overheard.attacks.deepspeech2.trajectory import Direction, State, find_strength, refine_strength

CLEAR = 3e-3
"""Part of a first frame's largest tenth that a unit must have to say how much of it another frame holds."""

ABOVE_NOISE = 30.0
"""Multiples of its noise that such a unit must have."""

PRECISION = 1e-5
"""Part of a state outside the span that says no more about its frame."""

CARRIED = 0.03
"""Part of a state outside the span that one has at least which was not carried on, with a margin."""

SETTLED = 3e-3
"""Of a frame that zeros settle, the part that may change where its state cannot say that it is the same frame."""


@dataclass(frozen=True)
class Chain:
    """Frames of one utterance as one direction heard them.

    Attributes:
        rows: coordinates, strength included, (M, P).
        residuals: part of the state behind each frame that no carried state has; the last one's is large where the
            utterance ends.
        certified: frames whose zeros certify them, and whose states are as the update says.
    """

    rows: Float[Tensor, "M P"]
    residuals: tuple[float, ...]
    certified: tuple[bool, ...]


def follow_states(
    direction: Direction,
    states: StateMap,
    cone: Cone,
    basis: Float[Tensor, "P C"],
    first: Float[Tensor, " P"],
    tolerance: float,
) -> Chain:
    """The chain that starts with a frame.

    Args:
        direction: which way.
        states: the state map of this direction.
        cone: of frames.
        basis: orthonormal rows that span all frames.
        first: coordinates of the first frame, of unit length.
        tolerance: part of a state outside the span up to which it counts as carried on.
    """
    gates = basis @ direction.into_gates.T  # (P, K)
    state = direction.start()
    rows, residuals, certified = [first * find_strength(direction, first @ gates, state)], [], [True]
    while True:
        before, state = state, direction.step(rows[-1] @ gates, state)
        residuals.append(float(direction.outside_part(state).norm()))
        if residuals[-1] > tolerance or len(rows) == len(basis):
            break
        row, sparse = _next(direction, states, cone, basis, gates, state, rows[-1])
        rows.append(row)
        certified.append(sparse)
    if len(rows) > 1:
        rows[-1], certified[-1] = _last(states, cone, basis, before), False
    return Chain(torch.stack(rows), tuple(residuals), tuple(certified))


def _next(
    direction: Direction,
    states: StateMap,
    cone: Cone,
    basis: Float[Tensor, "P C"],
    gates: Float[Tensor, "P K"],
    state: State,
    before: Float[Tensor, " P"],
) -> tuple[Float[Tensor, " P"], bool]:
    """The frame behind a state, strength included, and whether its zeros and the state behind it certify it.

    Frames that are not rectified have no least amounts; those of the frame before are near.
    """
    row, amounts = _behind(states, cone, basis, state)
    starts = (amounts, states.firsts @ before)
    row, misfit = _carried_best(direction, gates, state, row, states.firsts, starts)
    length = float(row.norm())
    sharp, certified, moved = settle(cone, row)
    strength, residual = refine_strength(direction, sharp @ gates, state, length)
    if certified and residual < max(2 * misfit, PRECISION) and residual < CARRIED:
        return sharp * strength, True
    return _nearby(row, sharp, certified and moved < SETTLED), False


def _last(states: StateMap, cone: Cone, basis: Float[Tensor, "P C"], state: State) -> Float[Tensor, " P"]:
    """The frame behind a state where the state behind the frame was not carried on, which then says nothing about it.

    It may lie near the span all the same, at another strength: behind silence, states hardly move.
    """
    row, amounts = _behind(states, cone, basis, state)
    row = row + amounts @ states.firsts
    sharp, certified, moved = settle(cone, row)
    return _nearby(row, sharp, certified and moved < SETTLED)


def _behind(
    states: StateMap, cone: Cone, basis: Float[Tensor, "P C"], state: State
) -> tuple[Float[Tensor, " P"], Float[Tensor, " N"]]:
    """The frame behind a state without its part in first frames, and the least amounts of them that it must have."""
    row = state[0] @ states.frames
    return row, _least(row @ basis, states.firsts @ basis, cone.noise)


def _nearby(row: Float[Tensor, " P"], sharp: Float[Tensor, " P"], zeros: bool) -> Float[Tensor, " P"]:
    """A frame, or the one of unit length that its zeros say where they may: much alike frames are not exchanged."""
    return sharp * row.norm() if zeros else row


def _least(units: Float[Tensor, " C"], firsts: Float[Tensor, "N C"], noise: float) -> Float[Tensor, " N"]:
    """Amounts of the first frames that leave no unit below zero and the least sum.

    Args:
        units: of a frame without its part in first frames.
        firsts: units of first frames, orthonormal.
        noise: of a unit of a frame of unit length.
    """
    size = firsts.abs().amax(dim=0)
    clear = size > max(CLEAR * float(size.topk(max(1, len(size) // 10)).values.mean()), ABOVE_NOISE * noise)
    directions, given = firsts[:, clear].T.cpu().numpy(), units[clear].cpu().numpy()
    scale = float(np.abs(given).max(initial=0.0)) or 1.0
    found = linprog(directions.sum(axis=0), -directions, given / scale, bounds=(None, None), method="highs")
    if found.x is None:
        return units.new_zeros(len(firsts))
    return units.new_tensor(found.x) * scale


def _carried_best(
    direction: Direction,
    gates: Float[Tensor, "P K"],
    state: State,
    row: Float[Tensor, " P"],
    firsts: Float[Tensor, "N P"],
    starts: tuple[Float[Tensor, " N"], ...],
) -> tuple[Float[Tensor, " P"], float]:
    """The frame whose state leaves the span least, by Gauss-Newton on the amounts of first frames, and by how much.

    Starts are tried in turn. Where the state was not carried on, no amounts bring it back, and the first ones stay.
    """

    def outside(at: Float[Tensor, "*M N"]) -> Float[Tensor, "*M J"]:
        return direction.outside_part(direction.step((row + at @ firsts) @ gates, state))

    for start in starts:
        amounts = _descend(outside, start, 1e-6 * float((row + start @ firsts).norm()))
        misfit = float(outside(amounts).norm())
        if misfit < CARRIED:
            return row + amounts @ firsts, misfit
    return row + starts[0] @ firsts, float(outside(starts[0]).norm())


def _descend(
    outside: Callable[[Float[Tensor, "*M N"]], Float[Tensor, "*M J"]],
    amounts: Float[Tensor, " N"],
    width: float,
    steps: int = 8,
) -> Float[Tensor, " N"]:
    """Amounts at which a state leaves the span less, by Gauss-Newton with differences of a width."""
    part = outside(amounts)
    moves = width * torch.eye(len(amounts), dtype=amounts.dtype, device=amounts.device)
    for _ in range(steps):
        slopes = (outside(amounts + moves) - part) / width  # (N, J)
        step = -torch.linalg.lstsq(slopes.T, part[:, None]).solution[:, 0]
        there = outside(amounts + step)
        if float(there.norm()) > 0.999 * float(part.norm()):
            break
        amounts, part = amounts + step, there
    return amounts
