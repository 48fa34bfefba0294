"""overheard bench train: one epoch our way and the plain way, part by part."""

from rich.console import Console
from rich.table import Table

from overheard.benchmarks.training import PARTS, TrainingLoad, measure, ratios
from overheard.commands.machine import set_up


def training_ratios(load: TrainingLoad) -> None:
    """Print seconds of every part, utterances per second, memory, and the ratios beside their targets."""
    set_up("cpu", load.threads)
    console = Console()
    name = f"{load.num_layers}x{load.hidden_size} {load.cell.upper()}, {load.threads} thread(s)"
    with console.status(f"one epoch of {load.limit} utterances each way"):
        ours, plain = measure(load)
    table = Table(title=f"Training {name}, {ours.utterances} utterances of {load.corpus}", title_justify="left")
    table.add_column("what")
    table.add_column("ours", justify="right")
    table.add_column("plain", justify="right")
    for part in PARTS:
        table.add_row(f"{part}, s", *(f"{each.parts[part]:.2f}" for each in (ours, plain)))
    table.add_row("all, s", *(f"{each.seconds:.2f}" for each in (ours, plain)))
    table.add_row("all, CPU s of all threads", *(f"{each.cpu_seconds:.2f}" for each in (ours, plain)))
    table.add_row("utterances / s", *(f"{each.utterances / each.seconds:.2f}" for each in (ours, plain)))
    table.add_row("batches", *(str(each.batches) for each in (ours, plain)))
    table.add_row("matrix products' share of a step", *(f"{100 * each.products:.0f} %" for each in (ours, plain)))
    table.add_row("peak memory, MB", *(f"{each.peak_mb:.0f}" for each in (ours, plain)))
    console.print(table)
    for each in ratios(ours, plain, name):
        met = "met" if each.met else "not met"
        console.print(
            f"{each.name}: {1 / each.ratio:.2f}x less than plain; target {each.target}: {met}", highlight=False
        )
