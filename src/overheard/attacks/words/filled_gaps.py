"""Texts of which both ends are known and a stretch between is not: integer least squares for its labels.

Readings from either end go astray somewhere (`growing_texts`). Cut back by a few labels each, they are right up to
there, and what is left is the problem of `lattice_decoding` with few unknown labels in place of all: q of both ends and
of average symbols between them, the ends' share of the occupancies subtracted. How far to cut back and how many labels
are missing is tried; most of what comes out is no text that was said, and the best few are near it.

Where local search ends, most labels are right, and those that are not stand together: a letter too few and as many
places late. The frames that such a text does not explain tell the stretch, which is sought again in the same way.
"""

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.lattice_decoding import average_symbols, label_occupancy, nearest_texts

CUTS = (1, 5, 9, 13, 19, 26)
"""Labels by which each end is cut back."""

MISSING = range(1, 44, 3)
"""Labels between the ends."""

WIDER = (0, 3, 6)
"""Labels by which a doubtful stretch is taken wider, either side."""

DIFFERENCE = 3
"""Labels that it may have too few, or too many."""

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
    trials = product(CUTS, CUTS, MISSING)
    return _filled_each(
        evidence, symbols, ((start[: max(0, len(start) - front)], count, end[back:]) for front, back, count in trials)
    )


def refilled(evidence: FrameEvidence, symbols: list[int], text: Text, first: int, stop: int) -> list[Text]:
    """Texts that are a given one before a stretch of labels and behind it.

    Args:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        text: the given one.
        first: place of the stretch's first label.
        stop: place behind its last.
    """
    ends = ((max(0, first - front), min(len(text), stop + back)) for front, back in product(WIDER, WIDER))
    trials = product(dict.fromkeys(ends), range(-DIFFERENCE, DIFFERENCE + 1))
    return _filled_each(
        evidence, symbols, ((text[:low], max(1, high - low + more), text[high:]) for (low, high), more in trials)
    )


def _filled_each(evidence: FrameEvidence, symbols: list[int], gaps: Iterable[tuple[Text, int, Text]]) -> list[Text]:
    """Texts for each gap: what is before it, how many labels it has, what is behind it."""
    average = average_symbols(evidence.log_probs, evidence.smoothed, 1)[:, 1:]
    extended = torch.cat([evidence.log_probs, average], dim=1)
    return list(
        dict.fromkeys(
            text
            for before, missing, after in gaps
            if len(before) + missing + len(after) <= len(extended)
            for text in _filled(evidence, extended, symbols, before, missing, after)
        )
    )


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
