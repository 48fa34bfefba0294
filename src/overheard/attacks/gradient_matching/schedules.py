"""Which frames an iteration may change, and at what learning rate.

A grid is a stretch of frames. Matching one grid at a time keeps the number of unknowns small; the boundaries are hard:
the frames of a grid are the optimiser's whole world, and every visit gets a fresh optimiser, so that momentum cannot
carry a change past a grid or into a later visit.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError

SCHEDULES = ("whole", "sequential", "alternating", "error")
DECAYS = ("none", "cosine")


@dataclass(frozen=True)
class ScheduleConfig:
    """Order of the grids and decay of the learning rate.

    Attributes:
        kind: "whole" utterance at once; "sequential": each grid once, first to last, for an equal share of the run;
            "alternating": round and round; "error": next is the grid whose features the distance pulls at most.
        grid_frames: frames of a grid.
        grid_overlap: frames that neighbouring grids share.
        grid_iterations: iterations of one visit, "alternating" and "error".
        learning_rate: at the start.
        decay: "cosine" to zero over the run (Loshchilov and Hutter 2017, eq. 5, one period), or "none".
    """

    kind: str = "whole"
    grid_frames: int = 100
    grid_overlap: int = 0
    grid_iterations: int = 50
    learning_rate: float = 0.1
    decay: str = "cosine"

    def __post_init__(self) -> None:
        for name, value, choices in (("schedule", self.kind, SCHEDULES), ("decay", self.decay, DECAYS)):
            if value not in choices:
                raise InputError(name, repr(value), f"choose one of {', '.join(choices)}")
        if self.grid_frames < 1 or self.grid_iterations < 1:
            raise InputError("grid_frames, grid_iterations", (self.grid_frames, self.grid_iterations), "give 1 or more")
        if not 0 <= self.grid_overlap < self.grid_frames:
            raise InputError("grid_overlap", self.grid_overlap, f"give from 0 to below {self.grid_frames} frames")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError("learning_rate", self.learning_rate, "give a number above 0")


@dataclass(frozen=True)
class Visit:
    """One stay at a grid: frames `start` to `stop` may change; `number` counts the visits."""

    number: int
    grid: int
    start: int
    stop: int
    begun_at: int


def cut_into_grids(config: ScheduleConfig, num_frames: int) -> list[tuple[int, int]]:
    """First frame and the one past the last of every grid; the last grid ends with the utterance."""
    if config.kind == "whole" or config.grid_frames >= num_frames:
        return [(0, num_frames)]
    stride = config.grid_frames - config.grid_overlap
    starts = range(0, num_frames - config.grid_overlap, stride)
    return [(start, min(start + config.grid_frames, num_frames)) for start in starts]


def next_visit(
    config: ScheduleConfig,
    grids: list[tuple[int, int]],
    last: Visit | None,
    iteration: int,
    progress: float,
    gradient: Float[Tensor, "T N F"] | None,
) -> Visit:
    """The visit that an iteration belongs to: the last one, or a new one.

    Args:
        config: the schedule.
        grids: from `cut_into_grids`.
        last: visit of the iteration before; None at the first.
        iteration: counted from 0.
        progress: share of the run that is over.
        gradient: of the distance at the last point, which is what "error" goes by; None at the first iteration.
    """
    if last is None:
        return Visit(0, 0, *grids[0], iteration)
    if config.kind == "sequential":
        grid = max(last.grid, min(len(grids) - 1, int(progress * len(grids))))
    elif len(grids) == 1 or iteration - last.begun_at < config.grid_iterations:
        return last
    elif config.kind == "error" and gradient is not None:
        pulls = [float(gradient[start:stop].square().mean()) for start, stop in grids]
        grid = max(range(len(grids)), key=pulls.__getitem__)
    else:
        grid = (last.grid + 1) % len(grids)
    if config.kind == "sequential" and grid == last.grid:
        return last
    return Visit(last.number + 1, grid, *grids[grid], iteration)


def learning_rate(config: ScheduleConfig, progress: float) -> float:
    """Rate after a share of the run, from 0 to 1."""
    if config.decay == "none":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
