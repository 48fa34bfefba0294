"""One contract for every defence in the registry, and what some of them promise beyond it."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overheard.errors import InputError
from overheard.federation.defences.cohort import weighted_mean
from overheard.federation.defences.registry import (
    DEFENCES,
    Chosen,
    change_training,
    cohort_defence,
    cohort_mean,
    defend,
    described,
    parse_defence,
)
from overheard.federation.local_settings import LocalSettings
from overheard.federation.randomness import noise_generator
from overheard.federation.update import ClientUpdate, Protocol


def tensors(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first.weight": (5, 7), "first.bias": (5,), "conv.weight": (2, 1, 3, 3), "scale": ()}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def length(update: dict[str, Tensor]) -> float:
    return float(torch.cat([each.double().flatten() for each in update.values()]).norm())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_keeps_the_contract(name: str) -> None:
    chosen = parse_defence(name)
    defence = chosen.defence
    assert defence.guarantee.endswith("."), "says in a sentence what it guarantees"
    assert described([chosen])[0]["guarantee"] == defence.guarantee
    assert all(field.name in (defence.settings.__doc__ or "") for field in fields(defence.settings))
    assert defence.apply.__doc__
    update = ClientUpdate(tensors(0), Protocol(num_utterances=3))
    kept = {name: each.clone() for name, each in update.tensors.items()}
    if defence.place == "training":
        assert defend(update, [chosen], generator()) is update
        changed = change_training(LocalSettings(), [chosen])
        assert isinstance(changed, LocalSettings)
        assert changed != LocalSettings()
        assert change_training(changed, []) is changed
        return
    assert change_training(LocalSettings(), [chosen]) == LocalSettings()
    if defence.place == "update":
        first, again = (defend(update, [chosen], generator()) for _ in range(2))
        zero = {name: torch.zeros_like(each) for name, each in update.tensors.items()}
        nothing = defend(replace(update, tensors=zero), [chosen], generator())
        assert all(bool(each.isfinite().all()) for each in nothing.tensors.values())
        assert first.protocol == update.protocol
        found, repeated = first.tensors, again.tensors
    else:
        assert defend(update, [chosen], generator()) is update
        cohort = [update.tensors, tensors(1), tensors(2)]
        found, repeated = (cohort_mean(chosen, cohort, [1.0, 2.0, 3.0], 3, generator()) for _ in range(2))
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in kept.items()}
    assert all(each.is_floating_point() and bool(each.isfinite().all()) for each in found.values())
    assert all(torch.equal(each, repeated[name]) for name, each in found.items()), "the same for the same generator"
    assert all(torch.equal(each, kept[name]) for name, each in update.tensors.items()), "its input is left as it was"


@given(st.integers(0, 2**16), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(seed: int, scale: float, norm: float) -> None:
    update = ClientUpdate(tensors(seed, scale), Protocol())
    for name in ("clip", "clip-layers"):
        clipped = defend(update, [parse_defence(f"{name}:norm={norm}")], generator()).tensors
        assert length(clipped) <= norm * (1 + 1e-5)
    if length(update.tensors) <= norm:
        passed = defend(update, [parse_defence(f"clip:norm={norm}")], generator()).tensors
        assert all(torch.equal(each, passed[name]) for name, each in update.tensors.items())


@pytest.mark.parametrize("name", ["top-k", "prune", "random-k"])
def test_sparsification_sends_its_share(name: str) -> None:
    update = ClientUpdate({"a": tensors(0)["first.weight"], "b": torch.randn(400)}, Protocol())
    sent = defend(update, [parse_defence(f"{name}:keep=0.2")], generator()).tensors
    share = sum(int((each != 0).sum()) for each in sent.values()) / 435
    assert share == pytest.approx(0.2, abs=0.06)
    everything = defend(update, [parse_defence(f"{name}:keep=1")], generator()).tensors
    assert all(torch.allclose(each, update.tensors[name]) for name, each in everything.items())


@pytest.mark.parametrize("name", ["random-k:keep=0.25", "quantise-8", "noise:std=0.5"])
def test_these_keep_the_mean(name: str) -> None:
    update, source = ClientUpdate(tensors(3), Protocol()), generator()
    chosen = [parse_defence(name)]
    mean = torch.stack([defend(update, chosen, source).tensors["first.weight"] for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, update.tensors["first.weight"], atol=0.15)


def test_rounding_is_bounded() -> None:
    update = ClientUpdate(tensors(4), Protocol())
    for name, each in defend(update, [parse_defence("quantise-8")], generator()).tensors.items():
        assert float((each - update.tensors[name]).abs().max()) <= float(update.tensors[name].abs().max()) / 127 * 1.001
    assert defend(update, [parse_defence("quantise-16")], generator()).tensors["scale"].dtype is torch.float16


def test_defences_apply_in_their_order() -> None:
    update = ClientUpdate(tensors(5, 100.0), Protocol())
    clip, noise = parse_defence("clip:norm=1"), parse_defence("noise:std=10")
    assert length(defend(update, [clip, noise], generator()).tensors) > 10
    assert length(defend(update, [noise, clip], generator()).tensors) <= 1.00001


def test_user_level_privacy_bounds_what_one_client_changes() -> None:
    chosen = parse_defence("user-dp:norm=0.5,multiplier=0.000001")
    many = [tensors(seed, 10.0) for seed in range(8)]
    with_all = cohort_mean(chosen, many, [1.0] * 8, 8, generator())
    without = cohort_mean(chosen, many[:-1], [1.0] * 7, 8, generator())
    assert length({name: with_all[name] - without[name] for name in with_all}) <= 0.5 / 8 * 1.01


def test_secure_aggregation_is_the_mean() -> None:
    cohort = [tensors(seed) for seed in range(3)]
    mean = cohort_mean(parse_defence("secure-aggregation"), cohort, [1.0, 1.0, 2.0], 3, generator())
    expected = (cohort[0]["scale"] + cohort[1]["scale"] + 2 * cohort[2]["scale"]) / 4
    assert torch.allclose(mean["scale"], expected)
    assert torch.equal(mean["first.bias"], weighted_mean(cohort, [1.0, 1.0, 2.0])["first.bias"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "choose from clip"),
        ("clip:norm=-1", "norm: -1.0"),
        ("clip:size=1", "unknown setting 'size'"),
        ("clip:norm", "give NAME:KEY=VALUE"),
        ("top-k:keep=0", "keep: 0"),
        ("clip:norm=much", "give a number"),
    ],
)
def test_wrong_defences_are_explained(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_defence(text)


def test_one_defence_sums_the_cohort() -> None:
    def chosen(*texts: str) -> list[Chosen]:
        return [parse_defence(text) for text in texts]

    assert cohort_defence(chosen("clip", "sign")) is None
    assert cohort_defence(chosen("clip", "secure-aggregation")) is not None
    with pytest.raises(InputError, match="user-dp and secure-aggregation"):
        cohort_defence(chosen("user-dp", "secure-aggregation"))


def test_secret_noise_cannot_be_drawn_again() -> None:
    def draws(secret: bool) -> list[float]:
        return [float(torch.randn((), generator=noise_generator(0, 1, "noise", secret))) for _ in range(2)]

    assert len(set(draws(secret=False))) == 1
    assert len(set(draws(secret=True))) == 2
