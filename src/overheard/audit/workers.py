"""Jobs carried out side by side by joblib: in processes of this machine (loky), or on a Ray cluster; the same code.

Workers compute and the caller alone writes. A worker that dies takes the jobs with it that were under way; each is
tried again alone, and one that kills its worker then too has failed.
"""

import functools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal, get_args

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from overheard.audit.cluster import enter_ray
from overheard.audit.grid import Job
from overheard.audit.job import AuditedModel, all_failed, audit_batch, failed, prepare
from overheard.audit.limits import Limits, OverTime, limited, peak_bytes
from overheard.audit.records import AuditRecord
from overheard.errors import InputError
from overheard.metering import leave_imports_alone

Backend = Literal["loky", "ray"]
LOST = "its worker process died, twice: killed, out of memory, or far over time"
IDLE_SECONDS = 30
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "bad_alloc")
"""How Python, torch and C++ say it."""


@dataclass(frozen=True)
class Workers:
    """Who carries jobs out.

    Attributes:
        number: processes side by side.
        threads: of each.
        device: of each.
        backend: "loky" for processes of this machine, "ray" for a cluster.
        address: of the cluster's head; None for one that is started here.
        limits: of each job.

    Raises:
        InputError: a number below 1, or an address without a cluster.
    """

    number: int = 1
    threads: int = 1
    device: str = "cpu"
    backend: Backend = "loky"
    address: str | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name, value in (("workers", self.number), ("threads", self.threads)):
            if value < 1:
                raise InputError(name, value, "give a whole number from 1 up")
        for name, limit in (("job-seconds", self.limits.seconds), ("memory-mb", self.limits.memory_mb)):
            if limit is not None and not limit > 0:
                raise InputError(name, limit, "give a number above 0")
        if self.backend not in get_args(Backend):
            raise InputError("backend", repr(self.backend), f"choose one of {', '.join(get_args(Backend))}")
        if self.address is not None and self.backend != "ray":
            raise InputError("address", self.address, "it is a Ray cluster's: add --backend ray")


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        job: that was carried out.
        records: of its utterances, in its order.
        seconds: wall time, without the model's making.
        peak_mb: of the whole worker process; None where the system does not tell.
    """

    job: Job
    records: tuple[AuditRecord, ...]
    seconds: float = 0.0
    peak_mb: float | None = None


def carry_out(jobs: Sequence[Job], workers: Workers, out: Path) -> Iterator[Outcome]:
    """Do all jobs, and yield what comes of each as soon as it is there.

    Args:
        jobs: independent of each other.
        workers: who does them.
        out: the grid's folder, where signals of examples are kept.

    Raises:
        InputError: a model cannot be had, or the back end is not installed, or its cluster does not answer.
    """
    waiting = dict(enumerate(jobs))
    suspects: list[int] = []
    with ExitStack() as stack:
        lost = _enter(workers, stack)
        while waiting:
            # A suspect runs with nobody beside it: if its worker dies again, it is the reason.
            alone = suspects[:1]
            begun: list[int] = []
            chosen = {place: waiting[place] for place in alone or waiting}
            try:
                for place, outcome in _in_parallel(chosen, workers, out, begun):
                    del waiting[place]
                    yield outcome
                suspects = suspects[1:]
            except lost:
                if alone:
                    job = waiting.pop(alone[0])
                    yield Outcome(job, tuple(all_failed(job.plan, job.plan.models[0], job.cuts, LOST)))
                    suspects = suspects[1:]
                else:
                    suspects = [place for place in begun if place in waiting]


def _enter(workers: Workers, stack: ExitStack) -> tuple[type[Exception], ...]:
    """Make the back end joblib's own until the stack unwinds; returns what it raises when it has lost a worker."""
    if workers.backend == "ray":
        return enter_ray(workers.address, workers.number, stack)
    # Workers whose caller was killed end when they have had nothing to do for so long.
    chosen = joblib.parallel_config(
        backend="loky", inner_max_num_threads=workers.threads, idle_worker_timeout=IDLE_SECONDS
    )
    stack.enter_context(chosen)
    return (TerminatedWorkerError,)


def _in_parallel(
    chosen: dict[int, Job], workers: Workers, out: Path, begun: list[int]
) -> Iterator[tuple[int, Outcome]]:
    folder = Path.cwd()

    def calls() -> Iterator[Any]:
        for place, job in chosen.items():
            begun.append(place)
            yield joblib.delayed(_carried_out)(place, job, workers, out.resolve(), folder)

    # joblib computes in this very process when asked for one; here a single worker must be able to die alone too.
    parallel = joblib.Parallel(
        n_jobs=max(2, workers.number),
        return_as="generator_unordered",
        pre_dispatch=workers.number,  # pyright: ignore[reportArgumentType] (a number too)
        batch_size=1,  # pyright: ignore[reportArgumentType]
    )
    with _interrupts_held():
        outcomes = parallel(calls())
    yield from outcomes  # pyright: ignore[reportReturnType]


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the body is done, and never reaches a process that the body starts.

    It goes to all processes of a terminal's group, but the caller alone is to answer it and end its workers. A
    blocked signal stays blocked in what is started meanwhile (`man 7 signal`), from its first instruction on.
    """
    # Loky starts this one of Python's with the first worker, which would let interrupts through from then on.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _carried_out(place: int, job: Job, workers: Workers, out: Path, folder: Path) -> tuple[int, Outcome]:
    """One job, in the worker."""
    plan, text = job.plan, job.plan.models[0]
    if job.problem is not None:
        return place, Outcome(job, (failed(plan, text, job.problem),))
    # Where the caller is: paths of corpora and models, and modules of one's own, are found from there.
    os.chdir(folder)
    audited = _prepared(text, plan.seed, workers.device, workers.threads)
    example = None if job.example is None else out / "examples" / job.example
    limits = workers.limits
    start = time.perf_counter()
    try:
        with limited(limits):
            records = audit_batch(plan, audited, job.cuts, example)
    except OverTime:
        records = all_failed(plan, text, job.cuts, f"over time: more than {limits.seconds:g} s")
    except MemoryError as error:
        records = all_failed(plan, text, job.cuts, f"MemoryError: {error}")
    seconds, peak = time.perf_counter() - start, peak_bytes()
    records = [_plainly(replace(record, settings=job.settings), limits) for record in records]
    return place, Outcome(job, tuple(records), seconds, None if peak is None else peak / 2**20)


@functools.lru_cache(maxsize=1)
def _prepared(text: str, seed: int, device: str, threads: int) -> AuditedModel:
    """The model that this worker last had is mostly the one that its next job wants."""
    leave_imports_alone()
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    return prepare(text, seed, torch.device(device))


def _plainly(record: AuditRecord, limits: Limits) -> AuditRecord:
    """The reason in words of the limit where it was memory that ran out."""
    reason = record.reason or ""
    if limits.memory_mb is None or record.status == "ok" or not any(sign in reason for sign in OUT_OF_MEMORY):
        return record
    return replace(record, reason=f"out of memory: more than {limits.memory_mb} MB beyond the model")
