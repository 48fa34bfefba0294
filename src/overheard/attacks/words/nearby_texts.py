"""Occupancies of texts that differ from a known one in a few labels side by side: the lattice about these labels alone.

Frames in which the alignment is before the first of these labels, or behind the last, share their messages with the
known text: alpha of a state depends on what precedes it, beta on what follows it (Graves et al. 2006, eq. 5 to 10). So
forward and backward messages start from the known text's at the edges of a window of frames. What the labels change of
occupancies outside it is neglected: scores are near the exact ones, and tell which texts are worth an exact one.
Lattices of a trained model over 700 frames have to be kept in logarithms, those of a window do not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overheard.attacks.words.text_lattice import Text, TextLattice
from overheard.recognition.ctc_lattice import build_chains, occupancy_between
from overheard.speech.alphabet import BLANK

OUTSIDE = 1e-3
"""Probability that the alignment is inside the changed labels at a window's edge."""

EDGE = 3
"""Frames that a window is wider, either side."""

TOGETHER = 6
"""Labels apart that changes may begin, or end, and share a window."""

AT_ONCE = 2**20
"""Values of a lattice that are computed at once: what stays in a processor's cache."""


@dataclass(frozen=True)
class Occupancies:
    """Of some texts in a window.

    Attributes:
        texts: N of them.
        frames: F of the window.
        found: (F, N, V) gamma, zero for a text that has no path there.
    """

    texts: list[Text]
    frames: slice
    found: Float[Tensor, "F N V"]


def changed_labels(text: Text, other: Text) -> tuple[int, int, Text]:
    """Place of the first label of a text that another lacks, place behind the last, and what the other has there."""
    shortest = min(len(text), len(other))
    start = next((place for place in range(shortest) if text[place] != other[place]), shortest)
    same = next((back for back in range(shortest - start) if text[-1 - back] != other[-1 - back]), shortest - start)
    return start, len(text) - same, other[start : len(other) - same]


def nearby_occupancies(
    log_probs: Float[Tensor, "T V"], known: TextLattice, texts: Sequence[Text]
) -> Iterator[Occupancies]:
    """Occupancies of texts near a known one, group by group of those whose changes are near each other."""
    changes = [(*changed_labels(known.text, text)[:2], text) for text in texts]
    # Those that reach far last: two labels exchanged from afar would make the window of all beside them wide.
    changes.sort(key=lambda each: (each[1] - each[0] > 2 * TOGETHER, each))
    while changes:
        start = changes[0][0]
        far = (start + TOGETHER, max(changes[0][1], start + 2 * TOGETHER) + TOGETHER)
        count = next((at for at, each in enumerate(changes) if each[0] > far[0] or each[1] > far[1]), len(changes))
        group, changes = changes[:count], changes[count:]
        window = _window(known, start, max(stop for _, stop, _ in group))
        longest = max(len(text) for *_, text in group) - len(known.text) + window.stop - window.start
        cells = 2 * (2 * longest + 3) * (window.frames.stop - window.frames.start)
        rows = max(1, AT_ONCE // cells)
        emissions = log_probs[window.frames]
        emissions = (emissions - emissions.amax(dim=1, keepdim=True)).exp()
        for at in range(0, count, rows):
            some = [text for *_, text in group[at : at + rows]]
            yield Occupancies(some, window.frames, _occupancies(emissions, known, window, some))


@dataclass(frozen=True)
class _Window:
    """Frames, and the labels of the known text from one place to another, that its alignment may be at in them."""

    frames: slice
    start: int
    stop: int
    before: Float[Tensor, " W"]  # messages of the frame before, by columns of the known text
    after: Float[Tensor, " W"]  # of the frame behind, from the other end


def _window(known: TextLattice, start: int, stop: int) -> _Window:
    """About labels from one place to another, and the blanks on either side, where others may be in their place."""
    passed = known.states.cumsum(dim=1)
    first = max(0, int((1.0 - passed[:, 2 * start] <= OUTSIDE).sum()) - EDGE)
    last = min(len(passed), int((passed[:, 2 * stop + 1] > OUTSIDE).sum()) + EDGE)
    before = _edge(known, known.before[first], first - 1, 0, 2 * start + 1)
    after = _edge(known, known.after[last], last, 2 * stop + 2, 2 * len(known.text) + 3)
    low = max(0, int(before.nonzero()[0]) - 1) // 2
    high = min(len(known.text), int(after.nonzero()[-1]) // 2)
    return _Window(slice(first, last), min(start, low), max(stop, high), before, after)


def _edge(known: TextLattice, messages: Float[Tensor, " W"], frame: int, first: int, stop: int) -> Float[Tensor, " W"]:
    """Messages of a frame at the columns that it is likely to be in, of those from one on and before another."""
    columns = torch.arange(len(messages), device=messages.device)
    if frame < 0:
        there = columns == 0
    elif frame == len(known.states):
        there = columns == len(columns) - 1
    else:
        there = known.states[frame] > OUTSIDE * 1e-6
    logs = torch.where(there & (columns >= first) & (columns < stop), messages, -torch.inf)
    return (logs - logs.amax()).exp()


def _occupancies(
    emissions: Float[Tensor, "F V"], known: TextLattice, window: _Window, texts: list[Text]
) -> Float[Tensor, "F N V"]:
    behind = len(known.text) - window.stop
    own = [text[window.start : len(text) - behind] for text in texts]
    lengths = torch.tensor([len(part) for part in own], device=emissions.device)
    targets = torch.zeros(len(own), max(1, int(lengths.max())), dtype=torch.long, device=emissions.device)
    for row, part in zip(targets, own, strict=True):
        row[: len(part)] = torch.tensor(part, dtype=torch.long)
    chains = build_chains(targets, torch.full_like(lengths, len(emissions)), lengths, BLANK)
    columns = 2 * window.start + torch.arange(chains.symbols.shape[1], device=emissions.device)
    longer = 2 * (lengths - (window.stop - window.start))
    before = _at(window.before, columns.expand_as(chains.symbols))
    after = _at(window.after, columns - longer[:, None])
    states = occupancy_between(emissions, chains, before, after)
    found = states.new_zeros(*states.shape[:2], emissions.shape[1])
    return found.scatter_add_(2, chains.symbols.expand_as(states), states)


def _at(values: Float[Tensor, " W"], columns: Int[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Values of columns, zero where there is no such column."""
    there = (columns >= 0) & (columns < len(values))
    return torch.where(there, values[columns.clamp(0, len(values) - 1)], 0.0)
