"""overheard bench defences: what comes back under each."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from overheard.benchmarks.defences import STRENGTHS, DefenceRow, measure
from overheard.commands.machine import set_up
from overheard.federation.local_settings import LocalSettings
from overheard.recognition.weights import resolve_model
from overheard.speech.corpus import Selection
from overheard.training.plan import usable_cuts

LOCAL = LocalSettings(kind="gradient", batch_size=1, learning_rate=0.01)


def defence_table(
    corpus: Path, model: str, attack: str, defences: tuple[str, ...], selection: Selection, device: str, threads: int
) -> None:
    """Measure one row after another, then print the table."""
    set_up(device, threads)
    recogniser = resolve_model(model, selection.seed)
    cuts, _ = usable_cuts(recogniser, corpus, selection)
    console = Console()
    rows: list[DefenceRow] = []
    texts = defences or STRENGTHS
    with console.status("attacking") as status:
        for row in measure(recogniser, cuts, texts, attack, LOCAL, selection.seed):
            rows.append(row)
            console.print(f"{row.defence}: {row.recovered} of {row.utterances} recovered", highlight=False)
            status.update(f"attacking, {len(rows)} of {len(texts)}: {row.defence}")
    console.print(table_of(rows, attack))


def table_of(rows: list[DefenceRow], attack: str) -> Table:
    """One row for each defence."""
    table = Table(title=f"Attack {attack} under each defence", title_justify="left")
    table.add_column("defence", no_wrap=True)
    for name in ("recovered", "SNR dB", "MAE", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why not", overflow="fold")
    for row in rows:
        snr, mae = ("-" if value is None else f"{value:{how}}" for value, how in ((row.snr, ".0f"), (row.mae, ".1e")))
        numbers = (f"{row.recovered}/{row.utterances}", snr, mae, f"{row.seconds:.1f}")
        table.add_row(row.defence, *numbers, row.reason or "")
    return table
