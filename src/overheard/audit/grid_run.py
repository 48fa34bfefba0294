"""A grid's folder: what is missing of a grid, in parallel, with every finished record on disk before the next.

The output folder is that of every audit: config.json, results.jsonl, examples/. A grid may grow in the same folder,
but no record of a condition that it does not have stands among its own.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from overheard import __version__
from overheard.audit.folder import begin, provenance
from overheard.audit.grid import Grid, Job, jobs_of
from overheard.audit.plan import corpus_described, threat_model
from overheard.audit.records import RESULTS, AuditRecord, append_record, drop_partial_line, load_records, owners_alone
from overheard.audit.workers import Outcome, Workers, carry_out
from overheard.errors import InputError
from overheard.speech.corpus import load_corpus

LOCK = ".lock"


@dataclass(frozen=True)
class GridFolder:
    """A grid and what its folder holds of it.

    Attributes:
        grid: what is to be done.
        out: the folder.
        jobs: all of them.
        done: settings and utterance of every record; grows as records are kept.
    """

    grid: Grid
    out: Path
    jobs: tuple[Job, ...]
    done: set[tuple[str | None, str]]

    def missing(self) -> list[Job]:
        """Jobs without all of their records."""
        return [job for job in self.jobs if any((job.settings, name) not in self.done for name in job.utterances)]

    def keep(self, outcome: Outcome) -> None:
        """Append an outcome's records, each on disk before the next; those that are there already stay alone.

        Raises:
            InputError: the disk is full, or the folder is gone.
        """
        try:
            for record in outcome.records:
                if (record.settings, record.utterance) not in self.done:
                    append_record(self.out, record)
                    self.done.add((record.settings, record.utterance))
        except OSError as error:
            remedy = "make room there and start again: what was done is kept"
            raise InputError(str(self.out / RESULTS), f"cannot be written ({error.strerror})", remedy) from error


@dataclass(frozen=True)
class Estimate:
    """What the rest of a grid will take, from jobs that were tried.

    Attributes:
        seconds: wall time on all workers.
        peak_mb: of one worker; None where the system does not tell.
        probes: how many jobs were tried.
    """

    seconds: float
    peak_mb: float | None
    probes: int


@contextmanager
def opened(grid: Grid, out: Path, workers: Workers) -> Iterator[GridFolder]:
    """Begin a grid's folder or go on with it, as the only one who writes there.

    Raises:
        InputError: the corpus cannot be had, nothing is selected, another process writes there, or the folder holds
            something else or records of conditions that the grid does not have.
    """
    jobs = jobs_of(grid, load_corpus(Path(grid.corpus)))
    cuts = [cut for job in jobs for cut in job.cuts]
    shared = json.dumps(["grid", grid.corpus, __version__])
    config = {
        **provenance(torch.device(workers.device)),
        "threads": workers.threads,
        "models": list(grid.models),
        "threat_model": threat_model(list(grid.plans())),
        "settings": grid.settings(),
        "workers": workers.number,
        "fingerprint": hashlib.sha256(shared.encode()).hexdigest()[:12],
        "corpus": corpus_described(Path(grid.corpus), cuts),
    }
    kept = _kept(out)
    conditions = {job.settings for job in jobs}
    foreign = next((record for record in kept if record.settings not in conditions), None)
    if foreign is not None:
        found = f"holds records of other settings (the first: {foreign.utterance}, {foreign.settings})"
        raise InputError(str(out), found, "choose another --out, or put the values back into the grid")
    begin(out, config, "a grid")
    with _only_writer(out):
        drop_partial_line(out)
        yield GridFolder(grid, out, tuple(jobs), {(record.settings, record.utterance) for record in _kept(out)})


def probe(folder: GridFolder, workers: Workers) -> Estimate:
    """Do one job of each kind and estimate the rest: of its kind, a job takes the same for each second of audio.

    A kind is a model with a batch size, local training, defences and an attack. What the probes find is kept.
    """
    kinds: dict[str, list[Job]] = {}
    for job in folder.missing():
        if job.problem is None:
            kinds.setdefault(_kind(job), []).append(job)
    tried = [sorted(jobs, key=lambda job: job.seconds_audio)[len(jobs) // 2] for jobs in kinds.values()]
    seconds, peaks = 0.0, []
    for outcome in carry_out(tried, workers, folder.out):
        folder.keep(outcome)
        jobs = kinds[_kind(outcome.job)]
        rest = sum(job.seconds_audio for job in jobs) - outcome.job.seconds_audio
        seconds += outcome.seconds * rest / outcome.job.seconds_audio
        peaks.append(outcome.peak_mb)
    known = [peak for peak in peaks if peak is not None]
    return Estimate(seconds / workers.number, max(known) if known else None, len(tried))


def finish(folder: GridFolder, workers: Workers) -> Iterator[Outcome]:
    """Do what is missing; each outcome is kept before it is yielded."""
    for outcome in carry_out(folder.missing(), workers, folder.out):
        folder.keep(outcome)
        yield outcome


def _kind(job: Job) -> str:
    plan = job.plan
    chosen = (plan.models, plan.batch, plan.defences, plan.attack, plan.options, plan.until, vars(plan.client))
    return json.dumps(chosen)


def _kept(out: Path) -> list[AuditRecord]:
    return load_records(out) if (out / RESULTS).is_file() else []


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    with open(out / LOCK, "w", encoding="utf-8", opener=owners_alone) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                str(out), "another process writes there", "wait for it, or choose another --out"
            ) from error
        # The lock goes with the process, however that ends.
        yield
