"""All frames of an utterance, one behind the other, from the state that each one leaves.

Every utterance starts from the state zero, so its first frame is what the state map sends to zero (`state_map`). Its
strength is the one at which the state behind it lies in the span of states (`trajectory`). The frame behind a state s is
s L^+ + sum_k alpha_k f_k, f_k the first frames; a rectified frame is nowhere negative and zero in some unit where f_k is
not, so alpha is the least that leaves no unit below zero. Where a frame has zeros enough, they settle it further
(`sparse_rays`). That goes on until the state leaves the span of those that were carried on, as the last one does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from overheard.attacks.sparse_rays import Cone, settle
from overheard.attacks.state_map import StateMap
from overheard.attacks.trajectory import Direction, State, fit_strengths, refine_strength

CLEAR = 3e-3
"""Part of a first frame's largest tenth that a unit must have to say how much of it another frame holds."""


@dataclass(frozen=True)
class Chain:
    """Frames of one utterance as one direction heard them.

    Attributes:
        rows: coordinates, strength included, (M, P).
        residuals: part of the state behind each frame that no carried state has; the last one's is large where the
            utterance ends.
        certified: frames whose zeros certify them.
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
    strength, _ = fit_strengths(direction, (first @ gates)[None], state)
    rows, residuals, certified = [first * strength[0]], [], [True]
    while True:
        state = direction.step(rows[-1] @ gates, state)
        residuals.append(float(direction.outside_part(state).norm()))
        if residuals[-1] > tolerance or len(rows) == len(basis):
            return Chain(torch.stack(rows), tuple(residuals), tuple(certified))
        row, sparse = _next(states, cone, basis, state)
        if sparse:
            length = float(row.norm())
            strength, misfit = refine_strength(direction, row @ gates / length, state, length)
            # The last state was not carried on, and says nothing of its frame's strength.
            row = row * strength / length if misfit < tolerance else row
        rows.append(row)
        certified.append(sparse)


def _next(
    states: StateMap, cone: Cone, basis: Float[Tensor, "P C"], state: State
) -> tuple[Float[Tensor, " P"], bool]:
    """The frame behind a state, strength included, and whether its zeros certify it."""
    row = state[0] @ states.frames
    row = row + _least(row @ basis, states.firsts @ basis) @ states.firsts
    sharp, certified = settle(cone, row)
    if not certified:
        return row, False
    expected = sharp @ states.states
    return sharp * (expected @ state[0]) / expected.square().sum(), True


def _least(units: Float[Tensor, " C"], firsts: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Coefficients of the first frames that leave no unit below zero and the least sum."""
    size = firsts.abs().amax(dim=0)
    clear = size > CLEAR * size.topk(max(1, len(size) // 10)).values.mean()
    directions, given = firsts[:, clear].T.cpu().numpy(), units[clear].cpu().numpy()
    scale = float(np.abs(given).max()) or 1.0
    found = linprog(directions.sum(axis=0), -directions, given / scale, bounds=(None, None), method="highs")
    if found.x is None:
        return units.new_zeros(len(firsts))
    return units.new_tensor(found.x) * scale
