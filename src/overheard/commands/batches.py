"""overheard data inspect --batches: what buckets save, batch by batch."""

import random
from collections.abc import Sequence
from pathlib import Path

from lhotse import MonoCut
from rich.console import Console
from rich.table import Table

from overheard.commands.machine import set_up
from overheard.recognition.weights import resolve_model
from overheard.speech.corpus import Selection
from overheard.training.data import bucketing
from overheard.training.plan import usable_cuts
from overheard.training.settings import TrainingSettings

MOST_ROWS = 20


def inspect_batches(
    corpus: Path, model: str, batch_seconds: float, buckets: int, selection: Selection, device: str, threads: int
) -> None:
    """Print the first epoch's batches, their padding, and that of random batches of the same sizes."""
    set_up(device, threads)
    cuts, problems = usable_cuts(resolve_model(model, selection.seed), corpus, selection)
    settings = TrainingSettings(batch_seconds=batch_seconds, buckets=buckets, seed=selection.seed)
    batches = [list(batch) for batch in bucketing(cuts, settings, 0)]
    console = Console()
    table = Table(title=f"Batches of the first epoch, up to {batch_seconds:g} s in {buckets} buckets")
    for column in ("batch", "utterances", "shortest s", "longest s", "audio s", "padding"):
        table.add_column(column, justify="right")
    for number, batch in enumerate(batches[:MOST_ROWS], 1):
        seconds = [cut.duration for cut in batch]
        cells = (f"{min(seconds):.2f}", f"{max(seconds):.2f}", f"{sum(seconds):.1f}", f"{100 * padding([batch]):.1f} %")
        table.add_row(str(number), str(len(batch)), *cells)
    console.print(table)
    if len(batches) > MOST_ROWS:
        console.print(f"... and {len(batches) - MOST_ROWS} more", highlight=False)
    shuffled = random.Random(selection.seed).sample(cuts, len(cuts))
    plain: list[Sequence[MonoCut]] = []
    for batch in batches:
        plain.append(shuffled[: len(batch)])
        shuffled = shuffled[len(batch) :]
    console.print(
        f"{len(cuts)} utterances in {len(batches)} batches: {100 * padding(batches):.1f} % of frames are padding; "
        f"{100 * padding(plain):.1f} % in random batches of the same sizes; left out {len(problems)}",
        highlight=False,
        soft_wrap=True,
    )


def padding(batches: Sequence[Sequence[MonoCut]]) -> float:
    """Share of frames that belong to no utterance."""
    speech = sum(cut.duration for batch in batches for cut in batch)
    return 1 - speech / sum(len(batch) * max(cut.duration for cut in batch) for batch in batches)
