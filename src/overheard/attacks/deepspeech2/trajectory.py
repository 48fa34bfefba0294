"""One direction of the recurrence, and the span of the states that it carried on.

A recurrent layer shares dW_hh = sum_t delta_t s_{t-1}', so the row space of each direction's recurrent update is the
span of the states that were carried on: all but the last one. A frame that is known as a direction f (a row of H
without its strength c) leaves the state cell(c W_ih f, s), which lies in that span at the strength that the frame had,
and at no other: H - T + 1 equations for one unknown.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.recognition.recurrence import CellName, Recurrence

STRENGTHS = (0.02, 2000.0)
"""Norms of frames between which strength is sought; Hardtanh at 20 bounds 1440 units by 759."""

State = tuple[Tensor, ...]
"""(h,) of a GRU or tanh cell, (h, c) of an LSTM; each (..., H)."""


@dataclass(frozen=True)
class Direction:
    """One direction of a bidirectional layer, and what its recurrent update says about its states.

    Attributes:
        cell: which cell.
        into_gates: W_ih, (K, C).
        recurrent: W_hh, (K, H).
        outside: orthonormal columns that no carried state has a part in, (H, H - rank).
        blur: part of a state that noise of the update puts there in the mean, relative to the state's length.
    """

    cell: CellName
    into_gates: Float[Tensor, "K C"]
    recurrent: Float[Tensor, "K H"]
    outside: Float[Tensor, "H J"]
    blur: float = 0.0

    def start(self) -> State:
        """The state before the first frame."""
        zero = self.recurrent.new_zeros(self.recurrent.shape[1])
        return (zero, zero) if self.cell == "lstm" else (zero,)

    def step(self, projections: Float[Tensor, "*P K"], state: State) -> State:
        """The state after a frame of these projections W_ih h_t; see the cells of `overheard.recognition`."""
        carried = state[0] @ self.recurrent.T
        if self.cell == "tanh":
            return (torch.tanh(projections + carried),)
        if self.cell == "lstm":
            enter, forget, fresh, leave = (projections + carried).chunk(4, -1)
            memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(fresh)
            return torch.sigmoid(leave) * torch.tanh(memory), memory
        (r, z, n), (u_r, u_z, u_n) = projections.chunk(3, -1), carried.chunk(3, -1)
        update = torch.sigmoid(z + u_z)
        return ((1 - update) * torch.tanh(n + torch.sigmoid(r + u_r) * u_n) + update * state[0],)

    def outside_part(self, state: State) -> Float[Tensor, "*P J"]:
        """Of a state, what no carried state can have, relative to its length."""
        return state[0] @ self.outside / state[0].norm(dim=-1, keepdim=True)


def make_direction(recurrence: Recurrence, suffix: str, update: Float[Tensor, "K H"], rank: int) -> Direction:
    """A direction from the public layer and the update of its recurrent weight.

    Args:
        recurrence: the layer.
        suffix: "" or "_reverse".
        update: gradient of weight_hh, float64.
        rank: states that were carried: frames less utterances.
    """
    _, values, vectors = torch.linalg.svd(update, full_matrices=True)
    into_gates, recurrent = (
        getattr(recurrence, f"weight_{kind}_l0{suffix}").detach().double() for kind in ("ih", "hh")
    )
    # What is left of the spectrum is noise; it turns a direction of the span by its size over the direction's own.
    noise = float(values[rank:].square().mean().sqrt() / len(update) ** 0.5) if len(values) > rank else 0.0
    turned = float((1 / values[:rank].clamp(min=1e-300)).square().mean().sqrt()) if rank else 0.0
    blur = noise * turned * (len(vectors) - rank) ** 0.5
    return Direction(recurrence.cell, into_gates, recurrent, vectors[rank:].T.contiguous(), blur)


def find_strength(direction: Direction, projections: Float[Tensor, " K"], state: State, points: int = 40) -> float:
    """The strength of a frame at which the next state leaves the span least, among all that a frame can have.

    Args:
        direction: which way.
        projections: of the frame at unit length, W_ih h_t.
        state: before the frame.
        points: strengths to start from.
    """
    low, high = (math.log(bound) for bound in STRENGTHS)
    grid = torch.linspace(low, high, points, dtype=projections.dtype, device=projections.device)
    parts = direction.outside_part(direction.step(grid.exp()[:, None] * projections, state)).norm(dim=-1)
    start = float(grid[int(parts.argmin())])
    return refine_strength(direction, projections, state, math.exp(start), float(grid[1] - grid[0]))[0]


def refine_strength(
    direction: Direction, projections: Float[Tensor, " K"], state: State, strength: float, reach: float = 0.01
) -> tuple[float, float]:
    """The strength near a given one at which the next state leaves the span least, and by how much it still does.

    Gauss-Newton on its logarithm; steps of `reach` at most, and halved where they do not help.
    """

    def outside(log: float) -> Float[Tensor, " J"]:
        return direction.outside_part(direction.step(math.exp(log) * projections, state))

    log, width = math.log(strength), 1e-6
    part = outside(log)
    for _ in range(30):
        slope = (outside(log + width) - part) / width
        step = -float(slope @ part) / max(float(slope @ slope), 1e-300)
        step = min(max(step, -reach), reach)
        moved = outside(log + step)
        if float(moved.norm()) < float(part.norm()):
            log, part = log + step, moved
        else:
            reach = abs(step) / 2
        if abs(step) < 1e-10 or reach < 1e-9:
            break
    return math.exp(log), float(part.norm())
