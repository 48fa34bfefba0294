"""Texts of which both ends are known and the middle is not: integer least squares for the labels between.

Readings from either end go astray somewhere (`growing_texts`). Cut back by a few labels each, they are right up to
there, and what is left is the problem of `lattice_decoding` with few unknown labels in place of all: q of both ends and
of average symbols between them, the ends' share of the occupancies subtracted. How far to cut back and how many labels
are missing is tried; most of what comes out is no text that was said, and the best few are near it.
"""

from itertools import product

import torch
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.lattice_decoding import average_symbols, label_occupancy, nearest_texts

CUTS = (1, 5, 9, 13, 19, 26)
"""Labels by which each end is cut back."""

MISSING = range(1, 44, 3)
"""Labels between the ends."""

RIDGE, BEAM, KEPT = 0.3, 32, 2
"""Assumed error of q, partial texts kept, texts kept of each trial."""

Text = tuple[int, ...]


def filled_gaps(evidence: FrameEvidence, symbols: list[int], start: Text, end: Text) -> list[Text]:
    """Texts that begin as one reading does and end as the other does.

    Args:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        start: read from the beginning, astray at its end.
        end: read from the end, astray at its beginning.
    """
    average = average_symbols(evidence.log_probs, evidence.smoothed, 1)[:, 1:]
    extended = torch.cat([evidence.log_probs, average], dim=1)
    found = []
    for front, back, missing in product(CUTS, CUTS, MISSING):
        before, after = start[: max(0, len(start) - front)], end[back:]
        if len(before) + missing + len(after) <= len(extended):
            found += _filled(evidence, extended, symbols, before, missing, after)
    return list(dict.fromkeys(found))


def _filled(
    evidence: FrameEvidence, extended: Tensor, symbols: list[int], before: Text, missing: int, after: Text
) -> list[Text]:
    unknown = extended.shape[1] - 1
    labels = [*before, *[unknown] * missing, *after]
    share = label_occupancy(extended, labels)  # (T, L)
    known = torch.tensor(symbols, device=share.device)
    said = (torch.tensor(labels, device=share.device)[:, None] == known).to(share)
    target = evidence.occupancy[:, symbols] - share @ said
    gap = share[:, len(before) : len(before) + missing]
    texts = nearest_texts(evidence.whitener @ gap, evidence.whitener @ target, RIDGE, BEAM)[:KEPT].tolist()
    return [(*before, *(symbols[column] for column in text), *after) for text in texts]
