"""Texts read off occupancies from either end, one frame after the other.

A prefix explains the occupancies of all frames that the alignment has not left it in (`prefix_marginals`). Where the
next label begins to be heard, long before it is likely, the fit fails by more than noise, and one label more mends it:
with errors of 1e-6, an occupancy of 1e-5 is seen. So a beam of prefixes follows the frames, ranked by what they leave
unexplained and by their length, and nothing about the rest of the text is guessed.

Two rules keep a beam on its way. Where several labels explain a window alike, none is taken: the prefix stays as it is
until a later frame tells them apart. And where no label more explains a window, the last few labels are edited: a label
that the model finds next to impossible is not heard before one behind it is, and has to be put in front of that.

Labels can hide for long, in time that the model fills with blanks, and lead a reading astray; read from the other end,
where time runs backwards and CTC is the same, other labels hide. Both readings are joined wherever they overlap.
"""

from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import torch
from torch import Tensor

from overheard.attacks.occupancy_noise import unit_noise
from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.prefix_fits import Fit, Occupancies, fit_prefixes, left_by_longer
from overheard.attacks.prefix_marginals import Prefixes, no_labels, together, with_tails
from overheard.speech.alphabet import BLANK

Text = tuple[int, ...]

LABEL_COST = 15.0
"""Chi-square that a label more has to explain."""

DOUBT = 30.0
"""Chi-square above what is usual up to which a prefix explains a window."""

MARGIN = 100.0
"""Chi-square beyond the best at which a prefix is given up."""

UNEXPLAINED = 2.0
"""Chi-square for each number that is taken to be usual at first."""

PATIENCE = 12
"""Frames, one after the other, that may be left unexplained, half as many by more than the margin; then reading on is
in vain."""

MOST_EDITED = 40
"""Prefixes that are edited in one reading, and one for every fourth frame."""

USUAL = 20
"""Frames that tell what is usual."""

SPARE = 2
"""Labels kept beyond those that have mass."""

CHILDREN = 8
"""Texts, of the many near a prefix, that are fitted."""

EXPANSIONS = 5
"""Prefixes, in one frame, that others are sought near."""

TAIL = 4
"""Labels at a prefix's end that are edited."""

ALIKE = 5
"""Texts that explain a window alike, one of which is no better than a guess."""

READINGS = 4
"""Of each direction that are joined."""

OVERLAPS = (4, 3, 2)
"""Labels that two readings share where they are joined."""


@dataclass
class Node:
    """A prefix and how it explains a window.

    Attributes:
        prefix: one.
        fit: of it.
        cost: chi-square, of the better text that it may become where that is not settled yet.
    """

    prefix: Prefixes
    fit: Fit
    cost: float

    @property
    def text(self) -> Text:
        """Its labels."""
        return self.prefix.texts[0]

    @property
    def rank(self) -> float:
        """Chi-square with the labels' own."""
        return self.cost + LABEL_COST * len(self.text)

    def before(self, states: Tensor) -> int:
        """Labels before the newest states."""
        return len(self.text) - (int(states) + 1) // 2


@dataclass(frozen=True)
class Reading:
    """Beginnings of a text, or ends.

    Attributes:
        texts: after the last frame that was read, best first.
        explained: the best after the last frame that was explained.
    """

    texts: list[Text]
    explained: Text

    def turned(self) -> "Reading":
        """From the other end."""
        return Reading([text[::-1] for text in self.texts], self.explained[::-1])


def readings(evidence: FrameEvidence, symbols: list[int], beam: int) -> tuple[Reading, Reading]:
    """What is read from the beginning and what is read from the end.

    Args:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        beam: prefixes kept from one frame to the next.
    """
    heard = [BLANK, *symbols]
    noise = unit_noise(evidence, heard)
    # An occupancy below zero is an error.
    target = torch.einsum("tij,tj->ti", noise, evidence.occupancy[:, heard].clamp(min=0.0))
    rows = torch.zeros(evidence.log_probs.shape[1], dtype=torch.long, device=noise.device)
    rows[heard] = torch.arange(len(heard), device=noise.device)
    forwards = Occupancies(evidence.log_probs, noise, target, rows)
    backwards = Occupancies(evidence.log_probs.flip(0), noise.flip(0), target.flip(0), rows)
    return _read(forwards, symbols, beam), _read(backwards, symbols, beam).turned()


def joined_readings(start: Reading, end: Reading) -> list[Text]:
    """Texts that begin as a reading from the beginning does and end as one from the end does, wherever both share a few
    labels."""
    pairs = product(start.texts[:READINGS], end.texts[:READINGS])
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


def _read(observed: Occupancies, labels: list[int], width: int) -> Reading:
    """Prefixes after the last frame, or where reading on was in vain, best first."""
    beam, settled, left = no_labels(observed.log_probs), 0, list[float]()
    explained, lost, effort = (), 0, MOST_EDITED + len(observed.log_probs) // 4
    for frame in range(len(observed.log_probs)):
        count = len(observed.wanted(frame))
        enough = DOUBT + count * (median(left[-USUAL:]) if left else UNEXPLAINED)
        found, edited = _Frame(observed, labels, frame, settled, enough).explained(beam)
        kept = [each for each in found[:width] if each.rank < found[0].rank + MARGIN]
        beam = together([each.prefix for each in kept])
        settled = max(0, min(each.before(each.fit.now) for each in kept) - SPARE)
        ever = max(0, min(each.before(each.fit.ever) for each in kept) - SPARE)
        beam = beam.newest(2 * (max(len(text) for text in beam.texts) - min(ever, settled)) + 1)
        left.append(kept[0].cost / count)
        if kept[0].cost <= enough:
            explained, lost = kept[0].text, 0
        else:
            lost += 2 if kept[0].cost > enough + MARGIN else 1
        effort -= edited
        if lost >= PATIENCE or effort < 0:
            break
    return Reading(list(beam.texts), explained)


@dataclass(frozen=True)
class _Frame:
    """The window that ends in a frame.

    Attributes:
        observed: what is to be explained.
        labels: that a text may hold.
        frame: the window's last.
        settled: labels that the alignment has left behind by then.
        enough: chi-square at which the window counts as explained.
    """

    observed: Occupancies
    labels: list[int]
    frame: int
    settled: int
    enough: float

    def explained(self, beam: Prefixes) -> tuple[list[Node], int]:
        """Prefixes that explain the window or come near it, best first, and how many were edited to find them."""
        edited = 0
        found, known, done = self._nodes(beam), set(beam.texts), set[Text]()
        for _ in range(EXPANSIONS):
            found.sort(key=lambda each: each.rank)
            node = next((each for each in found if each.text not in done), None)
            if node is None or found[0].cost <= self.enough:
                break
            done.add(node.text)
            fresh = self._longer(node, known)
            if not any(each.cost <= self.enough for each in fresh):
                fresh += self._edited(node, known | {each.text for each in fresh})
                edited += 1
            fresh.sort(key=lambda each: each.rank)
            if self._alike(fresh):
                node.cost = min(node.cost, fresh[0].rank - LABEL_COST * len(node.text))
            else:
                known |= {each.text for each in fresh}
                found += fresh
        return sorted(found, key=lambda each: each.rank), edited

    def _alike(self, ranked: list[Node]) -> bool:
        """Whether the next frames have to tell which of several texts is meant."""
        many = len(ranked) >= ALIKE and ranked[0].cost <= self.enough
        return many and ranked[ALIKE - 1].rank < ranked[0].rank + LABEL_COST

    def _nodes(self, prefixes: Prefixes) -> list[Node]:
        fit = fit_prefixes(self.observed, prefixes, self.frame, self._columns(prefixes))
        rows = range(len(prefixes.texts))
        return [Node(prefixes.take([row]), fit.take([row]), float(fit.cost[row])) for row in rows]

    def _columns(self, prefixes: Prefixes) -> int:
        return 2 * max(0, max(len(text) for text in prefixes.texts) - self.settled) + 1

    def _longer(self, node: Node, known: set[Text]) -> list[Node]:
        """Prefixes with one label more."""
        return self._best(node.prefix, node.fit, [(label,) for label in self.labels], known, node.cost - LABEL_COST / 2)

    def _edited(self, node: Node, known: set[Text]) -> list[Node]:
        """Prefixes whose last labels are an edit away."""
        depth = min(TAIL, len(node.text), (node.prefix.symbols.shape[1] - 1) // 2)
        stem = node.prefix.without(depth)
        fit = fit_prefixes(self.observed, stem, self.frame, self._columns(stem))
        by_length: dict[int, list[Text]] = {}
        for tail in edits(node.text[len(node.text) - depth :], self.labels):
            by_length.setdefault(len(tail), []).append(tail)
        found = [
            each
            for length, tails in by_length.items()
            for each in self._best(stem, fit, tails, known, node.cost + LABEL_COST * (depth - length) - LABEL_COST)
        ]
        return sorted(found, key=lambda each: each.rank)[:CHILDREN]

    def _best(self, stem: Prefixes, fit: Fit, tails: list[Text], known: set[Text], below: float) -> list[Node]:
        """The stem with those tails that explain most, where they leave less than some chi-square."""
        tails = [tail for tail in tails if stem.texts[0] + tail not in known]
        if not tails or not tails[0]:
            return []
        short = replace(stem, forward=stem.forward[:, : self.frame + 1])
        many = with_tails(short, tails, self.observed.log_probs[: self.frame + 1])
        left = left_by_longer(self.observed, fit, many, self.frame, len(tails[0]))
        best = [tails[row] for row in left.argsort().tolist() if left[row] < below][:CHILDREN]
        return self._nodes(with_tails(stem, best, self.observed.log_probs)) if best else []


def edits(tail: Text, labels: list[int]) -> list[Text]:
    """All texts that a label inserted, replaced or left out, or two neighbours exchanged, make of one."""
    found = [(*tail[:place], label, *tail[place:]) for place in range(len(tail) + 1) for label in labels]
    for place in range(len(tail)):
        found += [(*tail[:place], label, *tail[place + 1 :]) for label in labels]
        found.append(tail[:place] + tail[place + 1 :])
    for place in range(1, len(tail)):
        found.append((*tail[: place - 1], tail[place], tail[place - 1], *tail[place + 1 :]))
    return [each for each in dict.fromkeys(found) if each != tail]
