"""Frames between frames: guesses near those that were found, for sparsity to sharpen.

Neighbours in time see nearly the same features, so a frame that volume did not find lies between two that it found, or
near one, while a guess may be half a frame's length off. Nobody knows yet which frames are neighbours in time, but they
are among those that are most alike.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.sparse_rays import Cone, new_from

ALIKE = 6
"""Frames most like each one that are taken for its neighbours."""

SPREAD = 0.5
"""Random part of a guess, relative to a frame's length."""

TRIES = 6
"""Random guesses for each pair where a path breaks off."""


def search_between(
    cone: Cone, found: Float[Tensor, "M T"], generator: torch.Generator, rounds: int = 4
) -> Float[Tensor, "_ T"]:
    """Frames found and those between them, until a round at random brings no new one.

    Args:
        cone: of frames.
        found: of unit length.
        generator: of the random part of guesses; the first round has none.
        rounds: at most.
    """
    for number in range(rounds):
        if not 2 <= len(found) < len(cone.columns):
            break
        guesses = _middles(cone, found)
        if number:
            guesses = guesses + SPREAD * random_rows(cone, len(guesses), generator)
        before = len(found)
        found = new_from(cone, found, guesses)
        if number and len(found) == before:
            break
    return found


def search_at_ends(
    cone: Cone,
    found: Float[Tensor, "M T"],
    ends: list[tuple[int, ...]],
    free: list[int],
    generator: torch.Generator,
) -> Float[Tensor, "_ T"]:
    """Frames found and those where paths through them break off.

    Args:
        cone: of frames.
        found: of unit length.
        ends: indices of the last frame of each path and of the one before it, where there are any.
        free: indices of frames that no path holds.
        generator: of the random part of guesses.
    """
    rows = unit_rows(cone, found)
    guesses = []
    for place, end in enumerate(ends):
        last = rows[end[0]]
        for other in ends[place + 1 :]:
            if len(end) > 1 and len(other) > 1:
                # A cubic through two frames on each side.
                guesses.append((2 / 3) * (last + rows[other[0]]) - (1 / 6) * (rows[end[1]] + rows[other[1]]))
            guesses.append(0.5 * (last + rows[other[0]]))
        alike = (rows[free] @ cone.columns) @ (last @ cone.columns)
        guesses += [0.5 * (last + rows[free[index]]) for index in alike.argsort(descending=True)[:ALIKE].tolist()]
    if not guesses:
        return found
    tried = torch.stack(guesses).repeat(TRIES, 1)
    tried = tried + SPREAD * random_rows(cone, len(tried), generator)
    return new_from(cone, found, tried)


def random_rows(cone: Cone, count: int, generator: torch.Generator) -> Float[Tensor, "K T"]:
    """Random directions of the subspace whose units are of length one."""
    columns = cone.columns
    drawn = torch.randn(count, len(columns), generator=generator, dtype=columns.dtype, device=columns.device)
    even = torch.linalg.solve_triangular(torch.linalg.cholesky(columns @ columns.T), drawn, upper=False, left=False)
    return unit_rows(cone, even)


def unit_rows(cone: Cone, rows: Float[Tensor, "M T"]) -> Float[Tensor, "M T"]:
    """Rows whose units are of length one."""
    return rows / (rows @ cone.columns).norm(dim=1, keepdim=True)


def _middles(cone: Cone, found: Float[Tensor, "M T"]) -> Float[Tensor, "K T"]:
    """Half way between each frame and those most like it."""
    rows = unit_rows(cone, found)
    units = rows @ cone.columns
    alike = (units @ units.T).fill_diagonal_(-1.0)
    near = alike.topk(min(ALIKE, len(rows) - 1), dim=1).indices
    pairs = torch.stack([torch.arange(len(rows), device=near.device)[:, None].expand_as(near), near])
    one, other = pairs.flatten(1).sort(dim=0).values.unique(dim=1)
    return 0.5 * (rows[one] + rows[other])
