"""Texts from occupancies by prefix beam search, as a recogniser decodes its own probabilities.

A trained model is sure of most frames, rightly or wrongly, and the occupancies of the text are surer still: many frames
show one symbol alone. Paths through symbols of no occupancy are paths of no text that was said, so that CTC decoding of
the occupancies themselves (Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using
bi-directional recurrent DNNs", algorithm 1, without a language model) leaves few candidates. They are candidates only:
occupancies of neighbouring frames belong together, which their product does not know.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.speech.alphabet import BLANK

BRANCH = 10.0
"""Occupancy, in units of its least value, from which on a symbol may begin."""


def prefix_texts(occupancy: Float[Tensor, "T V"], beam: int, floor: float) -> list[tuple[int, ...]]:
    """Texts whose paths have most occupancy, the likeliest first.

    Args:
        occupancy: estimate, of any sign.
        beam: prefixes kept at each frame.
        floor: occupancy that no estimate below tells from none.
    """
    rows = occupancy.clamp(min=floor).log().tolist()
    begins = [[label for label in torch.nonzero(row > BRANCH * floor)[:, 0].tolist() if label] for row in occupancy]
    # Logarithms of what a prefix has with a blank at its end, and with its last label.
    prefixes: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for row, labels in zip(rows, begins, strict=True):
        longer: dict[tuple[int, ...], tuple[float, float]] = {}
        for text, (blank, label) in prefixes.items():
            total = _plus(blank, label)
            _add(longer, text, total + row[BLANK], label + row[text[-1]] if text else -math.inf)
            for each in labels:
                # A label that follows itself needs a blank between.
                before = blank if text and text[-1] == each else total
                _add(longer, (*text, each), -math.inf, before + row[each])
        best = sorted(longer, key=lambda text: _plus(*longer[text]), reverse=True)[:beam]
        prefixes = {text: longer[text] for text in best}
    return list(prefixes)


def _add(
    prefixes: dict[tuple[int, ...], tuple[float, float]], text: tuple[int, ...], blank: float, label: float
) -> None:
    before = prefixes.get(text)
    prefixes[text] = (blank, label) if before is None else (_plus(before[0], blank), _plus(before[1], label))


def _plus(one: float, other: float) -> float:
    """log(e^one + e^other)."""
    high, low = max(one, other), min(one, other)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
