"""overheard data download | prepare | synthesize | inspect."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from overheard.audit.inspection import (
    UtteranceShapes,
    ctc_shapes,
    first_batch,
    histogram,
    inspect_utterance,
)
from overheard.audit.steps import read_batch
from overheard.commands.machine import set_up
from overheard.errors import InputError
from overheard.recognition.weights import resolve_model
from overheard.speech.batching import Batch
from overheard.speech.corpus import Selection, load_corpus, prepare, select
from overheard.speech.download import OPENSLR, download_subset
from overheard.speech.synthetic import read_sentences, synthesize

TABLE_WIDTH = 128


def download(subset: str, directory: Path, mirror: str | None) -> None:
    """Fetch a subset and say where it is."""
    print(download_subset(subset, directory, mirror=mirror or OPENSLR))


def write_manifest(corpus: Path, out: Path) -> None:
    """Prepare a manifest; utterances that cannot be used are named."""
    prepared = prepare(corpus, out)
    for problem in prepared.problems:
        print(f"left out {problem.error()}")
    speakers = len({cut.supervisions[0].speaker for cut in prepared.cuts})
    hours = sum(cut.duration for cut in prepared.cuts) / 3600
    print(
        f"{out}: {len(prepared.cuts)} utterances, {speakers} speakers, {hours:.2f} h; left out {len(prepared.problems)}"
    )


def speak(directory: Path, speakers: int, utterances_per_speaker: int, seed: int, sentences: Path | None) -> None:
    """Synthesize a corpus and say where it is."""
    print(
        synthesize(
            directory,
            num_speakers=speakers,
            utterances_per_speaker=utterances_per_speaker,
            seed=seed,
            sentences=read_sentences(sentences),
        )
    )


def inspect(
    corpus: Path | None,
    batch: Path | None,
    model: str,
    batch_size: int,
    selection: Selection,
    device: str,
    threads: int,
) -> None:
    """Print shapes, lengths and feasibility of a corpus or of one batch file."""
    set_up(device, threads)
    if (corpus is None) == (batch is None):
        raise InputError("corpus", "neither or both of --corpus and --batch", "give one of them")
    recogniser = resolve_model(model, selection.seed)
    console = Console()
    # Shapes do not fold well; a terminal narrower than this wraps whole lines.
    console.width = max(console.width, TABLE_WIDTH)
    if corpus is None:
        assert batch is not None
        _print_batch(console, recogniser, read_batch(recogniser, batch)[0], model)
        return
    cuts, problems = select(load_corpus(corpus), selection)
    rows = [inspect_utterance(recogniser, cut) for cut in track(cuts, "reading", console=console, transient=True)]
    rows += [
        UtteranceShapes(each.utterance, each.speaker, problem=f"{each.reason}; {each.remedy}") for each in problems
    ]
    feasible = {row.utterance for row in rows if row.problem is None}
    if not feasible:
        raise InputError(rows[0].utterance, rows[0].problem, f"none of the {len(rows)} utterances can be used")
    console.print(_utterance_table(rows, model))
    console.print(_histogram_table([row.seconds for row in rows if row.seconds is not None]))
    console.print(f"{len(feasible)} of {len(rows)} utterances are feasible for {model}")
    chosen = [cut for cut in cuts if cut.id in feasible][:batch_size]
    _print_batch(console, recogniser, first_batch(recogniser, chosen), model)


def _utterance_table(rows: list[UtteranceShapes], model: str) -> Table:
    table = Table(title=f"Utterances as {model} sees them", title_justify="left")
    names = ("utterance", "speaker", "seconds", "samples (S,)", "features (T, N, F)", "T'", "labels", "repeats")
    for name in (*names, "needs"):
        table.add_column(name, justify="left" if name in names[:2] else "right", no_wrap=True)
    table.add_column("feasible", overflow="fold")
    for row in rows:
        seconds = None if row.seconds is None else f"{row.seconds:.2f}"
        cells = (row.utterance, row.speaker, seconds, row.waveform, row.features, row.output_length)
        cells += (row.labels, row.repeats, row.minimum_frames, row.problem or "yes")
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return table


def _histogram_table(seconds: list[float]) -> Table:
    table = Table(title="Durations", title_justify="left", show_header=False, box=None)
    bins = histogram(seconds)
    most = max(count for _, _, count in bins)
    for start, end, count in bins:
        table.add_row(f"{start:.0f}-{end:.0f} s", str(count), "█" * round(40 * count / most))
    return table


def _print_batch(console: Console, model: torch.nn.Module, batch: Batch, name: str) -> None:
    table = Table(title=f"One batch of {batch.size}, all that reaches CTC with {name}", title_justify="left")
    for column in ("tensor", "shape or values", "meaning"):
        table.add_column(column, overflow="fold")
    for row in ctc_shapes(model, batch):
        table.add_row(*row)
    console.print(table)
