"""The first layer that gives its inputs' span away: found, its inputs followed, its rank turned into a length."""

from dataclasses import replace

import pytest
import torch
from listener import listened
from torch import nn

from builders import batch_of, observe, small_deepspeech1, small_deepspeech2
from overheard.attacks.gradient_matching.exposed_layer import find_exposed_layer, layer_inputs, lengths_of_rank
from overheard.attacks.gradient_matching.priors import PriorConfig, build_prior, total_variation
from overheard.errors import InputError
from overheard.speech.batching import Batch


def cases(name: str) -> tuple[nn.Module, Batch, str, list[int]]:
    if name == "deepspeech2":
        batch = batch_of(25, num_features=257)
        return (
            small_deepspeech2(12, channels=4),
            replace(batch, features=batch.features / 20),
            "recurrences.0",
            [25, 26],
        )
    return small_deepspeech1(64), batch_of(20), "input_layers.0", [20]


@pytest.mark.parametrize("name", ["deepspeech2", "deepspeech1"])
def test_the_span_holds_the_inputs_and_tells_the_length(name: str) -> None:
    model, batch, layer_name, lengths = cases(name)
    observation = observe(model, batch)
    layer = find_exposed_layer(observation)
    assert layer is not None
    assert layer.name == layer_name
    assert lengths_of_rank(observation, layer) == lengths
    protocol = observation.update.protocol
    true = layer_inputs(model, layer.name, batch.features, batch.num_frames, protocol)
    assert len(true) == layer.rank
    assert float(layer.residual(true)) < 1e-6
    other = layer_inputs(
        model,
        layer.name,
        torch.randn(batch.features.shape, generator=torch.Generator().manual_seed(0)),
        batch.num_frames,
        protocol,
    )
    assert float(layer.residual(other)) > 1e-2
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_padding_is_left_out() -> None:
    model = small_deepspeech2(12, channels=4)
    batch = batch_of(25, 19, num_features=257)
    rows = layer_inputs(model, "recurrences.0", batch.features, batch.num_frames, observe(model, batch).update.protocol)
    assert len(rows) == (25 - 9) // 2 + (19 - 9) // 2


def test_a_layer_that_saw_too_much_is_not_exposed() -> None:
    assert find_exposed_layer(listened(20)[0]) is None


def test_each_prior_prefers_the_truth_and_knows_its_gradient() -> None:
    observation, batch = listened(10)
    layer = find_exposed_layer(observation)
    true = batch.features
    wild = 3.0 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    for options in ({"total_variation": 1.0}, {"statistics": 1.0}, {"span_residual": 1.0}):
        prior = build_prior(PriorConfig(**{"span_residual": 0.0, **options}), observation, layer, batch.num_frames)
        assert prior is not None
        assert prior(true)[0] < prior(wild)[0]
        gradient = prior(wild)[1]
        step = 0.05 * gradient / gradient.norm()
        slope = (prior(wild + step)[0] - prior(wild - step)[0]) / 2
        assert float((gradient * step).sum()) == pytest.approx(slope, rel=0.1)
    assert build_prior(PriorConfig(), observation, layer, batch.num_frames) is not None, "the span residual, by default"
    assert build_prior(PriorConfig(), observation, None, batch.num_frames) is None


def test_statistics_can_come_from_the_attackers_own_speech() -> None:
    observation, batch = listened(10)
    shifted = replace(observation, public_speech=(batch.features[:, 0] + 5.0,))
    prior = build_prior(PriorConfig(statistics=1.0), shifted, None, batch.num_frames)
    assert prior is not None
    assert prior(batch.features + 5.0)[0] < 1e-6 < prior(batch.features)[0]
    unnormalised = observe(small_deepspeech1(64), batch_of(20))
    with pytest.raises(InputError, match="statistics"):
        build_prior(PriorConfig(statistics=1.0), unnormalised, None, torch.tensor([20]))


def test_total_variation_is_counted_within_utterances() -> None:
    features = torch.zeros(4, 2, 3)
    features[2:, 1] = 100.0
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 0]], dtype=torch.bool)
    assert float(total_variation(features, mask)) == 0.0
    assert float(total_variation(features, torch.ones_like(mask))) == pytest.approx(100.0 / 6)
