"""Texts read off occupancies from either end, one frame after the other.

A prefix explains the occupancies of all frames that the alignment has not left it in (`prefix_marginals`). Where the
next label begins to be heard, long before it is likely, the fit fails by more than noise, and one label more, or a few,
mends it: with errors of 1e-6, an occupancy of 1e-5 is seen. So a beam of prefixes follows the frames, ranked by what
they leave unexplained and by their length, and nothing about the rest of the text is guessed. Labels that hide, since
the model finds them next to impossible and puts their time into blanks, lead a reading astray; read from the other end,
where time runs backwards and CTC is the same, other labels hide. Both readings are joined wherever they overlap.
"""

from dataclasses import dataclass
from itertools import product
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overheard.attacks.occupancy_noise import unit_noise
from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.prefix_marginals import (
    Prefixes,
    designs,
    designs_of_next,
    extended,
    messages_of_next,
    no_labels,
    together,
)
from overheard.speech.alphabet import BLANK

Text = tuple[int, ...]

WINDOW = 12
"""Frames that a prefix is tested on at once."""

AT_A_FRAME = 4
"""Labels that may begin to be heard in one frame."""

LABEL_COST = 15.0
"""Chi-square that a label more has to explain."""

MARGIN = 100.0
"""Chi-square beyond the best at which a prefix is given up."""

UNEXPLAINED = 2.0
"""Chi-square for each number above which any label that helps is tried."""

LOST = 30.0
"""Times what is usual that the best prefix may leave unexplained; beyond, reading on is in vain."""

USUAL = 20
"""Frames that tell what is usual."""

SPARE = 6
"""States kept beyond those that the fit needs."""

RIDGE = 1e-13
"""Part of the largest diagonal number that keeps a factorisation from failing."""

READINGS = 4
"""Of each direction that are joined."""

OVERLAPS = (4, 3, 2)
"""Labels that two readings share where they are joined."""


@dataclass(frozen=True)
class Fit:
    """How prefixes explain a window.

    Attributes:
        design: (P, R, S).
        factor: (P, S, S) Cholesky factor of design' design and a ridge.
        residual: (P, R).
        cost: (P,) chi-square.
        newest: (P,) mean square residual of the last frame.
        states: that the fit needs.
    """

    design: Float[Tensor, "P R S"]
    factor: Float[Tensor, "P S S"]
    residual: Float[Tensor, "P R"]
    cost: Float[Tensor, " P"]
    newest: Float[Tensor, " P"]
    states: int


def readings(evidence: FrameEvidence, symbols: list[int], beam: int) -> tuple[list[Text], list[Text]]:
    """Texts read from the beginning and texts read from the end, best first.

    Args:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        beam: prefixes kept from one frame to the next.
    """
    heard = [BLANK, *symbols]
    noise = unit_noise(evidence, heard)
    target = torch.einsum("tij,tj->ti", noise, evidence.occupancy[:, heard])
    starts = _read(evidence.log_probs, noise, target, heard, beam)
    ends = _read(evidence.log_probs.flip(0), noise.flip(0), target.flip(0), heard, beam)
    return starts, [text[::-1] for text in ends]


def joined_readings(starts: list[Text], ends: list[Text]) -> list[Text]:
    """Texts that begin as a reading from the beginning does and end as one from the end does, wherever both share a few
    labels."""
    pairs = product(starts[:READINGS], ends[:READINGS])
    return list(dict.fromkeys(text for pair, overlap in product(pairs, OVERLAPS) for text in _joined(*pair, overlap)))


def _joined(start: Text, end: Text, overlap: int) -> list[Text]:
    places: dict[Text, list[int]] = {}
    for place in range(len(end) - overlap + 1):
        places.setdefault(end[place : place + overlap], []).append(place)
    return [
        start[: stop - overlap] + end[place:]
        for stop in range(overlap, len(start) + 1)
        for place in places.get(start[stop - overlap : stop], [])
    ]


def _read(
    log_probs: Float[Tensor, "T V"],
    noise: Float[Tensor, "T K K"],
    target: Float[Tensor, "T K"],
    symbols: list[int],
    width: int,
) -> list[Text]:
    """Prefixes after the last frame, or where reading on was in vain, best first."""
    rows = torch.zeros(log_probs.shape[1], dtype=torch.long, device=log_probs.device)
    rows[symbols] = torch.arange(len(symbols), device=log_probs.device)
    labels = torch.tensor(symbols[1:], device=log_probs.device)
    beam, left = no_labels(log_probs), list[float]()
    for frame in range(len(log_probs)):
        wanted = target[max(0, frame - WINDOW + 1) : frame + 1].flip(0).flatten()
        groups, costs, states = [beam], list[float](), 3
        known = set(beam.texts)
        for _ in range(AT_A_FRAME + 1):
            fit = _fit(designs(groups[-1], frame, WINDOW, noise, rows), wanted, len(symbols))
            costs += fit.cost.tolist()
            states = max(states, fit.states)
            if len(groups) > AT_A_FRAME:
                break
            longer = _longer(groups[-1], fit, log_probs, labels, frame, noise, rows, width, known)
            if longer is None:
                break
            known |= set(longer.texts)
            groups.append(longer)
        everything = together(groups)
        ranks = [cost + LABEL_COST * len(text) for cost, text in zip(costs, everything.texts, strict=True)]
        order = sorted(range(len(ranks)), key=lambda row: ranks[row])[:width]
        kept = [row for row in order if ranks[row] < ranks[order[0]] + MARGIN]
        beam = everything.take(kept).newest(states + SPARE)
        usual = median(left[-USUAL:]) if left else UNEXPLAINED
        left.append(costs[kept[0]] / len(wanted))
        if left[-1] > LOST * usual + UNEXPLAINED:
            break
    return list(beam.texts)


def _fit(design: Float[Tensor, "P R S"], wanted: Float[Tensor, " R"], num_symbols: int) -> Fit:
    """Least squares over masses of states, which are about 1 at most."""
    gram = design.mT @ design
    # A ridge of 1 is what is meant; beside errors of 1e-9 it is below what factorising rounds.
    ridge = 1.0 + RIDGE * gram.diagonal(dim1=1, dim2=2).amax(dim=1)
    factor = torch.linalg.cholesky(gram + torch.diag_embed(ridge[:, None].expand(gram.shape[:2])))
    pulls = design.mT @ wanted
    turned = torch.linalg.solve_triangular(factor, pulls[:, :, None], upper=False)
    masses = torch.linalg.solve_triangular(factor.mT, turned, upper=True)[:, :, 0]
    for _ in range(2):  # normal equations square the condition: refined, they are as good as a QR
        residual = wanted - (design @ masses[:, :, None])[:, :, 0]
        error = (design.mT @ residual[:, :, None])[:, :, 0] - masses
        masses = masses + torch.cholesky_solve(error[:, :, None], factor)[:, :, 0]
    residual = wanted - (design @ masses[:, :, None])[:, :, 0]
    # What the states from each on, older ones, add to the fit.
    older = turned[:, :, 0].square().flip(1).cumsum(dim=1).flip(1)
    needed = (older > 1e-3 * len(wanted)).any(dim=0).nonzero()
    return Fit(
        design,
        factor,
        residual,
        residual.square().sum(dim=1) + masses.square().sum(dim=1),
        residual[:, :num_symbols].square().mean(dim=1),
        int(needed.max()) + 1 if len(needed) else 0,
    )


def _longer(
    prefixes: Prefixes,
    fit: Fit,
    log_probs: Float[Tensor, "T V"],
    labels: Int[Tensor, " K"],
    frame: int,
    noise: Float[Tensor, "T M M"],
    rows: Int[Tensor, " V"],
    most: int,
    known: set[Text],
) -> Prefixes | None:
    """The prefixes with one label more that explain most; None where no label explains enough."""
    rank = fit.cost + LABEL_COST * torch.tensor([len(text) for text in prefixes.texts], device=fit.cost.device)
    parents = [row for row in rank.argsort()[:most].tolist() if fit.cost[row] > LABEL_COST]
    if not parents:
        return None
    some = prefixes.take(parents)
    messages = messages_of_next(some, log_probs, labels)
    design = designs_of_next(some, messages, labels, frame, WINDOW, noise, rows)
    gains = _gains(fit, parents, design)
    gains = torch.where(messages[:, 1, frame].isfinite(), gains, 0.0)
    unexplained = (fit.cost > UNEXPLAINED * fit.residual.shape[1]) | (fit.newest > UNEXPLAINED)
    least = torch.where(unexplained, 1.0, LABEL_COST / 2)
    predicted = (rank[parents, None] - gains).masked_fill(gains <= least[parents, None], torch.inf)
    picked: list[tuple[int, int]] = []
    for at in predicted.flatten().argsort().tolist():
        row, column = divmod(at, len(labels))
        if len(picked) == most or not predicted[row, column] < torch.inf:
            break
        if (*some.texts[row], int(labels[column])) not in known:
            picked.append((row, column))
    if not picked:
        return None
    ancestors, columns = [row for row, _ in picked], [column for _, column in picked]
    return extended(some.take(ancestors), labels[columns], messages[ancestors, :, :, columns])


def _gains(fit: Fit, parents: list[int], design: Float[Tensor, "P R two K"]) -> Float[Tensor, "P K"]:
    """Chi-square that the two states of a label more take off each prefix's."""
    flat = design.flatten(2)
    pulls = (flat.mT @ fit.residual[parents][:, :, None]).unflatten(1, design.shape[2:])[..., 0]  # (P, 2, K)
    seen = torch.linalg.solve_triangular(fit.factor[parents], fit.design[parents].mT @ flat, upper=False)
    seen = seen.unflatten(2, design.shape[2:])
    gram = torch.einsum("prik,prjk->pkij", design, design) - torch.einsum("psik,psjk->pkij", seen, seen)
    gram = gram + torch.eye(2, dtype=gram.dtype, device=gram.device)
    solved = torch.linalg.solve_ex(gram, pulls.transpose(1, 2)[..., None])[0][..., 0]
    return torch.nan_to_num((solved * pulls.transpose(1, 2)).sum(dim=2))
