"""The progress bar of a matching run: restart, iteration, loss, gradient norm, distance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Show: TypeAlias = Callable[[float, dict[str, Any]], None]
"""Takes the share of the restart that is over, and a row of the run's history."""


@contextmanager
def shown_progress() -> Iterator[Show]:
    """A bar on the terminal, if there is one, gone when the run ends."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("matching", total=1.0)

        def show(share: float, row: dict[str, Any]) -> None:
            text = (
                f"matching, restart {row['restart'] + 1}, iteration {row['iteration']}: loss {row['loss']:.4g}, "
                f"gradient norm {row['gradient_norm']:.3g}, distance {row['distance']:.3g}"
            )
            progress.update(task, completed=min(1.0, share), description=text)

        yield show
