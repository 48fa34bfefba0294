"""Features and words in turn behind several local steps."""

import torch

from builders import batch_of, observe, small_deepspeech1
from overheard.attacks import span
from overheard.attacks.along_steps import HOPELESS, follow_steps
from overheard.attacks.observation import Observation, Reconstruction
from overheard.federation.client import ClientSettings

STEPS = ClientSettings("delta", "eval", 6, 2e-4)


def attacked(observation: Observation) -> Reconstruction:
    return span.attack(observation, span.SpanConfig(), generator=torch.Generator().manual_seed(0))


def test_the_layer_behind_brings_the_features_nearer() -> None:
    """Near the capacity the first layer's update alone, rounded six times, leaves errors of a hundredth."""
    model, batch = small_deepspeech1(hidden_size=512, cell="tanh"), batch_of(96)
    observation = observe(model, batch, STEPS)
    alone = attacked(observation)
    found, words = follow_steps(observation, alone)
    true = batch.features[:, 0]
    before, after = (float((each.features[0] - true).norm() / true.norm()) for each in (alone, found))
    assert after < before / 1.5
    assert words.exact == (True,)
    assert after < 5 * max(found.diagnostics["likely_errors"])


def test_features_that_are_far_off_are_not_followed() -> None:
    model, batch = small_deepspeech1(hidden_size=64), batch_of(20)
    wrong = Reconstruction("span", (torch.zeros(20, 26),), (None,), diagnostics={"likely_errors": [2 * HOPELESS]})
    found, words = follow_steps(observe(model, batch, STEPS), wrong)
    assert found is wrong
    assert words.texts == (None,)
    assert words.reason is not None
    assert "off by about 0.2" in words.reason
