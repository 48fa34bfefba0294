"""How much sooner several workers finish a grid than one, and that its records are the same."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from overheard.audit.grid import Grid
from overheard.audit.grid_run import finish, opened
from overheard.audit.records import AuditRecord, load_records, timeless
from overheard.audit.workers import Workers


@dataclass(frozen=True)
class GridTime:
    """One run of a grid.

    Attributes:
        workers: who did it.
        jobs: of the grid.
        seconds: wall time of all jobs, the start of the workers included.
        job_seconds: wall time within jobs, summed over the workers.
        speed_up: over the first run, 1 for that itself.
        recovered: utterances.
        equal: its records are those of the first run but for times, memory and order.
    """

    workers: Workers
    jobs: int
    seconds: float
    job_seconds: float
    speed_up: float
    recovered: int
    equal: bool

    @property
    def share_of_ideal(self) -> float:
        """Speed-up over the number of workers."""
        return self.speed_up / self.workers.number


def compare(grid: Grid, workers: Workers) -> Iterator[GridTime]:
    """The whole grid by one process of this machine, then by these workers; the same threads for each.

    Raises:
        InputError: as `opened` and `carry_out`.
    """
    first: tuple[float, list[AuditRecord]] | None = None
    for who in (replace(workers, number=1, backend="loky", address=None), workers):
        with tempfile.TemporaryDirectory() as folder, opened(grid, Path(folder), who) as grid_folder:
            start = time.perf_counter()
            spent = [outcome.seconds for outcome in finish(grid_folder, who)]
            seconds = time.perf_counter() - start
            records = timeless(load_records(Path(folder)))
        first = first or (seconds, records)
        yield GridTime(
            workers=who,
            jobs=len(spent),
            seconds=seconds,
            job_seconds=sum(spent),
            speed_up=first[0] / seconds,
            recovered=sum(record.recovered for record in records),
            equal=records == first[1],
        )
