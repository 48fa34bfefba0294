"""The zeroth-order baseline: what it is given, and that it descends."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from listener import listened

from overheard.attacks import hessian_free
from overheard.attacks.gradient_matching.distances import DistanceConfig, build_distance
from overheard.attacks.gradient_matching.second_order import simulated_update
from overheard.attacks.hessian_free import HessianFreeConfig
from overheard.attacks.observation import Observation, Prior, Reconstruction
from overheard.errors import InputError


def run(observation: Observation, seed: int = 0, **options: Any) -> Reconstruction:
    return hessian_free.attack(observation, HessianFreeConfig(**options), generator=torch.Generator().manual_seed(seed))


def test_its_distance_falls_and_is_the_updates() -> None:
    observation, batch = listened(8)
    first, last = (run(observation, iterations=count) for count in (1, 40))
    assert last.diagnostics["distance"] < 0.5 * first.diagnostics["distance"]
    assert last.features[0].shape == (8, 12)
    assert last.transcripts == observation.prior.transcripts
    assert float(first.features[0].abs().max()) <= 1.0
    names = ["output.weight", "output.bias"]
    observed = [observation.update.gradient(name) for name in names]
    there = replace(batch, features=last.features[0][:, None])
    simulated = simulated_update(observation.model, there, names, observation.update.protocol)
    distance = build_distance(DistanceConfig("cosine"), observed)([each.double() for each in simulated])[0]
    assert last.diagnostics["distance"] == pytest.approx(distance, rel=1e-3, abs=1e-6)


def test_the_step_is_halved_on_a_plateau_and_the_end_is_a_quarter() -> None:
    found = run(listened(8)[0], iterations=1000, plateau=1, least_progress=1.0)
    assert found.diagnostics["step"] == 0.25
    # Two iterations to judge each of the steps 1, 0.5 and 0.25; the distance never falls by all of itself.
    assert found.diagnostics["iterations"] == 6


def test_it_is_given_transcript_and_length() -> None:
    observation, _ = listened(8)
    assert "given transcript and length" in str(run(replace(observation, prior=Prior(("ABC",)))).reason)
    assert "takes one" in str(run(listened(4, 5)[0]).reason)
    assert "does not fit" in str(run(replace(observation, prior=Prior(("ABCDEFGHIJKLM",), (8,)))).reason)
    with pytest.raises(InputError, match="step"):
        HessianFreeConfig(step=0.1)


def test_a_cpu_budget_ends_it() -> None:
    assert run(listened(8)[0], seconds=0.2).diagnostics["cpu_seconds"] < 0.6
