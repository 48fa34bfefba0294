"""Texts near a text by convex least squares: what local search, one edit at a time, cannot reach.

With q of a text y (see `lattice_decoding`), gamma = q Y over matrices Y whose rows are one-hot. Rows that may be any
distribution make this convex: all labels move at once, and a chain of edits, none of which helps without the others, is
one step. A space that stands one letter too late in each of seven words is such a chain. It is solved by accelerated
projected gradients (Beck and Teboulle 2009), each row projected on to the simplex (Held, Wolfe and Crowder 1974).
Rounded, it is seldom the text, but another place for local search to start from.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.lattice_decoding import average_symbols, label_occupancy

STEPS = 150


def relaxed_texts(
    evidence: FrameEvidence, symbols: list[int], text: tuple[int, ...], places: list[int]
) -> list[tuple[int, ...]]:
    """The text fitted anew as it is long, and with a label more or less at each of some places.

    Args:
        evidence: of the output layer.
        symbols: labels that it may hold.
        text: to start from.
        places: where a label may be missing or too much.
    """
    average = average_symbols(evidence.log_probs, evidence.smoothed, 1)[:, 1:]
    extended = torch.cat([evidence.log_probs, average], dim=1)
    unknown = evidence.log_probs.shape[1]
    changed = [list(text)]
    for place in places:
        changed += [[*text[:place], unknown, *text[place:]], [*text[:place], *text[place + 1 :]]]
    return [_fitted(evidence, extended, symbols, labels) for labels in changed if labels]


def _fitted(
    evidence: FrameEvidence, log_probs: Float[Tensor, "T V1"], symbols: list[int], labels: list[int]
) -> tuple[int, ...]:
    """Labels of most weight in the relaxed solution, with q of these labels."""
    design = evidence.whitener @ label_occupancy(log_probs, labels)
    target = evidence.whitener @ evidence.occupancy[:, symbols]
    known = torch.tensor(symbols, device=design.device)
    start = (torch.tensor(labels, device=design.device)[:, None] == known).to(design)
    start = torch.where(start.any(dim=1, keepdim=True), start, 1 / len(symbols))
    weights = simplex_least_squares(design, target, start)
    return tuple(symbols[column] for column in weights.argmax(dim=1).tolist())


def simplex_least_squares(
    design: Float[Tensor, "R L"], target: Float[Tensor, "R K"], start: Float[Tensor, "L K"], steps: int = STEPS
) -> Float[Tensor, "L K"]:
    """Least |design Y - target| over matrices Y whose rows are distributions."""
    gram, right = design.T @ design, design.T @ target
    smoothness = torch.linalg.matrix_norm(gram, ord=2).clamp(min=torch.finfo(gram.dtype).tiny)
    here = ahead = start
    momentum = 1.0
    for _ in range(steps):
        there = _on_simplex(ahead - (gram @ ahead - right) / smoothness)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = there + (momentum - 1) / following * (there - here)
        here, momentum = there, following
    return here


def _on_simplex(rows: Float[Tensor, "L K"]) -> Float[Tensor, "L K"]:
    """The nearest distribution to each row."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - 1
    count = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    kept = (ordered > excess / count).sum(dim=1, keepdim=True)
    return (rows - excess.gather(1, kept - 1) / kept).clamp(min=0.0)
