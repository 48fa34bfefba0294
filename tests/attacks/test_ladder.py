"""The ladder ends at the first certificate, keeps to its time, and says of every rung what it came to."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_speech import noise_features, shared, tiny_deepspeech1

from overheard.attacks import ladder, registry
from overheard.attacks.complete import attack_until, check_attack
from overheard.attacks.ladder import LADDER, RUNGS, LadderConfig, climb
from overheard.attacks.observation import Observation, Prior, Reconstruction
from overheard.attacks.registry import ATTACKS, Attack
from overheard.attacks.span import SpanConfig
from overheard.errors import InputError


@pytest.fixture
def observation() -> Observation:
    model = tiny_deepspeech1()
    return Observation(model, shared(model, noise_features([30]), ["CHAIN"]))


def brings(frames: int, reason: str | None = None, unique: bool | None = None) -> Callable[..., Reconstruction]:
    """An attack that brings back one utterance of so many frames, or nothing."""
    features = (torch.zeros(frames, 26, dtype=torch.float64),) if frames else ()
    return lambda *_, **__: Reconstruction("made up", features, (None,) * len(features), reason=reason, unique=unique)


def rungs(monkeypatch: pytest.MonkeyPatch, **attacks: Callable[..., Reconstruction]) -> tuple[str, ...]:
    rows = {name: Attack(run, SpanConfig, "") for name, run in attacks.items()}
    for module in (registry, ladder):
        monkeypatch.setattr(module, "ATTACKS", rows)
    return tuple(rows)


def as_it_is(observation: Observation, found: Reconstruction) -> Reconstruction:
    return found


def test_the_first_certificate_ends_the_climb(observation: Observation) -> None:
    found = attack_until(observation, LADDER, until="features")
    assert (found.attack, found.certified, found.transcripts) == ("span", True, ("CHAIN",))
    assert [row["rung"] for row in found.diagnostics["rungs"]] == ["rank", "span"]
    assert found.diagnostics["rungs"][-1]["outcome"] == "certified"
    assert found.given["batch"] == 1
    assert found.seconds > 0
    assert found.seconds_words is not None


def test_every_rung_is_tried_and_the_best_is_kept(observation: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    names = rungs(
        monkeypatch, none=brings(0, "too long"), doubt=brings(3, unique=False), sure=brings(4), late=brings(5)
    )
    found = climb(observation, LadderConfig(names), as_it_is)
    assert [row["rung"] for row in found.diagnostics["rungs"]] == ["rank", *names]
    assert len(found.features[0]) == 4
    assert found.diagnostics["rungs"][1]["outcome"] == "too long"
    assert found.diagnostics["rungs"][2]["outcome"] == "not certified"


@pytest.mark.parametrize(
    ("earlier", "known", "begins"),
    [([8], None, True), ([8], 8, True), ([8], 9, False), ([8, 8], None, False), ([], None, False)],
)
def test_matching_begins_with_the_best_of_the_earlier_rungs_where_it_fits(
    earlier: list[int], known: int | None, begins: bool, observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tuple(torch.zeros(frames, 26, dtype=torch.float64) for frames in earlier)
    starts: list[Reconstruction | None] = []

    def search(*_: object, start: Reconstruction | None, **__: object) -> Reconstruction:
        starts.append(start)
        return Reconstruction("search", (torch.ones(8, 26, dtype=torch.float64),), (None,))

    names = rungs(
        monkeypatch, first=lambda *_, **__: Reconstruction("first", features, (None,) * len(features)), search=search
    )
    monkeypatch.setitem(registry.ATTACKS, "search", replace(registry.ATTACKS["search"], takes_start=True))
    lengths = None if known is None else (known,)
    found = climb(replace(observation, prior=Prior(num_frames=lengths)), LadderConfig(names), as_it_is)
    assert [start is not None for start in starts] == [begins]
    if begins:
        assert starts[0] is not None
        assert starts[0].features[0] is features[0]
        assert found.attack == "search", "it began there and came nearer"
        assert found.diagnostics["rungs"][-1]["outcome"] == "not certified, begun from first"
    assert ATTACKS["matching"].takes_start


def test_nothing_says_why_of_each_rung(observation: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    names = rungs(monkeypatch, first=brings(0, "too long"), second=brings(0, "too wide"))
    reason = climb(observation, LadderConfig(names), as_it_is).reason or ""
    assert reason.endswith("first: too long; second: too wide")
    assert reason.startswith("rank: ")


def test_no_rung_is_begun_when_time_is_up(observation: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    names = rungs(monkeypatch, first=brings(0, "too long"), second=brings(3))
    clock = itertools.chain([0.0, 0.0, 1.0, 2.0], itertools.repeat(99.0))
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: next(clock))
    found = climb(observation, LadderConfig(names, seconds=10.0), as_it_is)
    assert not found.features
    assert [row["outcome"] for row in found.diagnostics["rungs"][1:]] == ["too long", "no time left"]


def test_rungs_are_attacks_and_settings_are_checked(observation: Observation) -> None:
    assert set(RUNGS) <= set(ATTACKS)
    for options, message in (
        ({"rungs": ["stilts"]}, "choose from span"),
        ({"rungs": []}, "at least one attack"),
        ({"seconds": 0}, "more than 0 s"),
        ({"height": 3}, "unknown setting 'height'"),
    ):
        with pytest.raises(InputError, match=message):
            check_attack(LADDER, options)
        with pytest.raises(InputError, match=message):
            attack_until(observation, LADDER, options)
