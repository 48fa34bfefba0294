"""Bounds of time and memory on a stretch of code in a worker process, on systems that can set them."""

import faulthandler
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


class OverTime(Exception):
    """A job took longer than it may."""


@dataclass(frozen=True)
class Limits:
    """What one job may take.

    Attributes:
        seconds: wall time; None for any.
        memory_mb: memory beyond what the process has when the job starts, MB; None for any.
    """

    seconds: float | None = None
    memory_mb: int | None = None


@contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Run a block within limits: `OverTime` at the first, MemoryError or torch's own RuntimeError at the second.

    A block that does not come back to Python ends its process at twice its time. Only a process's main thread can be
    limited; where there is no Linux, memory is not.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = data_bytes()
    if limits.memory_mb is not None and held is not None:
        wanted = held + limits.memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if before[1] < 0 else min(wanted, before[1]), before[1]))
    if limits.seconds is None or not in_main:
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        return
    former = signal.signal(signal.SIGALRM, _over_time)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        faulthandler.dump_traceback_later(2 * limits.seconds, exit=True, file=nowhere)
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, former)
            resource.setrlimit(resource.RLIMIT_DATA, before)


def data_bytes() -> int | None:
    """Private writable memory of this process, which RLIMIT_DATA bounds; None where the system does not tell."""
    return _status("VmData")


def peak_bytes() -> int | None:
    """Largest resident size of this process since it was last reset; None where the system does not tell."""
    return _status("VmHWM")


def free_bytes() -> int | None:
    """Memory that programs may still take; None where the system does not tell."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _status(name: str) -> int | None:
    return _kilobytes(Path("/proc/self/status"), name)


def _kilobytes(path: Path, name: str) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _over_time(number: int, frame: FrameType | None) -> None:
    raise OverTime
