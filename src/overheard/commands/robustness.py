"""overheard bench robustness: the exact attack on noisy, coarse and locally trained updates, as a table."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from overheard.benchmarks.robustness import CASES, CLOSE, RECOVERED, RobustnessRow, load_results, measure, summarise
from overheard.commands.benchmarks import machine_line
from overheard.commands.machine import set_up
from overheard.recognition.weights import resolve_model
from overheard.speech.corpus import Selection


def robustness(corpus: Path, model: str, out: Path, cases: tuple[str, ...], selection: Selection, threads: int) -> None:
    """Run what is missing in `out`, and print the table of all it holds."""
    set_up("cpu", threads)
    console = Console()
    with console.status("measuring") as status:
        for each in measure(resolve_model(model, selection.seed), corpus, selection, cases or tuple(CASES), out):
            status.update(f"{each.case}: {each.utterance}")
    console.print(robustness_table(summarise(load_results(out)), model, threads))


def robustness_table(rows: list[RobustnessRow], model: str, threads: int) -> Table:
    """One row for each case."""
    table = Table(title=f"{model}, closed form and likelihood, {machine_line(threads)}", title_justify="left")
    table.add_column("case")
    counted = ("utterances", f"MAE < {RECOVERED}", f"MAE < {CLOSE}", "unique", "falsely")
    for column in (*counted, "SNR dB", "CPU s", "loss fell"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = map(str, (row.utterances, row.recovered, row.close, row.unique, row.falsely_unique))
        learnt = "" if row.learnt is None else str(row.learnt)
        table.add_row(row.case, *counts, f"{row.snr_db:.1f}", f"{row.seconds:.1f}", learnt)
    return table
