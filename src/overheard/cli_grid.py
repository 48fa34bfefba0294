"""The command line of grids; see `cli`."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from overheard.options import DEFAULT_THREADS


def grid(
    file: Positional[Path],
    *,
    out: Path,
    workers: int = DEFAULT_THREADS,
    threads: int = 1,
    device: str = "cpu",
    backend: Literal["loky", "ray"] = "loky",
    address: str | None = None,
    job_seconds: float | None = None,
    memory_mb: int | None = None,
    plan_only: bool = False,
) -> None:
    """Audit every combination of models, clients, defences, batches, attacks, seeds and durations, in parallel.

    Prints the plan and what it will take, then does what is missing of it; a job that fails is a record with its
    reason. Stopped or killed at any moment, it goes on where it was. docs/scale.md describes the file.

    Example: overheard grid grid.toml --out runs/grid --workers 4

    Args:
        file: TOML: corpus, and any of models, clients, defences, batches, attacks, seeds, durations, limit
        out: folder for records, examples and page
        workers: processes side by side; with --threads each, no more than there are cores
        threads: for torch, in each worker
        device: cpu, cuda, cuda:1 ...
        backend: processes of this machine, or a Ray cluster that sees the same folders
        address: of the cluster's head, host:port; without it one is started here
        job_seconds: a job that takes longer fails, and says so
        memory_mb: a job that takes more beyond its model fails, and says so
        plan_only: stop behind plan and estimate
    """
    from overheard.audit.limits import Limits
    from overheard.audit.workers import Workers
    from overheard.commands import grids

    chosen = Workers(workers, threads, device, backend, address, Limits(job_seconds, memory_mb))
    grids.run_grid(file, out, chosen, plan_only)


def bench_workers(
    file: Positional[Path],
    *,
    workers: int = DEFAULT_THREADS,
    threads: int = 1,
    backend: Literal["loky", "ray"] = "loky",
    address: str | None = None,
) -> None:
    """Do a whole grid with one worker and again with several: the speed-up, and whether the records are the same.

    Example: overheard bench workers grid.toml --workers 4

    Args:
        file: of the grid; see overheard grid
        workers: processes side by side, of the second run
        threads: for torch, in each worker of either run
        backend: of the second run: processes of this machine, or a Ray cluster that sees the same folders
        address: of the cluster's head, host:port; without it one is started here
    """
    from overheard.audit.workers import Workers
    from overheard.commands.workers import speed_up

    speed_up(file, Workers(workers, threads, backend=backend, address=address))
