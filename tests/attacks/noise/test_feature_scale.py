"""Tensors clipped one by one: features come back in their right size, or nobody claims that they do."""

import pytest
import torch
from torch import nn

from builders import batch_of, observe, small_deepspeech1
from overheard.attacks import span
from overheard.attacks.noise.feature_scale import best_factor, clipped_by_layer, factor_of_front_end
from overheard.attacks.observation import Observation, Reconstruction
from overheard.federation.client import ClientSettings
from overheard.federation.defences.registry import defend, parse_defence
from overheard.recognition.models import build_model, model_spec
from overheard.speech.features import LOG_MEL_80, MFCC_26, standardise


def small_transformer() -> nn.Module:
    """Windows of 7 frames every 3, of 80 features that are normalised by utterance."""
    sizes = {"channels": 96, "hidden_size": 64, "num_layers": 1, "num_heads": 2, "feedforward_size": 64}
    return build_model(model_spec("transformer", seed=0, **sizes))


def clipped(observation: Observation, norm: float) -> Observation:
    chosen = [parse_defence(f"clip-layers:norm={norm}")]
    return Observation(observation.model, defend(observation.update, chosen, torch.Generator().manual_seed(0)))


def run(observation: Observation) -> Reconstruction:
    return span.attack(observation, span.SpanConfig(), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [ClientSettings(), ClientSettings("delta", "eval", 1, 0.1), ClientSettings("delta", "train", 1, 0.1)],
    ids=["gradient", "delta", "training mode without dropout"],
)
@pytest.mark.parametrize("norm", [1e-3, 1.0])
def test_the_layer_behind_tells_the_size(settings: ClientSettings, norm: float) -> None:
    batch = batch_of(40)
    found = run(clipped(observe(small_deepspeech1(hidden_size=256), batch, settings), norm))
    assert found.unique, found.reason
    assert found.diagnostics["feature_factor_source"] == "input_layers.1"
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-3


def test_one_size_for_two_utterances() -> None:
    batch = batch_of(20, 31)
    found = run(clipped(observe(small_deepspeech1(hidden_size=256), batch), 1.0))
    assert found.unique, found.reason
    for index in range(2):
        assert (found.features[index] - batch.utterance_features(index)).abs().mean() < 1e-3


def test_what_was_not_clipped_is_left_alone() -> None:
    found = run(observe(small_deepspeech1(hidden_size=256), batch_of(40)))
    assert found.unique
    assert "feature_factor" not in found.diagnostics


def test_where_nothing_tells_the_size_nothing_is_claimed() -> None:
    settings = ClientSettings("delta", "train", 1, 0.1)
    observation = observe(small_deepspeech1(hidden_size=256, dropout=0.2), batch_of(40), settings)
    assert run(observation).unique
    found = run(clipped(observation, 1e-3))
    assert not found.unique
    assert "one factor" in str(found.reason)


def test_a_front_end_that_normalises_tells_the_size() -> None:
    batch = batch_of(45, num_features=80)
    batch.features[:, 0] = standardise(batch.features[:, 0], (0, 1))
    steps = ClientSettings("delta", "eval", 2, 1e-3)
    found = run(clipped(observe(small_transformer(), batch, steps), 1e-3))
    assert found.unique, found.reason
    assert found.diagnostics["feature_factor_source"] == "front end"
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-3


def test_factors() -> None:
    assert best_factor(lambda factor: (factor - 37.0) ** 2 / (1 + factor**2)) == pytest.approx(37.0, rel=1e-6)
    assert best_factor(lambda factor: abs(factor + 0.02), signs=(1, -1)) == pytest.approx(-0.02, rel=1e-6)
    features = 0.25 * standardise(torch.randn(30, 80, generator=torch.Generator().manual_seed(0)), (0, 1))
    assert factor_of_front_end(LOG_MEL_80, [features]) == pytest.approx(4.0, rel=1e-4)
    assert factor_of_front_end(MFCC_26, [features]) is None


def test_clipping_by_layer_shows_in_the_norms() -> None:
    observation = observe(small_deepspeech1(), batch_of(20))
    names = ["input_layers.0.weight", "input_layers.0.bias"]
    assert not clipped_by_layer(observation.update, names)
    assert clipped_by_layer(clipped(observation, 1e-3).update, names)
