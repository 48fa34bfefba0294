"""Gradient matching: what it reaches, what it keeps to, and that it goes on exactly where it stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from listener import listened
from torch import Tensor

from overheard.attacks import matching
from overheard.attacks.gradient_matching.distances import DistanceConfig
from overheard.attacks.gradient_matching.priors import PriorConfig
from overheard.attacks.gradient_matching.problem import Problem
from overheard.attacks.gradient_matching.schedules import ScheduleConfig
from overheard.attacks.matching import OPTIMISERS, MatchingConfig
from overheard.attacks.observation import Observation, Prior, Reconstruction, load_reconstruction
from overheard.attacks.registry import run_attack
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.metrics.features import match_utterances, score_features

DELTA = ClientSettings("delta", local_steps=3, learning_rate=0.05)


def run(observation: Observation, seed: int = 0, start: Reconstruction | None = None, **options: Any) -> Reconstruction:
    config = MatchingConfig(**{"iterations": 50, **options})
    return matching.attack(observation, config, generator=torch.Generator().manual_seed(seed), start=start)


def snr(found: Reconstruction, true: Tensor) -> float:
    score = score_features(found.features[0], true)
    assert score.snr_db is not None
    return score.snr_db


@pytest.mark.parametrize("kind", ["l2", "cosine", "per-tensor", "cosine+l2"])
def test_features_come_back(kind: str) -> None:
    observation, batch = listened(10)
    found = run(observation, distance=DistanceConfig(kind))
    assert snr(found, batch.features[:, 0]) > 6.0, "the point it begins with is at 0 dB"
    assert found.transcripts == observation.prior.transcripts
    assert found.diagnostics["engine"]["reason"]
    json.dumps(found.settings | found.diagnostics)


@pytest.mark.parametrize(("optimiser", "rate"), [("adam", 0.1), ("lbfgs", 1.0), ("sgd", 1.0)])
def test_every_optimiser_lowers_the_distance(optimiser: str, rate: float) -> None:
    observation, _ = listened(10)
    schedule = ScheduleConfig(learning_rate=rate)
    found = run(observation, optimiser=optimiser, schedule=schedule, iterations=12, history_every=1)
    assert found.diagnostics["distance"] < 0.7 * found.diagnostics["history"][0]["distance"]


def test_a_delta_of_several_steps_is_matched_by_simulating_them() -> None:
    observation, batch = listened(10, settings=DELTA)
    assert snr(run(observation, iterations=25), batch.features[:, 0]) > 6.0


def test_a_batch_is_matched_together() -> None:
    observation, batch = listened(5, 7)
    found = run(observation)
    true = (batch.utterance_features(0), batch.utterance_features(1))
    assert [len(matrix) for matrix in found.features] == [5, 7]
    assert match_utterances(found.features, true) == {0: 0, 1: 1}
    assert min(score_features(found.features[index], true[index]).snr_db or 0.0 for index in (0, 1)) > 3.0


def test_after_cosine_matching_features_have_the_front_ends_scale() -> None:
    observation, _ = listened(10)
    features = run(observation, distance=DistanceConfig("cosine"), iterations=5).features[0]
    assert float(features.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(features.std()) == pytest.approx(1.0, abs=1e-5)


def test_priors_and_chosen_parameters_take_part() -> None:
    observation, batch = listened(10)
    priors = PriorConfig(total_variation=1e-4, statistics=1e-2, span_residual=0.1)
    found = run(observation, priors=priors, parameters=("first.",))
    assert snr(found, batch.features[:, 0]) > 6.0
    with pytest.raises(InputError, match=r"begins with 'third'.*first.weight"):
        run(observation, parameters=("third",))


@pytest.mark.parametrize("initial", ["zeros", "file", "start"])
def test_another_attacks_result_is_where_it_begins(initial: str, tmp_path: Path) -> None:
    observation, batch = listened(10)
    near = Reconstruction("other", (batch.features[:, 0].double() + 0.05,), (None,))
    near.save(tmp_path / "near.safetensors")
    options = {"zeros": {"initial": "zeros"}, "file": {"initial": str(tmp_path / "near.safetensors")}, "start": {}}
    schedule = ScheduleConfig(learning_rate=1e-6)
    start = near if initial == "start" else None
    found = run(observation, iterations=1, schedule=schedule, start=start, **options[initial])
    expected = torch.zeros(10, 12) if initial == "zeros" else near.features[0]
    assert torch.allclose(found.features[0].double(), expected.double(), atol=1e-5)


def test_restarts_are_ranked_by_distance() -> None:
    observation, _ = listened(10)
    found = run(observation, restarts=3, iterations=4)
    distances = found.diagnostics["distances_of_restarts"]
    assert len(set(distances)) == 3
    assert found.diagnostics["distance"] == min(distances)
    assert found.diagnostics["iterations"] == [4, 4, 4]


def test_a_cpu_budget_ends_the_run() -> None:
    observation, _ = listened(10)
    found = run(observation, iterations=10**6, seconds=0.3, restarts=2)
    assert all(0.15 <= spent < 0.6 for spent in found.diagnostics["cpu_seconds"])


def test_frames_outside_the_grid_do_not_change_by_one_bit(tmp_path: Path) -> None:
    observation, _ = listened(10)
    schedule = ScheduleConfig("alternating", grid_frames=4, grid_iterations=5)
    run(observation, schedule=schedule, iterations=15, iterates=str(tmp_path), iterates_every=1)
    points = [load_reconstruction(path).features[0] for path in sorted(tmp_path.glob("*.safetensors"))]
    assert len(points) == 15
    grids = [slice(0, 4), slice(4, 8), slice(8, 10)]
    for index in range(1, 15):
        outside = torch.ones(10, dtype=torch.bool)
        outside[grids[index // 5]] = False
        assert torch.equal(points[index][outside], points[index - 1][outside])
        assert not torch.equal(points[index], points[index - 1])


class _Stopped(Exception):
    pass


def stopped_after(monkeypatch: pytest.MonkeyPatch, evaluations: int) -> None:
    """Let the run be killed at an evaluation of the objective."""
    real, count = Problem.evaluate, iter(range(evaluations))

    def evaluate(self: Problem, *arguments: Any) -> Any:
        if next(count, None) is None:
            raise _Stopped
        return real(self, *arguments)

    monkeypatch.setattr(Problem, "evaluate", evaluate)


@pytest.mark.parametrize(
    ("optimiser", "kind"),
    [
        *((optimiser, "alternating") for optimiser in OPTIMISERS),
        *(("adam", kind) for kind in ("whole", "sequential", "error")),
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    optimiser: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation, _ = listened(10)
    observation = replace(observation, prior=Prior(None, (10,)))
    schedule = ScheduleConfig(kind, grid_frames=4, grid_overlap=1, grid_iterations=3)
    options: dict[str, Any] = {
        "optimiser": optimiser, "schedule": schedule, "iterations": 10, "restarts": 2, "labels_every": 5,
        "history_every": 1,
    }  # fmt: skip
    whole = run(observation, **options)
    options |= {"checkpoint": str(tmp_path / "run.safetensors"), "checkpoint_every": 2}
    with monkeypatch.context() as patch:
        stopped_after(patch, 15)
        with pytest.raises(_Stopped):
            run(observation, **options)
    resumed = run(observation, **options)
    assert torch.equal(resumed.features[0], whole.features[0])
    assert resumed.transcripts == whole.transcripts
    timeless = [
        [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in found.diagnostics["history"]]
        for found in (resumed, whole)
    ]
    assert timeless[0] == timeless[1]
    assert torch.equal(run(observation, **options).features[0], whole.features[0]), "a finished run is only read"


@pytest.mark.parametrize(
    ("change", "named"),
    [("model", "model"), ("update", "update"), ("settings", r"settings.distance.kind is 'l2' there and 'cosine' here"),
     ("prior", "prior.num_frames"), ("seed", "seed is 0 there and 1 here"), ("start", "start")],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(change: str, named: str, tmp_path: Path) -> None:
    observation, batch = listened(10)
    options: dict[str, Any] = {"checkpoint": str(tmp_path / "run.safetensors"), "iterations": 4}
    run(observation, **options)
    start, seed = None, 0
    if change == "model":
        with torch.no_grad():
            observation.model.first.bias += 1.0  # pyright: ignore
    elif change == "update":
        observation = replace(listened(10)[0], update=listened(10, settings=DELTA)[0].update)
    elif change == "settings":
        options["distance"] = DistanceConfig("cosine")
    elif change == "prior":
        observation = replace(observation, prior=Prior(observation.prior.transcripts, None))
    elif change == "seed":
        seed = 1
    else:
        start = Reconstruction("other", (batch.features[:, 0],), (None,))
    with pytest.raises(InputError, match=named):
        run(observation, seed, start, **options)


def test_the_length_comes_from_the_rank() -> None:
    observation, _ = listened(9)
    observation = replace(observation, prior=Prior(observation.prior.transcripts))
    found = run(observation, iterations=2)
    assert len(found.features[0]) == 9
    assert "rank 9 of first" in found.diagnostics["lengths"]


def test_what_cannot_be_known_is_a_reason() -> None:
    unknown = replace(listened(20)[0], prior=Prior(("AB",)))
    assert "lengths are unknown" in str(run(unknown, iterations=2).reason)
    batch = replace(listened(4, 5)[0], prior=Prior(("ABC", "ABC")))
    assert "one utterance in one step" in str(run(batch, iterations=2).reason)
    long = replace(listened(10)[0], prior=Prior(("ABCDEFGHIJKLMNOP",), (10,)))
    assert "does not fit" in str(run(long, iterations=2).reason)
    with pytest.raises(InputError, match="span residual"):
        run(replace(unknown, prior=Prior(("AB",), (20,))), priors=PriorConfig(span_residual=1.0))


def test_unknown_transcripts_are_found_on_the_way() -> None:
    observation, batch = listened(10)
    known_length = replace(observation, prior=Prior(None, (10,)))
    found = run(known_length, iterations=60, labels_every=5)
    assert found.transcripts == observation.prior.transcripts
    assert snr(found, batch.features[:, 0]) > 5.0
    guessed = run(known_length, iterations=1, initial_transcripts=("AAA",), labels_every=10)
    assert guessed.transcripts == ("AAA",)


def test_auto_leaves_the_slow_attacks_out() -> None:
    found = run_attack(listened(10)[0])
    assert set(found.diagnostics["tried"]).isdisjoint({"matching", "hessian_free"})


def test_the_model_is_left_as_it_was() -> None:
    observation, _ = listened(10, settings=DELTA)
    model = observation.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(observation, iterations=3, engine="frozen")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bad_setting_is_one_line() -> None:
    with pytest.raises(InputError, match="signed-adam"):
        MatchingConfig(optimiser="lion")
    with pytest.raises(InputError, match="restarts"):
        MatchingConfig(restarts=0)
    with pytest.raises(InputError, match="seconds"):
        MatchingConfig(seconds=0.0)
