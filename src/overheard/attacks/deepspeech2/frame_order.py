"""All frames of an update, one utterance behind the other, from the chains of both directions.

Every utterance has one chain forward, from its first frame on, and one backward, from its last. A chain that comes to
its end holds all frames of its utterance, so each frame is found twice. Where the update says too little, a chain may
break off before: the two of one utterance then need only meet.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.deepspeech2.chain import Chain, follow_states
from overheard.attacks.deepspeech2.frames import find_frames
from overheard.attacks.deepspeech2.sparse_rays import Cone, part_of
from overheard.attacks.deepspeech2.state_map import StateMap
from overheard.attacks.deepspeech2.trajectory import Direction

ALIKE = 0.9
"""Cosine of two directions' last and first frame above which they are taken for one."""


@dataclass(frozen=True)
class Way:
    """One direction of the recurrence and what the update says about it."""

    direction: Direction
    states: StateMap


@dataclass(frozen=True)
class Timeline:
    """Frames in order, one utterance behind the other.

    Attributes:
        coordinates: of the frames in the basis, strengths included; (P, P).
        lengths: frames of each utterance.
        certified: frames whose zeros certify them in one direction at least.
        residual: largest part of a state outside the span of states.
        disagreement: largest relative difference between certified frames that both directions found.
    """

    coordinates: Float[Tensor, "P P"]
    lengths: tuple[int, ...]
    certified: int
    residual: float
    disagreement: float


@dataclass(frozen=True)
class Stopped:
    """Why no timeline came about, and how far the chains of each direction went together."""

    reason: str
    forward: int
    backward: int


def order_frames(
    basis: Float[Tensor, "P C"],
    cone: Cone,
    ways: tuple[Way, Way],
    tolerance: float,
    generator: torch.Generator,
) -> Timeline | Stopped:
    """All frames, their order, direction and strengths.

    Args:
        basis: orthonormal rows that span the frames.
        cone: of frames.
        ways: forward and backward.
        tolerance: part of a state outside the span up to which it counts as carried on.
        generator: of the search for the first frames of several utterances.
    """
    forward, backward = (_chains(basis, cone, way, tolerance, generator) for way in ways)
    size, reached = len(basis), [sum(len(chain.rows) for chain in chains) for chains in (forward, backward)]
    if len(forward) == len(backward) == 1:
        whole = [chain if len(chain.rows) == size else _cut(chain) for chain in (forward[0], backward[0])]
        if sum(len(chain.rows) for chain in whole) >= size:
            return _timeline([(whole[0], whole[1], size)])
    if reached[0] == size:
        return _timeline([(chain, _partner(chain, backward), len(chain.rows)) for chain in forward])
    if reached[1] == size:
        return _timeline([(None, chain, len(chain.rows)) for chain in backward])
    if not forward and not backward:
        return Stopped(
            "the first frames of several utterances are told apart by their zeros, and these have too few", 0, 0
        )
    names = ("path reaches", "path") if len(forward) == 1 else ("paths reach", "paths")
    reason = f"of {size} frames, the forward {names[0]} {reached[0]} and the backward {names[1]} {reached[1]}"
    return Stopped(reason, *reached)


def _chains(
    basis: Float[Tensor, "P C"], cone: Cone, way: Way, tolerance: float, generator: torch.Generator
) -> list[Chain]:
    """One chain for each utterance."""
    firsts = way.states.firsts
    if len(firsts) > 1:
        firsts = find_frames(part_of(cone, firsts), generator) @ firsts
    chains = []
    for first in torch.nn.functional.normalize(firsts, dim=1):
        positive = -first if float((first @ basis).sum()) < 0 else first
        chain = follow_states(way.direction, way.states, cone, basis, positive, tolerance)
        if len(chain.rows) == 1:
            # Frames that are not rectified may be negative in the mean.
            other = follow_states(way.direction, way.states, cone, basis, -positive, tolerance)
            chain = max(chain, other, key=lambda each: len(each.rows))
        chains.append(chain)
    return chains


def _cut(chain: Chain) -> Chain:
    """A chain that broke off, without the frame whose state left the span."""
    return Chain(chain.rows[:-1], chain.residuals[:-1], chain.certified[:-1])


def _partner(chain: Chain, others: list[Chain]) -> Chain | None:
    """The chain of the other direction that starts where this one ends, and has as many frames."""
    for other in others:
        like = torch.nn.functional.cosine_similarity(chain.rows[-1], other.rows[0], dim=0)
        if len(other.rows) == len(chain.rows) and float(like) > ALIKE:
            return other
    return None


def _timeline(utterances: list[tuple[Chain | None, Chain | None, int]]) -> Timeline:
    """Frames of all utterances: a certified estimate before another, the mean of two of a kind."""
    rows, certified, disagreement, residual = [], 0, 0.0, 0.0
    for forward, backward, length in utterances:
        for chain in (forward, backward):
            # The state behind an utterance's last frame was not carried on.
            within = () if chain is None else chain.residuals[: length - 1]
            residual = max((residual, *within))
        for place in range(length):
            estimates = [
                (chain.rows[at], chain.certified[at])
                for chain, at in ((forward, place), (backward, length - 1 - place))
                if chain is not None and at < len(chain.rows)
            ]
            sparse = [row for row, zeros in estimates if zeros]
            chosen = torch.stack(sparse or [row for row, _ in estimates])
            rows.append(chosen.mean(dim=0))
            certified += bool(sparse)
            if len(sparse) == 2:
                disagreement = max(disagreement, float((chosen[0] - chosen[1]).norm() / rows[-1].norm()))
    lengths = tuple(length for _, _, length in utterances)
    return Timeline(torch.stack(rows), lengths, certified, residual, disagreement)
