"""overheard bench second-order | closed-form | matching: ratios and tables, measured when asked."""

import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from overheard import __version__
from overheard.benchmarks import closed_form, ctc, recurrence, second_order
from overheard.benchmarks.matching_study import METHODS, StudyPlan, StudyResult, run_study, summarise
from overheard.benchmarks.measurement import Measurement
from overheard.commands.machine import set_up
from overheard.errors import InputError

COLUMNS = {
    "snr_db": "SNR dB",
    "mae": "MAE",
    "correlation": "corr.",
    "iterations": "steps",
    "cpu_seconds": "CPU s",
}


def second_order_ratios(threads: int) -> None:
    """Measure CTC, recurrences and matching steps in one run, and print every ratio beside its target."""
    set_up("cpu", threads)
    console = Console()
    found: list[Measurement] = []
    for name, measure in (("CTC", ctc.measure), ("recurrences", recurrence.measure), ("steps", second_order.measure)):
        with console.status(f"measuring {name}, {threads} thread(s)"):
            found += measure(threads)
    console.print(ratio_table(found, threads))


def closed_form_ratios(threads: int) -> None:
    """Measure the closed form in one run, and print every ratio beside its target."""
    set_up("cpu", threads)
    console = Console()
    with console.status(f"measuring the closed form, {threads} thread(s)"):
        found = closed_form.measure(threads)
    console.print(ratio_table(found, threads, "Closed form"))


def ratio_table(measurements: list[Measurement], threads: int, title: str = "Second order") -> Table:
    """One row for each measurement; the title says what it was measured with."""
    table = Table(title=f"{title}, {machine_line(threads)}", title_justify="left")
    table.add_column("what", overflow="fold")
    for column in ("ours", "reference", "unit", "ratio", "target", "met"):
        table.add_column(column, justify="left" if column in ("unit", "target", "met") else "right")
    for each in measurements:
        numbers = (f"{each.ours:.3g}", f"{each.reference:.3g}", each.unit, f"{each.ratio:.3g}")
        table.add_row(each.name, *numbers, each.target, "yes" if each.met else "no")
    return table


def machine_line(threads: int) -> str:
    """Threads and versions, which every time depends on."""
    return (
        f"{threads} thread(s), overheard {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def matching(
    corpus: Path,
    out: Path,
    seconds_cpu: float,
    crops: int,
    crop_seconds: float,
    methods: tuple[str, ...],
    workers: int,
    seed: int,
) -> None:
    """Run the study, or what is missing of it, and print its table.

    Raises:
        InputError: a setting that makes no study, or a folder with results of another one.
    """
    if workers < 1:
        raise InputError("workers", workers, "give a whole number from 1 up")
    plan = StudyPlan(corpus, crops, crop_seconds, seconds_cpu, methods or tuple(METHODS), seed=seed)
    console = Console()
    results: list[StudyResult] = []
    total = plan.crops * len(plan.methods)
    with console.status("matching") as status:
        for result in run_study(plan, out, workers):
            results.append(result)
            status.update(
                f"matching, {len(results)} of {total}: {result.method} on {result.crop}, {result.snr_db:.1f} dB"
            )
    console.print(study_table(results, plan))
    print(f"results: {out / 'results.jsonl'}")


def study_table(results: list[StudyResult], plan: StudyPlan) -> Table:
    """Mean and standard deviation over crops for each method, best SNR first."""
    title = (
        f"Gradient matching, {plan.crops} crops of {plan.crop_seconds:g} s, {plan.cpu_seconds:g} CPU s each; "
        f"transcript and length given (the proportional part of each utterance's transcript); {machine_line(1)}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("crops", justify="right")
    for column in COLUMNS.values():
        table.add_column(column, justify="right")
    summary = summarise(results)
    for method in sorted(summary, key=lambda each: -summary[each]["snr_db"].mean):
        spreads = [summary[method][name] for name in COLUMNS]
        count = sum(result.method == method for result in results)
        table.add_row(method, str(count), *(f"{each.mean:.3g} ± {each.deviation:.2g}" for each in spreads))
    return table
