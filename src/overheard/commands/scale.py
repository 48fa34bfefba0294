"""overheard bench scale: what an utterance costs, and the law behind it."""

from collections.abc import Callable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from overheard.benchmarks.scale import AXES, ScalePlan, ScalePoint, fitted, measure
from overheard.commands.benchmarks import machine_line
from overheard.commands.machine import set_up

UNITS = {"seconds": "s of audio", "units": "units", "batch": "utterances in an update"}
MEASURED: dict[str, tuple[str, Callable[[ScalePoint], float | None]]] = {
    "CPU s an utterance": (".3g", lambda point: point.utterance_seconds),
    "peak MB": (".0f", lambda point: point.peak_mb),
    "update MB": (".1f", lambda point: point.update_mb),
    "GFLOP an utterance": (".3g", lambda point: point.utterance_gflop),
}


def scale(plan: ScalePlan) -> None:
    """Measure with one thread, and print points and laws."""
    set_up("cpu", 1)
    console = Console()
    points: list[ScalePoint] = []
    with console.status("measuring") as status:
        for point in measure(plan):
            points.append(point)
            status.update(f"measured {point.axis} {point.size:.3g}")
    console.print(scale_table(points, plan))


def scale_table(points: list[ScalePoint], plan: ScalePlan) -> Table:
    """A row for each point, and behind each axis the laws through its points."""
    title = f"{plan.attack} until {plan.until} on {plan.model}, {machine_line(1)}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("size", justify="right")
    table.add_column("")
    for name in (*MEASURED, "recovered"):
        table.add_column(name, justify="right")
    for axis in AXES:
        own = [point for point in points if point.axis == axis]
        for point in own:
            numbers = (_written(of(point), how) for how, of in MEASURED.values())
            table.add_row(f"{point.size:.3g}", UNITS[axis], *numbers, f"{point.recovered}/{point.utterances}")
        if own:
            laws = (fitted([point.size for point in own], [of(point) for point in own]) for _, of in MEASURED.values())
            cells = ("-" if law is None else f"{law.factor:.2g} x^{law.exponent:.2f}" for law in laws)
            table.add_row("x", f"law in {UNITS[axis]}", *cells, "", end_section=True)
    return table


def _written(value: float | None, how: str) -> str:
    return "-" if value is None else f"{value:{how}}"
