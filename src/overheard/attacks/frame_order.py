"""All frames of one utterance in the order in which they were heard, from both ends towards each other.

A path from the first frame on and one from the last frame back share what was found in the subspace. Where neither goes
on, the next frame is solved for (`missing_frames`), joins the others, and both try again, until every frame has its
place.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.frames import certify_frames
from overheard.attacks.missing_frames import solve_frame
from overheard.attacks.trajectory import Direction, Path, append, follow, open_path

SAME = 1e-6
"""Frames whose cosine differs from one by less are one frame."""


@dataclass(frozen=True)
class Timeline:
    """Frames in order.

    Attributes:
        frames: (T, C), strengths included; non-negative up to rounding.
        coordinates: of the frames in the basis.
        solved: how many were solved for where a path broke off.
        residual: largest part of a state outside the span of states.
        disagreement: largest relative difference between the strengths that both directions found.
    """

    frames: Float[Tensor, "T C"]
    coordinates: Float[Tensor, "T T"]
    solved: int
    residual: float
    disagreement: float


@dataclass(frozen=True)
class Stopped:
    """Why no timeline came about, and how far both paths went."""

    reason: str
    forward: int
    backward: int


def order_frames(
    basis: Float[Tensor, "T C"],
    coordinates: Float[Tensor, "M T"],
    directions: tuple[Direction, Direction],
    zero_share: float,
    tolerance: float = 1e-3,
) -> Timeline | Stopped:
    """Order, direction and strength of all frames of one utterance.

    Args:
        basis: orthonormal rows that span the frames.
        coordinates: of frames found in it, of unit length, in any order; wrong ones among them find no place.
        directions: forward and backward.
        zero_share: of units, exact zeros that certify a frame.
        tolerance: part of a state outside the span up to which a frame fits.
    """
    size = len(basis)
    known = coordinates
    paths = [open_path(direction) for direction in directions]
    solved = 0
    while True:
        for way, direction in enumerate(directions):
            paths[way] = follow(direction, known @ basis, paths[way], tolerance, size - 1)
        if size == 1 or _complete(paths[0], paths[1], size):
            break
        for way, direction in enumerate(directions):
            if len(paths[way].order) == size - 1:
                continue
            row, residual = _solve_next(basis, known, direction, paths[way], paths[1 - way], zero_share, tolerance)
            if row is None:
                continue
            strength = float(row.norm())
            known = torch.cat([known, row[None] / strength])
            into_gates = known[-1] @ basis @ direction.into_gates.T
            paths[way] = append(direction, paths[way], len(known) - 1, strength, residual, into_gates)
            solved += 1
            break
        else:
            reason = f"of {size} frames, the forward path reaches {len(paths[0].order)} and the backward path "
            return Stopped(f"{reason}{len(paths[1].order)}", len(paths[0].order), len(paths[1].order))
    return _join(basis, known, paths[0], paths[1], solved)


def _complete(forward: Path, backward: Path, size: int) -> bool:
    """Whether the two paths, overlapping or just meeting, name every frame once and in one order."""
    overlap = len(forward.order) + len(backward.order) - size
    if overlap < 0:
        return False
    behind = backward.order[::-1]
    agree = forward.order[len(forward.order) - overlap :] == behind[:overlap]
    return agree and len(set(forward.order) | set(behind)) == size


def _solve_next(
    basis: Float[Tensor, "T C"],
    known: Float[Tensor, "M T"],
    direction: Direction,
    path: Path,
    other: Path,
    zero_share: float,
    tolerance: float,
) -> tuple[Float[Tensor, " T"] | None, float]:
    """Coordinates of the frame after a path, strength included; None if no start leads to a new frame that fits."""
    best: tuple[Float[Tensor, " T"] | None, float] = None, tolerance
    for guess in _guesses(known, path, other):
        row, residual = solve_frame(direction, basis, path.state, guess)
        unit = torch.nn.functional.normalize(row, dim=0)
        if residual < best[1] and not bool((known[list(path.order)] @ unit > 1 - SAME).any()):
            best = row, residual
        if best[1] < 0.1 * tolerance:
            break
    row, residual = best
    if row is None:
        return best
    # The state says which frame; the count of zeros, where it certifies the same frame, says it more exactly.
    sharp, certified = certify_frames(basis, row[None], zero_share)
    sharp = sharp[0] * row.norm()
    state = direction.step(sharp @ basis @ direction.into_gates.T, path.state)
    again = float(direction.outside_part(state).norm())
    return (sharp, again) if bool(certified[0]) and again < 1.5 * residual else best


def _guesses(known: Float[Tensor, "M T"], path: Path, other: Path) -> list[Float[Tensor, " T"]]:
    """Neighbours in time where there are any: the frame before, the tip of the other path, all frames' mean."""
    guesses = [strength * known[index] for each in (path, other) for index, strength in _tip(each)]
    strengths = [*path.strengths, *other.strengths]
    typical = sorted(strengths)[len(strengths) // 2] if strengths else 1.0
    return [*guesses, typical * torch.nn.functional.normalize(known.sum(dim=0), dim=0)]


def _tip(path: Path) -> list[tuple[int, float]]:
    return [(path.order[-1], path.strengths[-1])] if path.order else []


def _join(
    basis: Float[Tensor, "T C"], known: Float[Tensor, "M T"], forward: Path, backward: Path, solved: int
) -> Timeline:
    """One order from both paths; the strength of a frame that both reached is their geometric mean."""
    overlap = len(forward.order) + len(backward.order) - len(basis)
    order = [*forward.order, *backward.order[::-1][overlap:]]
    found: dict[int, list[float]] = {index: [] for index in order}
    for path in (forward, backward):
        for index, strength in zip(path.order, path.strengths, strict=True):
            found[index].append(strength)
    logs = [basis.new_tensor(found[index]).log() for index in order]
    disagreement = max((float(each.max() - each.min()) for each in logs), default=0.0)
    coordinates = known[order] * torch.stack([each.mean() for each in logs]).exp()[:, None]
    residual = max((*forward.residuals, *backward.residuals), default=0.0)
    return Timeline(coordinates @ basis, coordinates, solved, residual, disagreement)
