"""All frames of an update in the order in which they were heard, from both ends of each utterance towards each other.

Every utterance starts from the state zero, so in each direction as many paths are followed as there are utterances. A
path from the first frame on and one from the last frame back share what was found in the subspace, which tells that
they are of one utterance. Where neither goes on, the next frame is solved for (`missing_frames`), joins the others,
and all try again, until every frame has its place.
"""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.between_frames import search_at_ends
from overheard.attacks.frames import certify_frames
from overheard.attacks.missing_frames import solve_frame
from overheard.attacks.sparse_rays import SAME, Cone, make_cone
from overheard.attacks.trajectory import Direction, Path, append, fit_strengths, follow, open_path


PATIENCE = 4
"""Searches at random where paths break off, before the next frame is solved for without its zeros."""


@dataclass(frozen=True)
class Timeline:
    """Frames in order, one utterance behind the other.

    Attributes:
        frames: (T, C), strengths included; non-negative up to rounding.
        coordinates: of the frames in the basis.
        lengths: frames of each utterance.
        solved: how many were solved for where a path broke off.
        residual: largest part of a state outside the span of states.
        disagreement: largest relative difference between the strengths that both directions found.
    """

    frames: Float[Tensor, "T C"]
    coordinates: Float[Tensor, "T T"]
    lengths: tuple[int, ...]
    solved: int
    residual: float
    disagreement: float


@dataclass(frozen=True)
class Stopped:
    """Why no timeline came about, and how far the paths of each direction went together."""

    reason: str
    forward: int
    backward: int


@dataclass(frozen=True)
class _Chain:
    """Both paths through one utterance, and all its frames in order."""

    forward: int
    backward: int
    order: tuple[int, ...]


def order_frames(
    basis: Float[Tensor, "T C"],
    coordinates: Float[Tensor, "M T"],
    directions: tuple[Direction, Direction],
    zero_share: float,
    tolerance: float = 1e-3,
    utterances: int = 1,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Timeline | Stopped:
    """Order, direction and strength of all frames.

    Args:
        basis: orthonormal rows that span the frames.
        coordinates: of frames found in it, of unit length, in any order; wrong ones among them find no place.
        directions: forward and backward.
        zero_share: of units, exact zeros that certify a frame.
        tolerance: part of a state outside the span up to which a frame fits.
        utterances: in the update.
        noise: norm of what the update's noise makes of a column of the basis.
        generator: of guesses where a path breaks off.
    """
    size, known, solved = len(basis), coordinates, 0
    cone = make_cone(basis, zero_share, noise)
    generator = generator or torch.Generator(basis.device).manual_seed(0)
    # paths[way][number]
    paths = [[open_path(direction)] * utterances for direction in directions]
    while True:
        for way, direction in enumerate(directions):
            _extend(direction, known @ basis, paths[way], tolerance, size)
        chains = _chains(paths, size)
        if sum(len(chain.order) for chain in chains) == size and len(chains) == utterances:
            return _join(basis, known, paths, chains, solved)
        broken = [
            (way, number)
            for number in range(utterances)
            for way in range(2)
            if number not in {(chain.forward, chain.backward)[way] for chain in chains}
        ]
        grown = _near_ends(cone, known, [paths[way][number] for way, number in broken], paths, generator)
        if len(grown) > len(known):
            known = grown
            continue
        for way, number in broken:
            others = [paths[1 - way][each] for other, each in broken if other != way]
            row, residual = _solve_next(
                basis, known, directions[way], paths[way], number, others, zero_share, tolerance, noise
            )  # fmt: skip
            if row is None:
                continue
            strength = float(row.norm())
            known = torch.cat([known, row[None] / strength])
            into_gates = known[-1] @ basis @ directions[way].into_gates.T
            place = len(known) - 1
            paths[way][number] = append(directions[way], paths[way][number], place, strength, residual, into_gates)
            solved += 1
            break
        else:
            forward, backward = (sum(len(path.order) for path in each) for each in paths)
            names = ("path reaches", "path") if utterances == 1 else ("paths reach", "paths")
            reason = f"of {size} frames, the forward {names[0]} {forward} and the backward {names[1]} {backward}"
            return Stopped(reason, forward, backward)


def _near_ends(
    cone: Cone, known: Float[Tensor, "M T"], broken: list[Path], paths: list[list[Path]], generator: torch.Generator
) -> Float[Tensor, "_ T"]:
    """Frames known and those that sparsity finds where paths break off."""
    taken = {index for way in paths for path in way for index in path.order}
    free = [index for index in range(len(known)) if index not in taken]
    ends = [path.order[:-3:-1] for path in broken if path.order]
    for _ in range(PATIENCE):
        grown = search_at_ends(cone, known, ends, free, generator)
        if len(grown) > len(known):
            return grown
    return known


def _extend(direction: Direction, frames: Float[Tensor, "M C"], paths: list[Path], tolerance: float, size: int) -> None:
    """Follow the paths of one direction in turn; all states but each utterance's last one are carried on."""
    for number, path in enumerate(paths):
        taken = frozenset(index for other in paths if other is not path for index in other.order)
        longest = max(size - len(paths), 1) - len(taken)
        paths[number] = follow(direction, frames, path, tolerance, longest, taken)


def _chains(paths: list[list[Path]], size: int) -> list[_Chain]:
    """Pairs of paths that overlap; the last pair may just meet, where no frame is then left."""
    found: list[_Chain] = []
    for (forward, one), (backward, other) in product(enumerate(paths[0]), enumerate(paths[1])):
        behind = other.order[::-1]
        for overlap in range(min(len(one.order), len(behind)), 0, -1):
            if one.order[len(one.order) - overlap :] == behind[:overlap]:
                found.append(_Chain(forward, backward, (*one.order, *behind[overlap:])))
                break
    if len(found) == len(paths[0]) - 1:
        [forward], [backward] = (
            set(range(len(paths[0]))) - {(chain.forward, chain.backward)[way] for chain in found} for way in range(2)
        )
        order = (*paths[0][forward].order, *paths[1][backward].order[::-1])
        if len(set(order)) == len(order) == size - sum(len(chain.order) for chain in found):
            found.append(_Chain(forward, backward, order))
    return found


def _solve_next(
    basis: Float[Tensor, "T C"],
    known: Float[Tensor, "M T"],
    direction: Direction,
    paths: list[Path],
    number: int,
    others: list[Path],
    zero_share: float,
    tolerance: float,
    noise: float,
) -> tuple[Float[Tensor, " T"] | None, float]:
    """Coordinates of the frame after a path, strength included; None if no start leads to a new frame that fits."""
    best: tuple[Float[Tensor, " T"] | None, float] = None, tolerance
    path, taken = paths[number], [index for each in paths for index in each.order]
    for guess in _guesses(known, path, others):
        row, residual = solve_frame(direction, basis, path.state, guess)
        unit = torch.nn.functional.normalize(row, dim=0)
        if residual < best[1] and not bool((known[taken] @ unit > 1 - SAME).any()):
            best = row, residual
        if best[1] < 0.1 * tolerance:
            break
    row, residual = best
    if row is None:
        return best
    # The state says which frame; the count of zeros, where it certifies the same frame, says it more exactly. The state
    # then fits less closely: it has no more than a strength to choose.
    sharp, certified = certify_frames(basis, row[None], zero_share, noise)
    strengths, again = fit_strengths(direction, sharp @ basis @ direction.into_gates.T, path.state)
    same = bool(certified[0]) and float(again[0]) < max(1.5 * residual, direction.blur)
    return (sharp[0] * strengths[0], float(again[0])) if same else best


def _guesses(known: Float[Tensor, "M T"], path: Path, others: list[Path]) -> list[Float[Tensor, " T"]]:
    """Neighbours in time where there are any: the frame before, the tips of paths that come towards it, all frames'
    mean."""
    guesses = [strength * known[index] for each in (path, *others) for index, strength in _tip(each)]
    strengths = sorted(strength for each in (path, *others) for strength in each.strengths)
    typical = strengths[len(strengths) // 2] if strengths else 1.0
    return [*guesses, typical * torch.nn.functional.normalize(known.sum(dim=0), dim=0)]


def _tip(path: Path) -> list[tuple[int, float]]:
    return [(path.order[-1], path.strengths[-1])] if path.order else []


def _join(
    basis: Float[Tensor, "T C"],
    known: Float[Tensor, "M T"],
    paths: list[list[Path]],
    chains: list[_Chain],
    solved: int,
) -> Timeline:
    """All utterances' frames; the strength of a frame that both directions reached is their geometric mean."""
    order = [index for chain in chains for index in chain.order]
    found: dict[int, list[float]] = {index: [] for index in order}
    every = [path for way in paths for path in way]
    for path in every:
        for index, strength in zip(path.order, path.strengths, strict=True):
            found[index].append(strength)
    logs = [basis.new_tensor(found[index]).log() for index in order]
    disagreement = max((float(each.max() - each.min()) for each in logs), default=0.0)
    coordinates = known[order] * torch.stack([each.mean() for each in logs]).exp()[:, None]
    residual = max((value for path in every for value in path.residuals), default=0.0)
    lengths = tuple(len(chain.order) for chain in chains)
    return Timeline(coordinates @ basis, coordinates, lengths, solved, residual, disagreement)
