"""Wall time and peak memory of a stretch of code."""

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Meter:
    """Filled when the metered block ends.

    Attributes:
        seconds: wall time.
        peak_mb: peak memory above that at the start, MB of host memory, or of GPU memory where a GPU is used; None
            where the system does not tell.
    """

    seconds: float = 0.0
    peak_mb: float | None = None


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Measure a block."""
    meter = Meter()
    before = _restart(device)
    start = time.perf_counter()
    try:
        yield meter
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        meter.seconds = time.perf_counter() - start
        after = _peak_bytes(device)
        meter.peak_mb = None if before is None or after is None else max(0.0, (after - before) / 2**20)


def leave_imports_alone() -> None:
    """Take what is alive now, above all what was imported, out of garbage collection; once in a process.

    Every metered block begins with a collection. Objects of modules, which never become garbage, made that 0.1 s for
    each utterance of an audit, and a third of a second for each block where everything is imported, as in the tests.
    """
    if not gc.get_freeze_count():
        gc.freeze()


def _restart(device: torch.device) -> int | None:
    """Bytes in use now; the peak is counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # What earlier work freed but the allocator kept would hide new peaks.
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
    try:
        # Linux: 5 resets the peak resident size of this process (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * resource.getpagesize()


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not sys.platform.startswith("linux"):
        return None
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
