"""The Transformer's strided convolution gives its windows away, and is found without being named."""

import dataclasses
from unittest import mock

import pytest
import torch
from torch import nn

from builders import batch_of, observe
from overheard.attacks.observation import Observation
from overheard.attacks.registry import run_attack
from overheard.attacks.spans.span_solver import SpanSolver, _Factored, _Fit
from overheard.attacks.windows import find_windowed_layer
from overheard.federation.update import ClientUpdate
from overheard.recognition.models import build_model, model_spec
from overheard.recognition.weights import resolve_model


def small_transformer(seed: int = 0, channels: int = 96, **config: object) -> nn.Module:
    sizes = {"channels": channels, "hidden_size": 64, "num_layers": 1, "num_heads": 2, "feedforward_size": 64}
    return build_model(model_spec("transformer", seed=seed, **sizes, **config))


def test_the_full_size_has_a_capacity_of_320_windows() -> None:
    layer = find_windowed_layer(build_model(model_spec("transformer", num_layers=1)), 80)
    assert layer is not None
    assert (layer.name, layer.window, layer.stride, layer.before, layer.after) == ("front", 7, 3, 3, 3)
    assert layer.capacity == 320
    assert layer.lengths(320) == [958, 959, 960]  # 9.6 s


@pytest.mark.parametrize("num_frames", [88, 89, 90])
def test_every_length_that_gives_as_many_windows_is_told_apart(num_frames: int) -> None:
    batch = batch_of(num_frames, num_features=80)
    found = run_attack(observe(small_transformer(), batch), "span")
    assert found.diagnostics["rank"] == 30
    assert found.unique, found.reason
    assert found.features[0].shape == (num_frames, 80)
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-2


def test_half_precision_does_not_hide_it() -> None:
    batch = batch_of(60, num_features=20)
    observation = observe(small_transformer(channels=160, front_end={"kind": "log_mel", "num_mel": 20}), batch)
    tensors = {name: tensor.half().float() for name, tensor in observation.update.tensors.items()}
    found = run_attack(Observation(observation.model, ClientUpdate(tensors, observation.update.protocol)), "span")
    assert found.features[0].shape == (60, 20)
    error = (found.features[0] - batch.features[:, 0]).square().mean().sqrt() / batch.features.square().mean().sqrt()
    assert float(error) < 3e-3
    assert found.diagnostics["likely_errors"][0] > 0.3 * float(error)


def users_own() -> nn.Module:
    """What `--model module:function` names."""
    return small_transformer(3)


def test_a_users_own_encoder_is_found_too() -> None:
    model = resolve_model(f"{__name__}:users_own", 0)
    batch = batch_of(45, num_features=80)
    found = run_attack(observe(model, batch))
    assert found.attack == "span"
    assert found.diagnostics["layer"] == "front"
    assert torch.allclose(found.features[0].float(), batch.features[:, 0], atol=1e-2)


@pytest.mark.parametrize(("residuals", "expected"), [((1e-3, 1.0e-6, 0.9e-6), 89), ((1e-3, 1e-4, 1e-6), 90)])
def test_no_frame_of_zeros_is_added_at_the_end(residuals: tuple[float, ...], expected: int) -> None:
    """Zeros where padding stands fit as well as no frame, or by chance a little better."""
    layer = find_windowed_layer(small_transformer(), 80)
    assert layer is not None
    solver = SpanSolver(torch.eye(30, 561, dtype=torch.float64), layer)
    fitted = solver._fitted

    def leaves(equations: _Factored, num_frames: int) -> _Fit:
        found = fitted(equations, num_frames)
        assert found is not None
        return dataclasses.replace(found, squares=torch.full_like(found.squares, residuals[num_frames - 88] ** 2))

    with mock.patch.object(solver, "_fitted", leaves):
        found = solver.solve((88, 89, 90))
    assert found is not None
    assert len(found.features) == expected


@pytest.mark.parametrize("lengths", [(31, 50), (30, 41)])
def test_batches_of_strided_windows_are_told_apart(lengths: tuple[int, ...]) -> None:
    batch = batch_of(*lengths, num_features=80)
    found = run_attack(observe(small_transformer(), batch), "span")
    assert sorted(len(matrix) for matrix in found.features) == sorted(lengths)
    for matrix in found.features:
        truth = batch.utterance_features(lengths.index(len(matrix)))
        assert (matrix - truth).abs().mean() < 1e-2
