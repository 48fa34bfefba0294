"""Which utterances a client has in one batch."""

import random
from collections.abc import Sequence

from lhotse import MonoCut

from overheard.errors import InputError


def group(cuts: Sequence[MonoCut], size: int, most_seconds: float | None, seed: int) -> list[list[MonoCut]]:
    """Batches of `size` utterances each, drawn by the seed; utterances that fill no batch are left out.

    Batches of one keep the order of the utterances.

    Args:
        cuts: utterances to choose from.
        size: N.
        most_seconds: audio of a batch at most, s; None for any.
        seed: of the draw.

    Raises:
        InputError: no batch can be filled.
    """
    if size < 1:
        raise InputError("batch", size, "give a number of utterances from 1 up")
    limit = float("inf") if most_seconds is None else most_seconds
    if size == 1 and most_seconds is None:
        return [[cut] for cut in cuts]
    drawn = list(cuts)
    if size > 1:
        random.Random(seed).shuffle(drawn)
    batches: list[list[MonoCut]] = []
    for cut in drawn:
        room = (
            each
            for each in batches
            if len(each) < size and sum(other.duration for other in each) + cut.duration <= limit
        )
        batch = next(room, None)
        if batch is not None:
            batch.append(cut)
        elif cut.duration <= limit:
            batches.append([cut])
    full = [batch for batch in batches if len(batch) == size]
    if cuts and not full:
        found = f"{len(cuts)} utterances fill no batch of {size}"
        within = "" if most_seconds is None else f" within {most_seconds:g} s"
        raise InputError("batch", found + within, "select more or shorter utterances, or ask for smaller batches")
    return full
