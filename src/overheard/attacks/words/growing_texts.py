"""Texts read off occupancies from either end, one frame after the other.

A prefix explains the occupancies of all frames that the alignment has not left it in (`prefix_marginals`). Where the
next label begins to be heard, long before it is likely, the fit fails by more than noise, and one label more mends it:
with errors of 1e-6, an occupancy of 1e-5 is seen. So a beam of prefixes follows the frames, ranked by what they leave
unexplained and by their length, and nothing about the rest of the text is guessed.

Three rules keep a beam on its way. Where several labels explain a window alike, none is taken: the prefix stays as it
is until a later frame tells them apart. Where no label more explains a window, the last few labels are edited: a label
that the model finds next to impossible is not heard before one behind it is, and has to be put in front of that. Where
that fails too, what another text has behind the same labels is tried.

Labels can hide for long, in time that the model fills with blanks, and lead a reading astray; read from the other end,
where time runs backwards and CTC is the same, other labels hide. Both readings are joined wherever they overlap.
"""

from dataclasses import dataclass
from itertools import product
from statistics import median

import torch

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.near_prefixes import Frame, Text
from overheard.attacks.words.occupancy_noise import unit_noise
from overheard.attacks.words.prefix_fits import Occupancies
from overheard.attacks.words.prefix_marginals import no_labels, together
from overheard.speech.alphabet import BLANK

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

READINGS = 4
"""Of each direction that are joined."""

OVERLAPS = (4, 3, 2)
"""Labels that two readings share where they are joined."""


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


def readings(evidence: FrameEvidence, symbols: list[int], beam: int, hint: Text) -> tuple[Reading, Reading]:
    """What is read from the beginning and what is read from the end.

    Args:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        beam: prefixes kept from one frame to the next.
        hint: a text that may be right in parts; what it says is tried where a reading does not go on by itself.
    """
    heard = [BLANK, *symbols]
    noise = unit_noise(evidence, heard)
    # An occupancy below zero is an error.
    target = torch.einsum("tij,tj->ti", noise, evidence.occupancy[:, heard].clamp(min=0.0))
    rows = torch.zeros(evidence.log_probs.shape[1], dtype=torch.long, device=noise.device)
    rows[heard] = torch.arange(len(heard), device=noise.device)
    forwards = Occupancies(evidence.log_probs, noise, target, rows)
    backwards = Occupancies(evidence.log_probs.flip(0), noise.flip(0), target.flip(0), rows)
    return _read(forwards, symbols, beam, hint), _read(backwards, symbols, beam, hint[::-1]).turned()


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


def _read(observed: Occupancies, labels: list[int], width: int, hint: Text) -> Reading:
    """Prefixes after the last frame, or where reading on was in vain, best first."""
    beam, settled, left = no_labels(observed.log_probs), 0, list[float]()
    explained, lost, effort = (), 0, MOST_EDITED + len(observed.log_probs) // 4
    for frame in range(len(observed.log_probs)):
        count = len(observed.wanted(frame))
        enough = DOUBT + count * (median(left[-USUAL:]) if left else UNEXPLAINED)
        found, edited = Frame(observed, labels, frame, settled, enough, hint).explained(beam)
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
