"""One line of a benchmark: ours against a reference, measured in the same run, and the ratio it should keep."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measurement:
    """What a benchmark found.

    Attributes:
        name: what was measured, with its sizes.
        ours: our value, less is better.
        reference: the value it is compared with.
        unit: of both, "s" or "MB" for instance.
        largest_ratio: target for ours / reference.
    """

    name: str
    ours: float
    reference: float
    unit: str
    largest_ratio: float

    @property
    def ratio(self) -> float:
        return self.ours / self.reference

    @property
    def met(self) -> bool:
        return self.ratio <= self.largest_ratio

    @property
    def target(self) -> str:
        """The target in words: "at most 2x", or "at least 5x less" where ours has to be smaller."""
        if self.largest_ratio < 1:
            return f"at least {1 / self.largest_ratio:g}x less"
        return f"at most {self.largest_ratio:g}x"


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one that is not timed."""
    return best_of_each(run, repeats=repeats)[0]


def best_of_each(*runs: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of the fastest of `repeats` runs of each, taken in turns so that a busy machine slows all alike.

    The fastest run is the one that other work on the machine disturbed least. Each is first run once without timing.
    """
    best = [float("inf")] * len(runs)
    for repeat in range(repeats + 1):
        for k, run in enumerate(runs):
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat > 0:
                best[k] = min(best[k], time.perf_counter() - started)
    return best


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Runs the block with that many torch threads and puts the former number back."""
    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(former)
