"""Starts of a window's newest frames, as many as it takes to know that older ones are off; and where decoding ends."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from builders import small_deepspeech1
from overheard.attacks.decoding.frame_decoding import ALIKE, MOST_UNTOLD, _tries, decode_frames
from overheard.attacks.decoding.window_fit import Fit
from overheard.attacks.spans.window_refinement import Refinement
from overheard.attacks.windows import WindowedLayer, find_windowed_layer


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


class AnythingFits:
    """A reader to which rounding alone leaves as much of any frame as there is, behind some windows that are told."""

    unseen = 0
    hides_repeats = True
    clear = False
    rank = 500

    def __init__(self, layer: WindowedLayer, told: int) -> None:
        self.layer, self._told = layer, told

    def newest(self, rows: Tensor, count: int) -> Callable[[Tensor], Fit]:
        expected = 1e-5 if len(rows) < self._told else 1e-2
        frame = torch.randn(count * rows.shape[1], generator=torch.Generator().manual_seed(len(rows)))
        return lambda start: Fit(frame, expected, expected, 1.0)

    def together(self, rows: Tensor, free: tuple[int, int], ended: bool, steps: int) -> Refinement:
        return Refinement(rows, 0.0, torch.ones(len(rows)), 0.0, 0.0, rows[None], 0)

    def polished(self, rows: Tensor, free: tuple[int, int], ended: bool) -> Refinement:
        return self.together(rows, free, ended, 0)


def test_nothing_is_made_up_behind_windows_that_tell_nothing() -> None:
    layer = find_windowed_layer(small_deepspeech1(), 26)
    assert layer is not None
    first = torch.randn(layer.window - layer.before, 26, generator=torch.Generator().manual_seed(0))
    found = decode_frames(AnythingFits(layer, told=40), first, 1000, lambda: [first[:1]], 500)
    assert not found.complete
    assert 40 <= layer.before + len(found.features) <= 40 + (MOST_UNTOLD + 1) * layer.window
