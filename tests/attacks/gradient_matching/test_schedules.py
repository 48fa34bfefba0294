"""Which frames, when, at what rate."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overheard.attacks.gradient_matching.schedules import (
    ScheduleConfig,
    Visit,
    cut_into_grids,
    learning_rate,
    next_visit,
)
from overheard.errors import InputError


@given(frames=st.integers(1, 60), size=st.integers(1, 20), overlap=st.integers(0, 19))
def test_grids_cover_every_frame_and_overlap_as_asked(frames: int, size: int, overlap: int) -> None:
    if overlap >= size:
        return
    grids = cut_into_grids(ScheduleConfig("sequential", grid_frames=size, grid_overlap=overlap), frames)
    assert grids[0][0] == 0
    assert grids[-1][1] == frames
    assert all(0 < stop - start <= size or len(grids) == 1 for start, stop in grids)
    assert all(left[1] - right[0] == overlap for left, right in pairwise(grids))


def visited(config: ScheduleConfig, iterations: int, gradient: torch.Tensor | None = None) -> list[int]:
    grids, visit, order = cut_into_grids(config, 30), None, []
    for iteration in range(iterations):
        visit = next_visit(config, grids, visit, iteration, iteration / iterations, gradient)
        order.append(visit.grid)
    return order


def test_sequential_gives_each_grid_an_equal_share() -> None:
    assert visited(ScheduleConfig("sequential", grid_frames=10), 12) == [0] * 4 + [1] * 4 + [2] * 4


def test_alternating_goes_round() -> None:
    assert visited(ScheduleConfig("alternating", grid_frames=10, grid_iterations=2), 8) == [0, 0, 1, 1, 2, 2, 0, 0]


def test_error_goes_where_the_distance_pulls_most() -> None:
    gradient = torch.zeros(30, 1, 2)
    gradient[12] = 1.0
    config = ScheduleConfig("error", grid_frames=10, grid_iterations=2)
    assert visited(config, 6, gradient) == [0, 0, 1, 1, 1, 1]


def test_the_whole_utterance_is_one_visit() -> None:
    config = ScheduleConfig()
    grids = cut_into_grids(config, 30)
    visit = next_visit(config, grids, None, 0, 0.0, None)
    assert visit == Visit(0, 0, 0, 30, 0)
    assert next_visit(config, grids, visit, 500, 0.9, torch.ones(30, 1, 2)) == visit


def test_learning_rates() -> None:
    cosine = ScheduleConfig(learning_rate=0.2)
    assert [learning_rate(cosine, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    assert learning_rate(ScheduleConfig(learning_rate=0.2, decay="none"), 0.9) == 0.2


@pytest.mark.parametrize(
    "values", [("random",), ("whole", 0), ("whole", 100, 100), ("whole", 100, 0, 0), ("whole", 100, 0, 50, 0.0)]
)
def test_bad_settings_are_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        ScheduleConfig(*values)
