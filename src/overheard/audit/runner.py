"""`run_audit`: share, attack and score every utterance of a selection, and keep what came of it.

The output folder holds config.json, results.jsonl, ranks.json and examples/. An utterance that fails is a record with
its reason, never the end of the run. A second start with the same settings does what is missing.
"""

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from overheard.audit.folder import begin
from overheard.audit.grouping import group
from overheard.audit.job import audit_batch, failed, prepare, scan_first
from overheard.audit.plan import AuditPlan, configuration
from overheard.audit.records import RESULTS, AuditRecord, append_record, drop_partial_line, load_records
from overheard.speech.corpus import load_corpus, select
from overheard.storage import write_text


def run_audit(plan: AuditPlan, out: Path, device: torch.device, console: Console) -> list[AuditRecord]:
    """Carry out a plan; returns every record of the folder that is of this plan, in the order written.

    Raises:
        InputError: the corpus or a model cannot be had, nothing is selected, or the folder holds another plan's run.
    """
    plan.check()
    selected, problems = select(load_corpus(plan.corpus), plan.selection)
    batches = group(selected, plan.batch, plan.batch_seconds, plan.seed)
    cuts = [cut for batch in batches for cut in batch]
    if len(cuts) < len(selected):
        console.print(f"{len(selected) - len(cuts)} of {len(selected)} utterances left out: they fill no batch")
    begin(out, configuration(plan, cuts, device), "a run")
    drop_partial_line(out)
    done = {(record.utterance, record.model) for record in load_records(out)} if (out / RESULTS).exists() else set()
    ranks = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("audit", total=len(plan.models) * (len(batches) + len(problems)) + len(plan.scanned))
        for text in plan.models:
            audited = prepare(text, plan.seed, device)
            for problem in problems:
                if (problem.utterance, text) not in done:
                    append_record(out, failed(plan, text, problem))
                progress.advance(task)
            for index, batch in enumerate(batches):
                missing = {cut.id for cut in batch if (cut.id, text) not in done}
                if missing:
                    example = _example(plan, out, batch[0].id, text) if index < plan.examples else None
                    for record in audit_batch(plan, audited, batch, example):
                        if record.utterance in missing:
                            append_record(out, record)
                progress.advance(task)
            ranks.append(scan_first(plan, audited, batches, attacked=True))
        for text in plan.scanned:
            ranks.append(scan_first(plan, prepare(text, plan.seed, device), batches, attacked=False))
            progress.advance(task)
    write_text(out / "ranks.json", json.dumps([rank for rank in ranks if rank is not None], indent=1))
    return load_records(out)


def _example(plan: AuditPlan, out: Path, name: str, text: str) -> Path:
    return out / "examples" / (name if len(plan.models) == 1 else f"{name}-{_slug(text)}")


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)[-40:]
