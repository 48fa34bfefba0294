"""overheard audit | demo | report: whole runs."""

import statistics
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from overheard.audit.listening import listen
from overheard.audit.plan import AuditPlan
from overheard.audit.records import AuditRecord
from overheard.audit.runner import run_audit
from overheard.commands.machine import set_up
from overheard.errors import InputError
from overheard.metrics.alignment import CLOSE
from overheard.report.html import write_page, write_report
from overheard.report.paper import write_paper
from overheard.report.run_folder import read_run
from overheard.speech.corpus import Selection
from overheard.speech.synthetic import synthesize

REASONS_SHOWN = 20
DEMO_SPEAKERS = 12
DEMO_UTTERANCES_PER_SPEAKER = 1


def audit(plan: AuditPlan, out: Path, device: str, threads: int) -> None:
    """Carry out a plan, print its table and the page's path.

    Raises:
        InputError: nothing succeeded; names the first reason.
    """
    where = set_up(device, threads)
    console = Console()
    show_records(run_audit(plan, out, where, console), out, console)


def show_records(records: list[AuditRecord], out: Path, console: Console) -> None:
    """Print the table and the page's path.

    Raises:
        InputError: nothing succeeded; names the first reason.
    """
    console.print(result_table(records))
    failures = [record for record in records if not record.recovered]
    for record in failures[:REASONS_SHOWN]:
        console.print(f"{record.utterance}: {record.reason}", highlight=False, markup=False)
    if len(failures) > REASONS_SHOWN:
        console.print(f"... and {len(failures) - REASONS_SHOWN} more: see the page")
    page = write_report(out)
    print(f"page: {page}")
    if not any(record.status == "ok" for record in records):
        reason = next((record.reason for record in records if record.reason), "no utterance")
        raise InputError(str(out), f"nothing succeeded: {reason}", "see results.jsonl for each utterance's reason")


def demo(out: Path, seed: int, threads: int) -> None:
    """Synthesize a corpus, audit DeepSpeech 1 on it, scan DeepSpeech 2, and write the page."""
    corpus = synthesize(
        out / "corpus",
        num_speakers=DEMO_SPEAKERS,
        utterances_per_speaker=DEMO_UTTERANCES_PER_SPEAKER,
        seed=seed,
    )
    plan = AuditPlan(
        corpus=corpus,
        selection=Selection(seed=seed),
        models=("deepspeech1",),
        scanned=("deepspeech2",),
        seed=seed,
    )
    audit(plan, out / "audit", "cpu", threads)


def listen_to(
    folder: Path, corpus: Path | None, speakers: str | None, recogniser: str | None, vocoder: str | None, threads: int
) -> None:
    """Add hearings to a run's records, and write its page anew.

    Raises:
        InputError: voices are to be compared without a corpus to learn them from.
    """
    if speakers is not None and corpus is None:
        raise InputError("speakers", "no corpus to learn voices from", "give one with --corpus")
    set_up("cpu", threads)
    listen(folder, corpus, speakers, recogniser, Console(), vocoder)
    report(folder, redact=False)


def report(folder: Path, redact: bool) -> None:
    """Write the page of a run anew, and what a paper needs."""
    run = read_run(folder)
    print(f"page: {write_page(run, redact=redact)}")
    print(f"paper: {write_paper(run)}")


def result_table(records: list[AuditRecord]) -> Table:
    """One row for each record, and a last one that sums them up."""
    recovered = [record for record in records if record.recovered]
    models = sorted({record.model or "?" for record in records})
    title = f"What came back from {', '.join(models)}"
    table = Table(title=title, title_justify="left", show_footer=True, box=SIMPLE, padding=(0, 1, 0, 0))
    table.caption_justify = "left"
    table.caption = f"{len(recovered)} of {len(records)} recovered: all frames, mean absolute error below {CLOSE:g}"
    seconds = [record.seconds for record in records if record.seconds is not None]
    median = f"{statistics.median(seconds):.2f}" if seconds else "-"
    table.add_column("utterance", footer="median", no_wrap=True)
    for name, footer in (("frames", ""), ("MAE", ""), ("SNR dB", ""), ("CER", ""), ("seconds", median)):
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for name in ("unique", "certified"):
        table.add_column(name, no_wrap=True)
    for record in records:
        frames = f"{record.frames_recovered or 0}/{record.frames_true or '?'}"
        measured = (record.feature_mae, record.feature_snr_db, record.cer, record.seconds)
        numbers = zip(measured, (".1e", ".0f", ".2f", ".2f"), strict=True)
        mae, snr, cer, spent = ("-" if value is None else f"{value:{how}}" for value, how in numbers)
        unique, certified = ({True: "yes", False: "no", None: "-"}[each] for each in (record.unique, record.certified))
        table.add_row(record.utterance, frames, mae, snr, cer, spent, unique, certified)
    return table
