"""overheard grid: the plan, its price, and the run."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from overheard.audit.grid import Grid, read_grid
from overheard.audit.grid_run import Estimate, GridFolder, finish, opened, probe
from overheard.audit.limits import free_bytes
from overheard.audit.records import load_records
from overheard.audit.workers import Workers
from overheard.commands.audits import REASONS_SHOWN
from overheard.errors import InputError
from overheard.report.html import write_report


def run_grid(file: Path, out: Path, workers: Workers, plan_only: bool) -> None:
    """Print what a grid is and will take, do what is missing of it, and write its page.

    Raises:
        InputError: a file, folder or setting that cannot be used, or nothing succeeded.
    """
    console = Console()
    grid = read_grid(file)
    with opened(grid, out, workers) as folder:
        console.print(plan_table(grid, folder))
        if folder.missing():
            with console.status("one job of each kind, to know what the rest will take"):
                estimate = probe(folder, workers)
            for line in estimate_lines(estimate, len(folder.missing()), workers):
                console.print(line, highlight=False, markup=False)
            if not plan_only:
                _finish(folder, workers, console)
        if not plan_only:
            _conclude(out, console)


def plan_table(grid: Grid, folder: GridFolder) -> Table:
    """One row for each axis; the caption counts jobs."""
    audible = [job for job in folder.jobs if job.problem is None]
    spread = sorted(job.seconds_audio for job in audible)
    seconds = f"{spread[0]:.1f} to {spread[-1]:.1f} s of audio in an update" if spread else "no audio"
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title="Plan", title_justify="left", caption_justify="left")
    table.add_column("axis")
    table.add_column("values", justify="right")
    table.add_column("", overflow="fold")
    rows = {
        "models": grid.models,
        "seeds": [str(seed) for seed in grid.seeds],
        "clients": [f"{each.kind}, {each.local_steps} step(s), {each.mode} mode" for each in grid.clients],
        "defences": grid.defences,
        "batches": [str(batch) for batch in grid.batches],
        "attacks": [f"{each.name} until {each.until}" for each in grid.attacks],
        "durations": [f"{start:g} to {end:g} s" for start, end in grid.durations],
    }
    for name, values in rows.items():
        table.add_row(name, str(len(values)), "; ".join(values))
    conditions = len({job.settings for job in folder.jobs})
    missing = len(folder.missing())
    table.caption = f"{len(folder.jobs)} jobs in {conditions} conditions, {seconds}; {missing} jobs are missing"
    return table


def estimate_lines(estimate: Estimate, rest: int, workers: Workers) -> list[str]:
    """What the rest of a grid will take, in words."""
    by = f"by {estimate.probes} job(s) that were tried"
    lines = [f"estimate: {_duration(estimate.seconds)} for {rest} jobs on {workers.number} worker(s), {by}"]
    if estimate.peak_mb is not None:
        wanted, free = estimate.peak_mb * workers.number, free_bytes()
        lines.append(f"memory: up to {estimate.peak_mb:,.0f} MB in a worker, {wanted:,.0f} MB in all")
        if free is not None and workers.backend == "loky" and wanted * 2**20 > free:
            lines[-1] += f"; {free / 2**20:,.0f} MB are free here: take fewer --workers"
    return lines


def _finish(folder: GridFolder, workers: Workers, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("grid", total=len(folder.missing()))
        for _ in finish(folder, workers):
            progress.advance(task)


def _conclude(out: Path, console: Console) -> None:
    records = load_records(out)
    failures: dict[str, int] = {}
    for record in records:
        if record.status == "failed":
            reason = record.reason or "no reason"
            failures[reason] = failures.get(reason, 0) + 1
    for reason, count in sorted(failures.items(), key=lambda item: -item[1])[:REASONS_SHOWN]:
        console.print(f"{count} failed: {reason}", highlight=False, markup=False)
    recovered = sum(record.recovered for record in records)
    console.print(f"{recovered} of {len(records)} recovered: all frames, mean absolute error below 0.01")
    print(f"page: {write_report(out)}")
    if not any(record.status == "ok" for record in records):
        raise InputError(str(out), "nothing succeeded", "see results.jsonl for each utterance's reason")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
