"""overheard bench rounds: what a round costs beyond the clients' own computing."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from overheard.commands.benchmarks import machine_line
from overheard.commands.machine import set_up
from overheard.federation.quiet import quieten

ENGINES = {0: "one process", 1: "Flower, 1 worker"}


def rounds_table(
    corpus: Path,
    out: Path,
    clients: tuple[int, ...],
    workers: tuple[int, ...],
    rounds: int,
    units: int,
    seed: int,
) -> None:
    """Measure one row after another, then print the table."""
    quieten()
    from overheard.benchmarks.rounds import RoundsLoad, measure

    set_up("cpu", 1)
    console = Console()
    load = RoundsLoad(corpus, clients, workers, rounds, units, seed)
    table = Table(title=f"Seconds of a round, {machine_line(1)}", title_justify="left")
    table.add_column("engine", no_wrap=True)
    for name in ("clients", "first", "round", "beyond", "clients' CPU", "server's CPU", "MB out", "MB back"):
        table.add_column(name, justify="right")
    with console.status("measuring"):
        for row in measure(load, out):
            measured = (row.first, row.seconds, row.overhead, row.clients_cpu, row.server_cpu)
            sizes = (f"{value / 1e6:.2f}" for value in (row.to_clients, row.from_clients))
            engine = ENGINES.get(row.workers, f"Flower, {row.workers} workers")
            table.add_row(engine, str(row.clients), *(f"{value:.2f}" for value in measured), *sizes)
            found = f"{row.seconds:.2f} s a round, {row.overhead:.2f} s of them beyond the clients' computing"
            console.print(f"{engine}, {row.clients} clients: {found}", highlight=False, soft_wrap=True)
    console.print(table)
