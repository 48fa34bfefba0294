"""One direction of the recurrence, and the span of the states that it carried on.

A recurrent layer shares dW_hh = sum_t delta_t s_{t-1}', so the row space of each direction's recurrent update is the
span of the states that were carried on: all but the last one. A frame that is known as a direction f (a row of H
without its strength c) leaves the state cell(c W_ih f, s), which lies in that span at the strength that the frame had,
and at no other: H - T + 1 equations for one unknown.
"""

import math
from dataclasses import dataclass, replace

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


def fit_strengths(
    direction: Direction, projections: Float[Tensor, "M K"], state: State, points: int = 40, refined: int = 8
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """For each frame the strength at which the next state leaves the span least, and by how much it still does."""
    # A few mixed directions of the complement tell which strength is about right.
    coarse = replace(direction, outside=direction.outside[:, :32])
    low, high = (math.log(bound) for bound in STRENGTHS)
    grid = torch.linspace(low, high, points, dtype=projections.dtype, device=projections.device)
    scaled = grid.exp()[:, None, None] * projections  # (points, M, K)
    residuals, at = coarse.outside_part(direction.step(scaled, state)).norm(dim=-1).min(dim=0)
    logs = grid[at]
    best = residuals.argsort()[:refined]
    logs[best], exact = _refine(direction, projections[best], state, logs[best], float(grid[1] - grid[0]))
    residuals = residuals * (direction.outside.shape[1] / coarse.outside.shape[1]) ** 0.5
    residuals = residuals.clamp(min=float(exact.min()) * 1.001)
    residuals[best] = exact
    return logs.exp(), residuals


def refine_strength(
    direction: Direction, projections: Float[Tensor, " K"], state: State, strength: float
) -> tuple[float, float]:
    """The strength near a given one at which the next state leaves the span least, and by how much it still does."""
    start = projections.new_tensor([strength]).log()
    logs, residuals = _refine(direction, projections[None], state, start, 0.01)
    return float(logs[0].exp()), float(residuals[0])


def _refine(
    direction: Direction, projections: Float[Tensor, "M K"], state: State, logs: Float[Tensor, " M"], reach: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Gauss-Newton on the logarithm of each strength; steps that do not help are halved."""

    def outside(at: Float[Tensor, " M"]) -> Float[Tensor, "M J"]:
        return direction.outside_part(direction.step(at.exp()[:, None] * projections, state))

    part, width = outside(logs), 1e-6
    step_limit = torch.full_like(logs, reach)
    for _ in range(30):
        slope = (outside(logs + width) - part) / width
        step = -(slope * part).sum(1) / slope.square().sum(1).clamp(min=1e-300)
        step = step.clamp(-step_limit, step_limit)
        moved = outside(logs + step)
        better = moved.norm(dim=1) < part.norm(dim=1)
        step_limit = torch.where(better, step_limit, step.abs() / 2)
        logs = torch.where(better, logs + step, logs)
        part = torch.where(better[:, None], moved, part)
        if float(step.abs().max()) < 1e-10 or not bool((better | (step_limit > 1e-9)).any()):
            break
    return logs, part.norm(dim=1)
