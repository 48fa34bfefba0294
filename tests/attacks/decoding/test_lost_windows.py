"""Windows that the span does not hold: those about them count their frames, and no end comes before most windows."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from builders import batch_of, small_deepspeech1
from overheard.attacks.decoding.frame_decoding import decode_frames
from overheard.attacks.decoding.layer_reader import LayerReader, step_equations
from overheard.attacks.decoding.lost_windows import recounted
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.spans.activated_span import activated_span
from overheard.attacks.windows import find_windowed_layer
from overheard.benchmarks.closed_form import observed, uneven

FRAMES = 112
FIRST = 50


def reader_of(lacking: int) -> tuple[LayerReader, Tensor]:
    """What is read off an utterance from whose span so many windows are missing, and its rows."""
    batch, model = batch_of(FRAMES), small_deepspeech1(hidden_size=320)
    sizes = uneven(FRAMES) ** 0.4
    sizes[FIRST : FIRST + lacking] = 1e-12
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    behind = find_pointwise_layer(model, layer)
    assert behind is not None
    span = activated_span(observed(model, batch.features[:, 0], sizes), layer, behind)
    assert span is not None
    rows = functional.pad(batch.features[:, 0].double(), (0, 0, layer.before, layer.after))
    return LayerReader(span, layer, step_equations(span, layer, torch.Generator().manual_seed(0))), rows


@pytest.mark.parametrize("miscounted", [-1, 0, 1])
def test_a_miscounted_run_is_mended(miscounted: int) -> None:
    reader, rows = reader_of(lacking=3)
    middle = FIRST + 5
    wrong = torch.cat([rows[: middle + max(0, miscounted)], rows[middle + max(0, -miscounted) :]])
    fit = reader.polished(wrong, (2, len(wrong) - 2), ended=True)
    again = recounted(reader, fit.rows, fit.left)
    assert len(again.rows) == len(rows)
    if not miscounted:
        assert again.certain
    else:
        known = torch.cat([again.rows[: middle - 3], again.rows[middle + 3 :]])
        assert (known - torch.cat([rows[: middle - 3], rows[middle + 3 :]])).abs().max() < 1e-2


def test_a_run_as_long_as_a_window_leaves_the_count_open() -> None:
    reader, rows = reader_of(lacking=5)
    fit = reader.polished(rows, (2, len(rows) - 2), ended=True)
    assert not recounted(reader, fit.rows, fit.left).certain


@pytest.mark.parametrize(("num_windows", "whole"), [(FRAMES, True), (2 * FRAMES, False)])
def test_an_end_before_most_windows_came_is_none(num_windows: int, whole: bool) -> None:
    reader, rows = reader_of(lacking=0)
    first = rows[2:5].float()
    found = decode_frames(reader, first, 3 * FRAMES, lambda: [rows.mean(dim=0, keepdim=True).float()], num_windows)
    assert len(found.features) >= FRAMES
    assert found.complete is whole
