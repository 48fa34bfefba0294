"""Texts fitted anew with their own alignment: integer least squares that moves all labels of a stretch at once.

With q of a text y (see `lattice_decoding`), the nearest one-hot rows are often nearer to the right text than y is, and
q of those nearer to the right q: a Gauss-Newton step on integers, repeated while it helps. What an edit at a time
cannot reach, as none helps without the others, is one step. A space too few and seven others one place late each is
such a chain: with a label more, put anywhere, all of them move.
"""

from collections.abc import Iterable
from itertools import product

import torch

from overheard.attacks.words.lattice_decoding import nearest_texts
from overheard.attacks.words.scored_texts import Search, Text

RIDGES = (0.3, 0.1, 0.03)
"""Errors of q that are assumed."""

BEAM, KEPT = 32, 2
"""Partial texts kept, and texts kept for each ridge."""

ROUNDS = 6
"""In which a text is fitted anew while that helps."""


def refitted(search: Search, text: Text, first: int, stop: int) -> Text:
    """The text that refits of a stretch end at.

    Args:
        search: of one utterance; `text` is scored.
        text: to start from.
        first: place of the stretch's first label.
        stop: place behind its last.
    """
    for _ in range(ROUNDS):
        found = search.score(_refits(search, text, first, stop))
        best = min(found, key=lambda each: found[each], default=text)
        if search.scores[best] >= search.scores[text]:
            break
        text = best
    return text


def with_more_or_fewer(text: Text, places: Iterable[int], differences: Iterable[int]) -> list[Text]:
    """The text with labels repeated, or left out, at each of some places."""
    found = []
    for place, count in product(places, differences):
        if count > 0:
            found.append((*text[:place], *(text[place],) * count, *text[place:]))
        else:
            found.append(text[:place] + text[place - count :])
    return found


def _refits(search: Search, text: Text, first: int, stop: int) -> list[Text]:
    if first >= stop:
        return []
    evidence, symbols = search.evidence, torch.tensor(search.symbols, device=search.evidence.log_probs.device)
    share = search.lattice(text).label_occupancy
    said = (torch.tensor(text, device=share.device)[:, None] == symbols).to(share)
    said[first:stop] = 0.0
    target = evidence.whitener @ (evidence.occupancy[:, symbols] - share @ said)
    design = evidence.whitener @ share[:, first:stop]
    return [
        (*text[:first], *symbols[columns].tolist(), *text[stop:])
        for ridge in RIDGES
        for columns in nearest_texts(design, target, ridge, BEAM)[:KEPT]
    ]
