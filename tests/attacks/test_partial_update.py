"""Pruned and sparsified updates: what was sent tells all, no false uniqueness, and a reason where it does not."""

import pytest
import torch

from builders import batch_of, observe, small_deepspeech1
from overheard.attacks import span
from overheard.attacks.entries.sent_entries import sent_entries
from overheard.attacks.noise.layer_fits import NoisyLayer
from overheard.attacks.noise.masked_fit import fit_masked
from overheard.attacks.observation import Observation, Prior, Reconstruction
from overheard.attacks.registry import run_attack
from overheard.attacks.windows import find_windowed_layer
from overheard.federation.client import ClientSettings
from overheard.federation.defences.registry import defend, parse_defence
from overheard.federation.update import ClientUpdate


def defended(observation: Observation, text: str, prior: Prior = Prior()) -> Observation:
    update = defend(observation.update, [parse_defence(text)], torch.Generator().manual_seed(0))
    return Observation(observation.model, update, prior)


def run(observation: Observation) -> Reconstruction:
    return span.attack(observation, span.SpanConfig(), generator=torch.Generator().manual_seed(0))


def relative_error(found: Reconstruction, features: torch.Tensor) -> float:
    return float((found.features[0] - features).square().mean().sqrt() / features.square().mean().sqrt())


@pytest.mark.parametrize(
    ("text", "frames"),
    [("prune:keep=0.5", 40), ("prune:keep=0.3", 40), ("top-k:keep=0.3", 40), ("top-k:keep=0.1", 40),
     ("random-k:keep=0.5", 20)],
)  # fmt: skip
def test_what_was_sent_tells_the_speech(text: str, frames: int) -> None:
    batch = batch_of(frames)
    found = run(defended(observe(small_deepspeech1(hidden_size=256), batch), text))
    assert found.unique, found.reason
    assert found.features[0].shape == (frames, 26)
    error = relative_error(found, batch.features[:, 0])
    assert error < 1e-5
    assert error / 5 < found.diagnostics["likely_errors"][0] < 5 * error
    assert found.diagnostics["entry_equations"] > found.diagnostics["entry_unknowns"]


def test_local_steps_leave_the_first_layer_alone() -> None:
    batch = batch_of(30)
    observation = observe(small_deepspeech1(hidden_size=256), batch, ClientSettings("delta", "eval", 5, 0.01))
    found = run(defended(observation, "prune:keep=0.8"))
    assert found.diagnostics["entry_layers"] == ["input_layers.0"]
    assert found.unique, found.reason
    assert relative_error(found, batch.features[:, 0]) < 1e-3
    # Fewer entries determine less, which is seen without the truth.
    assert not run(defended(observation, "prune:keep=0.6")).unique


def test_two_utterances_of_known_lengths() -> None:
    batch = batch_of(16, 23)
    observation = observe(small_deepspeech1(hidden_size=256), batch)
    found = run(defended(observation, "prune:keep=0.5", Prior(num_frames=(16, 23))))
    assert found.unique, found.reason
    for index in range(2):
        assert (found.features[index] - batch.utterance_features(index)).abs().mean() < 1e-3
    unknown = run(defended(observation, "prune:keep=0.5"))
    assert not unknown.features
    assert "lengths" in str(unknown.reason)


def test_too_little_is_said_to_be_too_little() -> None:
    observation = observe(small_deepspeech1(hidden_size=256), batch_of(40))
    found = run(defended(observation, "random-k:keep=0.1"))
    assert not found.features
    assert "no part complete enough" in str(found.reason)
    found = run(defended(observation, "random-k:keep=0.1", Prior(num_frames=(40,))))
    assert not found.features
    assert "0 equations on 1040 unknowns" in str(found.reason)


def test_a_wrong_length_is_not_believed() -> None:
    observation = observe(small_deepspeech1(hidden_size=256), batch_of(30))
    for length in (29, 31):
        assert not run(defended(observation, "prune:keep=0.5", Prior(num_frames=(length,)))).unique


def test_a_feature_of_which_nothing_was_sent_is_not_believed() -> None:
    batch = batch_of(30)
    observation = observe(small_deepspeech1(hidden_size=256), batch)
    layer = find_windowed_layer(observation.model, 26)
    assert layer is not None
    update = defended(observation, "prune:keep=0.6").update
    tensors = {name: tensor.clone() for name, tensor in update.tensors.items() if "input_layers.1" not in name}
    tensors["input_layers.0.weight"][:, layer.feature == 20] = 0.0
    found = run(Observation(observation.model, ClientUpdate(tensors, update.protocol)))
    assert found.unique is not True


def test_the_decoder_starts_from_the_layer_behind() -> None:
    """The first layer's update was not pruned evenly: nothing complete is left of it."""
    batch = batch_of(24)
    observation = defended(observe(small_deepspeech1(hidden_size=384), batch), "prune:keep=0.6")
    mask = torch.rand(384, 130, generator=torch.Generator().manual_seed(0)) < 0.15
    observation.update.tensors["input_layers.0.weight"] *= mask
    found = run_attack(observation, "sequential")
    assert found.features, found.reason
    assert relative_error(found, batch.features[:, 0]) < 1e-3
    both = run(observation)
    assert both.unique, both.reason
    assert relative_error(both, batch.features[:, 0]) < 1e-5


@pytest.mark.parametrize("kind", ["gradient", "delta", "small delta", "fp16", "8 bits"])
def test_other_zeros_are_no_missing_entries(kind: str) -> None:
    rates = {"delta": 0.1, "small delta": 1e-5}
    settings = ClientSettings("delta", "eval", 1, rates[kind]) if kind in rates else ClientSettings()
    observation = observe(small_deepspeech1(hidden_size=128), batch_of(30), settings)
    tensors = observation.update.tensors
    if kind == "fp16":
        tensors = {name: (1e-4 * tensor).half().float() for name, tensor in tensors.items()}
    if kind == "8 bits":
        tensors = defended(observation, "quantise-8").update.tensors
    changed = Observation(observation.model, ClientUpdate(tensors, observation.update.protocol))
    layer = find_windowed_layer(observation.model, 26)
    assert layer is not None
    assert sent_entries(changed, layer) is None
    assert sent_entries(defended(observation, "random-k:keep=0.7"), layer) is not None


def test_the_gradient_of_the_fit_is_that_of_what_it_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(12, 9, generator=generator) < 0.8
    layer = NoisyLayer(matrix * mask, 12, True, torch.ones(9, dtype=torch.float64), mask=mask)
    windows = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    fit = fit_masked(layer, mask, windows, 0)
    change = torch.randn(3, 8, generator=generator, dtype=torch.float64)

    def half_left(size: float) -> float:
        return fit_masked(layer, mask, windows + size * change, 0).square / 2

    slope = (half_left(1e-5) - half_left(-1e-5)) / 2e-5
    assert -float((fit.pull() * change).sum()) * fit.variance == pytest.approx(slope, rel=1e-5)
    # The operator is that of the linearised rest, each row's own inputs taken out.
    direct = torch.zeros(12, 9, dtype=torch.float64)
    direct[:, :8] = (fit.gradients.T @ change) * mask[:, :8]
    inputs = torch.nn.functional.pad(windows, (0, 1), value=1.0)
    for row, known in zip(direct, mask, strict=True):
        inside = torch.linalg.qr(inputs[:, known].T).Q
        row[known] -= inside @ (inside.T @ row[known])
    expected = (fit.gradients @ direct)[:, :8]
    assert torch.allclose(fit.operator(torch.float64)(change), expected, rtol=1e-6)
