"""Contract of every attack: one observation in, one reconstruction out, whatever the model and the update."""

from collections.abc import Callable

import pytest
import torch
from quick_settings import QUICK

from builders import batch_of, observe, small_deepspeech1, small_deepspeech2
from overheard.attacks import registry
from overheard.attacks.observation import Observation, Prior, Reconstruction
from overheard.attacks.registry import ATTACKS, AUTO, Attack, run_attack
from overheard.attacks.span import SpanConfig
from overheard.errors import InputError
from overheard.federation.update import ClientUpdate

ROUNDING = {"sparse_frames": 1e-3}
"""Relative difference allowed between two runs, where none is meant to differ at all: the search for frames follows
products whose last bits depend on where memory begins, and two steps from the start the features still amplify them."""


def test_every_attack_is_held_to_the_contract() -> None:
    assert set(QUICK) == set(ATTACKS)


def observations() -> dict[str, Observation]:
    deepspeech1, deepspeech2 = small_deepspeech1(hidden_size=64), small_deepspeech2(hidden_size=16)
    prior = Prior(transcripts=("AD",), num_frames=(24,))
    return {
        "windows": observe(deepspeech1, batch_of(24), prior=prior),
        "two utterances": observe(deepspeech1, batch_of(12, 9), prior=Prior(("AD", "DG"), (12, 9))),
        "past the capacity": observe(deepspeech1, batch_of(140), prior=Prior(("AD",), (140,))),
        "convolutions": observe(deepspeech2, batch_of(24, num_features=257), prior=prior),
    }


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("case", observations())
def test_contract(name: str, case: str) -> None:
    observation = observations()[case]
    before = {key: tensor.clone() for key, tensor in observation.model.state_dict().items()}
    shared = {key: tensor.clone() for key, tensor in observation.update.tensors.items()}
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, second = (run_attack(observation, name, QUICK[name], seed=3) for _ in range(2))

    assert first.attack == name
    assert len(first.transcripts) == len(first.features) <= observation.update.protocol.num_utterances
    assert all(matrix.ndim == 2 and bool(matrix.isfinite().all()) for matrix in first.features)
    assert first.features or first.reason, "nothing came back and no reason is given"
    assert first.seconds > 0
    assert first.given["kind"] == "gradient"
    # The same seed gives the same result, and neither model, update nor global generator is touched.
    for one, two in zip(first.features, second.features, strict=True):
        tolerance = ROUNDING.get(name, 0.0) * float(one.abs().max())
        torch.testing.assert_close(one, two, rtol=0.0, atol=tolerance)
    assert all(torch.equal(tensor, before[key]) for key, tensor in observation.model.state_dict().items())
    assert all(torch.equal(tensor, shared[key]) for key, tensor in observation.update.tensors.items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_auto_takes_the_first_that_brings_something_back() -> None:
    found = run_attack(observations()["windows"], AUTO)
    assert found.attack == "span"
    assert found.diagnostics["tried"] == {"span": None}


def test_auto_that_brings_nothing_back_says_why_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(why: str) -> Callable[..., Reconstruction]:
        return lambda *_, **__: Reconstruction("other", reason=why)

    rows = {"first": Attack(fails("too long"), SpanConfig, ""), "second": Attack(fails("too wide"), SpanConfig, "")}
    monkeypatch.setattr(registry, "ATTACKS", rows)
    assert run_attack(observations()["windows"], AUTO).reason == "first: too long; second: too wide"
    assert run_attack(observations()["windows"], "second").reason == "too wide"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spam", {}, "choose one of auto, span"),
        ("span", {"tolerence": 1.0}, "unknown setting 'tolerence'; choose from neighbours, tolerance"),
        (AUTO, {"tolerance": 1.0}, "settings without an attack"),
    ],
)
def test_wrong_names_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_attack(observations()["windows"], name, options)


def test_an_update_of_another_model_is_refused() -> None:
    observation = observations()["windows"]
    update = ClientUpdate({"output.weight": torch.zeros(3, 3)}, observation.update.protocol)
    with pytest.raises(InputError, match="shape"):
        run_attack(Observation(observation.model, update))
