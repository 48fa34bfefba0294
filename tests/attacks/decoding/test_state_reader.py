"""Windows read off the states of a recurrent layer, where the layer behind has too few equations left."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from builders import batch_of, observe, small_deepspeech1
from overheard.attacks import sequential
from overheard.attacks.decoding.edges import edges_of
from overheard.attacks.decoding.state_reader import StateReader
from overheard.attacks.decoding.state_refinement import _derivatives
from overheard.attacks.observation import Reconstruction
from overheard.attacks.spans.recurrent_layer import RecurrentLayer, find_recurrent_layer
from overheard.attacks.spans.state_span import StateSpan, state_spans
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.recognition.recurrence import CellName
from overheard.speech.batching import Batch

CELLS: tuple[CellName, ...] = ("lstm", "gru", "tanh")


def recurrent(model: nn.Module, reverse: bool = False) -> tuple[WindowedLayer, RecurrentLayer]:
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    found = find_recurrent_layer(model, layer, reverse)
    assert found is not None
    return layer, found


def spanned(model: nn.Module, batch: Batch, reverse: bool = False) -> tuple[WindowedLayer, StateSpan]:
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    spans = state_spans(observe(model, batch), layer, torch.Generator().manual_seed(0))
    assert spans is not None
    span = spans.backwards if reverse else spans.forwards
    assert span is not None
    return layer, span


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_states_are_those_of_the_model(cell: CellName, reverse: bool) -> None:
    model, batch = small_deepspeech1(hidden_size=24, cell=cell), batch_of(9)
    layer, found = recurrent(model, reverse)
    seen: list[torch.Tensor] = []
    model.get_submodule("recurrence").register_forward_hook(lambda *call: seen.append(call[-1]))
    model(batch.features, batch.num_frames)
    expected = seen[0][:, 0, int(reverse)]
    windows = layer.windows(batch.features[:, 0])
    states, _ = found.run(windows.flip(0) if reverse else windows, found.nothing, found.nothing)
    assert torch.allclose(states.flip(0) if reverse else states, expected, atol=1e-5)


def test_a_recurrent_layer_behind_more_than_activations_is_none() -> None:
    model = small_deepspeech1(hidden_size=24)
    model.get_submodule("input_layers").register_module("1", nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24)))
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    assert find_recurrent_layer(model, layer, reverse=False) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_all_states_but_the_last_are_in_the_span(reverse: bool) -> None:
    batch = batch_of(30, 20)
    layer, span = spanned(small_deepspeech1(hidden_size=96), batch, reverse)
    assert span.found.rank == 48
    assert span.num_moving == 48
    windows = layer.windows(batch.features[:20, 1])
    states, _ = span.layer.run(windows.flip(0) if reverse else windows, span.layer.nothing, span.layer.nothing)
    _, rest, expected = span.outside(states)
    assert (rest[:-1] < 5 * expected[:-1]).all()
    assert rest[-1] > 50 * expected[-1]
    assert torch.allclose(span.equations.T @ span.equations, torch.eye(48), atol=1e-5)
    assert float((span.basis @ span.equations).abs().max()) < 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_derivatives_are_those_of_states_that_do_not_act_on_each_other(cell: CellName) -> None:
    model = small_deepspeech1(hidden_size=40, cell=cell)
    with torch.no_grad():
        model.get_parameter("recurrence.weight_hh_l0").zero_()
    batch = batch_of(12)
    layer, span = spanned(model, batch)
    reader = StateReader(span, layer)
    rows = functional.pad(batch.features[:, 0], (0, 0, layer.before, 0))
    free = 4, 12
    seen = range(layer.first_that_holds(free[0]), 9)

    def residual(frames: torch.Tensor) -> torch.Tensor:
        moved = torch.cat([rows[: free[0]], frames, rows[free[1] :]])
        return (
            span.layer.run(layer.cut(moved)[: seen.stop], *(span.layer.nothing,) * 2)[0][seen.start :] @ span.equations
        )

    expected = torch.autograd.functional.jacobian(residual, rows[free[0] : free[1]])
    blocks = _derivatives(span, layer, reader._run, rows, free, seen)
    for block, slopes in zip(blocks, expected, strict=True):
        found = torch.zeros_like(slopes.flatten(1))
        found[:, block.start : block.start + block.slopes.shape[1]] = block.slopes
        assert torch.allclose(found, slopes.flatten(1), atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_frames_near_the_truth_come_to_it(cell: CellName) -> None:
    batch = batch_of(40)
    layer, span = spanned(small_deepspeech1(hidden_size=160, cell=cell), batch)
    truth = functional.pad(batch.features[:, 0], (0, 0, layer.before, layer.after))
    rows = truth.clone()
    rows[2:-2] += 3e-2 * torch.randn(40, 26, generator=torch.Generator().manual_seed(0))
    fit = StateReader(span, layer).polished(rows, (2, 42), ended=True)
    assert float((fit.rows - truth).abs().mean()) < 2e-3
    assert fit.excess < 3
    assert fit.likely_error < 1e-3


def test_rows_that_change_are_run_again() -> None:
    layer, span = spanned(small_deepspeech1(hidden_size=48), batch_of(20))
    reader = StateReader(span, layer)
    rows = functional.pad(batch_of(20).features[:, 0], (0, 0, 2, 2))
    for place in (23, 11, 5, 0):
        rows = rows.clone()
        rows[place] += 1
        states, memories = reader._run(rows, 20)
        expected = span.layer.run(layer.cut(rows), span.layer.nothing, span.layer.nothing)
        assert torch.allclose(states, expected[0], atol=1e-6)
        assert torch.allclose(memories, expected[1], atol=1e-6)
        assert torch.equal(reader._run(rows, 7)[0], states[:7])


def with_silent_units(hidden_size: int, silent: int) -> nn.Module:
    """Units of the windowed layer that nothing switches on leave the layer behind so many equations less."""
    model = small_deepspeech1(hidden_size=hidden_size)
    with torch.no_grad():
        model.get_parameter("input_layers.0.bias")[:silent] = -1e4
    return model


def attacked(model: nn.Module, batch: Batch) -> Reconstruction:
    """By an attacker who has heard something alike."""
    observation = observe(model, batch)
    generator = torch.Generator().manual_seed(3)
    frames = [batch.utterance_features(index) for index in range(batch.size)]
    alike = tuple(each + 0.5 * torch.randn(each.shape, generator=generator) for each in frames)
    config = sequential.SequentialConfig(guesses=8)
    observation = dataclasses.replace(observation, public_speech=alike)
    return sequential.attack(observation, config, generator=torch.Generator().manual_seed(0))


def all_came_back(found: Reconstruction, batch: Batch) -> bool:
    lengths = batch.num_frames.tolist()
    if sorted(len(matrix) for matrix in found.features) != sorted(lengths):
        return False
    errors = [
        float((matrix - batch.utterance_features(lengths.index(len(matrix)))).abs().mean()) for matrix in found.features
    ]
    return max(errors) < 1e-2


@pytest.mark.parametrize("backwards", [False, True])
def test_states_tell_what_a_saturated_layer_does_not(backwards: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "edges_of", lambda *args: edges_of(*args)[int(backwards) :][:1])
    batch = batch_of(54, 52)
    found = attacked(with_silent_units(256, 80), batch)
    assert found.diagnostics["layer"] == "recurrence"
    assert found.diagnostics["rank"] == 104
    assert found.diagnostics["backwards"] == [backwards] * 2
    assert found.unique, found.reason
    assert all_came_back(found, batch)


def test_first_windows_of_states_lead_to_later_ones_of_the_layer_behind() -> None:
    batch = batch_of(70, 66)
    found = attacked(with_silent_units(320, 100), batch)
    assert found.diagnostics["layer"] == "input_layers.1"
    assert found.diagnostics["layer_of_first_windows"] == "recurrence"
    assert found.unique, found.reason
    assert all_came_back(found, batch)


def test_where_the_layer_behind_will_do_no_state_is_looked_at() -> None:
    found = attacked(small_deepspeech1(hidden_size=320), batch_of(40))
    assert found.diagnostics["layer_of_first_windows"] == "input_layers.1"
    assert found.unique


def test_equal_frames_in_a_saturated_layer_are_counted() -> None:
    """To a layer that sees windows alone, equal ones are one; states go on until they have settled."""
    batch = batch_of(120)
    batch.features[30:39, 0] = batch.features[30, 0]
    found = attacked(with_silent_units(320, 130), batch)
    assert found.diagnostics["layer"] == "recurrence"
    assert all_came_back(found, batch)


def test_past_the_capacity_of_states_nothing_is_made_up() -> None:
    found = attacked(with_silent_units(128, 40), batch_of(70))
    assert not found.features
    assert "recurrence was shown 69 windows" in str(found.reason)
