"""Readings from both ends, and texts that they make together."""

from collections.abc import Iterator
from itertools import product

import torch

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.growing_texts import Reader, Reading
from overheard.attacks.words.occupancy_noise import unit_noise
from overheard.attacks.words.prefix_fits import Occupancies
from overheard.attacks.words.text_lattice import Text
from overheard.speech.alphabet import BLANK

FLOORS = (1e-3, 3e-4, 3e-3, 1e-4, 0.0)
"""Occupancies that are not told from none, one after the other where a reading goes astray."""

READINGS = 4
"""Of each direction that are joined."""

OVERLAPS = (4, 3, 2)
"""Labels that two readings share where they are joined."""


def readings(evidence: FrameEvidence, symbols: list[int], beam: int, hint: Text) -> Iterator[tuple[Reading, Reading]]:
    """What is read from the beginning and what is read from the end, time after time for as long as either gets on.

    Args:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        beam: prefixes kept from one frame to the next.
        hint: a text that may be right in parts; what it says is tried where a reading does not go on by itself.
    """
    known = [BLANK, *symbols]
    rows = torch.zeros(evidence.log_probs.shape[1], dtype=torch.long, device=evidence.log_probs.device)
    rows[known] = torch.arange(len(known), device=rows.device)
    forwards, backwards = list[Occupancies](), list[Occupancies]()
    for floor in FLOORS:
        noise = unit_noise(evidence, known, floor)
        # An occupancy below zero is an error.
        target = torch.einsum("tij,tj->ti", noise, evidence.occupancy[:, known].clamp(min=0.0))
        forwards.append(Occupancies(evidence.log_probs, noise, target, rows))
        backwards.append(Occupancies(evidence.log_probs.flip(0), noise.flip(0), target.flip(0), rows))
    start, end = Reader(forwards, symbols, beam, hint), Reader(backwards, symbols, beam, hint[::-1])
    while any([start.advance(), end.advance()]):
        yield start.reading, end.reading.turned()


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
