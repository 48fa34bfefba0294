"""Starts of a window's newest frames: as many as it takes to know that older ones are off."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from overheard.attacks.decoding.frame_decoding import ALIKE, _tries
from overheard.attacks.decoding.window_fit import Fit


def starts() -> Iterator[Tensor]:
    for index in range(20):
        yield torch.full((1, 3), 1.0 + index)


@pytest.mark.parametrize(("enough", "expected"), [(ALIKE, ALIKE), (None, 20)])
def test_starts_that_lead_to_one_place_are_enough(enough: int | None, expected: int) -> None:
    tried: list[Fit] = []
    fits = list(_tries(lambda start: Fit(torch.ones(3) + 1e-4 * start, 1.0, 1e-3, 1.0), starts(), tried, enough))
    assert len(fits) == len(tried) == expected


def test_starts_that_lead_apart_are_all_tried() -> None:
    assert len(list(_tries(lambda start: Fit(start, 1.0, 1e-3, 1.0), starts(), [], ALIKE))) == 20
