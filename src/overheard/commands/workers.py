"""overheard bench workers: the speed-up of a grid."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from overheard.audit.grid import read_grid
from overheard.audit.workers import Workers
from overheard.benchmarks.workers import GridTime, compare
from overheard.commands.benchmarks import machine_line
from overheard.errors import InputError


def speed_up(file: Path, workers: Workers) -> None:
    """Measure and print.

    Raises:
        InputError: a file or setting that cannot be used, or runs whose records differ.
    """
    grid, console = read_grid(file), Console()
    times: list[GridTime] = []
    with console.status("one worker") as status:
        for measured in compare(grid, workers):
            times.append(measured)
            status.update(f"{workers.number} workers ({workers.backend})")
    console.print(speed_up_table(times, file))
    if not all(each.equal for each in times):
        raise InputError("workers", "records that differ from one worker's", "report it: they ought to be the same")


def speed_up_table(times: list[GridTime], file: Path) -> Table:
    """A row for each run."""
    title = f"{file.name}: {times[0].jobs} jobs, {machine_line(times[0].workers.threads)}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("workers", "wall s", "s within jobs", "speed-up", "of ideal", "recovered", "records"):
        table.add_column(name, justify="right")
    for each in times:
        table.add_row(
            f"{each.workers.number} ({each.workers.backend})",
            f"{each.seconds:.1f}",
            f"{each.job_seconds:.1f}",
            f"{each.speed_up:.2f}",
            f"{each.share_of_ideal:.0%}",
            str(each.recovered),
            "equal" if each.equal else "differ",
        )
    return table
