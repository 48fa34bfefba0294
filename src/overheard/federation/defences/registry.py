"""Defences by name: what each does, where it acts, and what it guarantees, if anything."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from overheard.errors import InputError
from overheard.federation.defences import client_side, clipping, cohort, noise, quantisation, sparsity
from overheard.federation.local_settings import LocalSettings
from overheard.federation.update import ClientUpdate
from overheard.recognition.configuration import config_from_json, config_to_json

Place = Literal["training", "update", "cohort"]
NOTHING = "Nothing is guaranteed"


@dataclass(frozen=True)
class Defence:
    """One way to give less away.

    Attributes:
        place: "training" changes `LocalSettings`; "update" changes the tensors that a client sends; "cohort" stands
            between a round's updates and the server.
        settings: class of its settings, all with defaults.
        apply: by place: (LocalSettings, settings) -> LocalSettings; (tensors, settings, generator) -> tensors;
            (updates, weights, settings, planned cohort, generator) -> tensors of the mean.
        guarantee: what holds whatever an attacker does, in one sentence.
    """

    place: Place
    settings: type[Any]
    apply: Callable[..., Any]
    guarantee: str


DEFENCES: dict[str, Defence] = {
    "clip": Defence(
        "update",
        clipping.ClipSettings,
        clipping.clip_global,
        f"{NOTHING} about speech; one client's influence on the model is at most the norm.",
    ),
    "clip-layers": Defence(
        "update",
        clipping.ClipSettings,
        clipping.clip_layers,
        f"{NOTHING} about speech; one client's influence on the model is at most the norm.",
    ),
    "noise": Defence(
        "update",
        noise.NoiseSettings,
        noise.gaussian_noise,
        f"{NOTHING} by itself; behind a clip to C it is locally differentially private, with multiplier std / (2 C).",
    ),
    "top-k": Defence("update", sparsity.SparsitySettings, sparsity.top_k, f"{NOTHING}: what is sent is exact."),
    "random-k": Defence("update", sparsity.SparsitySettings, sparsity.random_k, f"{NOTHING}: what is sent is exact."),
    "prune": Defence("update", sparsity.SparsitySettings, sparsity.prune, f"{NOTHING}: what is sent is exact."),
    "quantise-8": Defence(
        "update", quantisation.NoSettings, quantisation.eight_bit, f"{NOTHING}: the rounding is small and bounded."
    ),
    "quantise-16": Defence(
        "update", quantisation.NoSettings, quantisation.half, f"{NOTHING}: the rounding is small and bounded."
    ),
    "sign": Defence(
        "update", quantisation.NoSettings, quantisation.sign, f"{NOTHING}: one bit of each coordinate is still sent."
    ),
    "dropout": Defence(
        "training", client_side.DropoutSettings, client_side.dropout, f"{NOTHING}: an attacker can guess the units."
    ),
    "local-steps": Defence(
        "training", client_side.StepsSettings, client_side.local_steps, f"{NOTHING}: the steps can be simulated."
    ),
    "larger-batch": Defence(
        "training", client_side.BatchSettings, client_side.larger_batch, f"{NOTHING}: the span of all frames is sent."
    ),
    "frozen": Defence(
        "training",
        client_side.FrozenSettings,
        client_side.frozen_layers,
        f"{NOTHING} about speech; the frozen layers send nothing, the others send all they had.",
    ),
    "sample-dp": Defence(
        "training",
        client_side.SampleDPSettings,
        client_side.sample_dp,
        "Every utterance is (epsilon, delta)-differentially private against everybody, the server included; a speaker "
        "with several utterances is not. Counts and losses that clients report are not covered.",
    ),
    "central-noise": Defence(
        "cohort", noise.NoiseSettings, cohort.central_noise, f"{NOTHING}: the updates behind the mean are not bounded."
    ),
    "user-dp": Defence(
        "cohort",
        cohort.UserDPSettings,
        cohort.user_dp,
        "Every client's whole speech is (epsilon, delta)-differentially private in every model that is released; not "
        "against whoever sums the updates. Counts and losses that clients report are not covered.",
    ),
    "secure-aggregation": Defence(
        "cohort",
        quantisation.NoSettings,
        cohort.secure_aggregation,
        "The server learns the cohort's sum and no update by itself. The sum guarantees nothing more. Simulated here: "
        "the mean is computed in the open and only the mean is kept.",
    ),
}


@dataclass(frozen=True)
class Chosen:
    """A defence with its settings; `text` is how a user wrote it."""

    name: str
    settings: Any
    text: str

    @property
    def defence(self) -> Defence:
        """Its entry in the registry."""
        return DEFENCES[self.name]


def parse_defence(text: str) -> Chosen:
    """NAME or NAME:KEY=VALUE,KEY=VALUE, a list as VALUE+VALUE: "clip:norm=0.5", "frozen:layers=conv+norms".

    Raises:
        InputError: an unknown name or setting, or a value of the wrong kind.
    """
    name, values = parse_named(text, "defence")
    if name not in DEFENCES:
        raise InputError("defence", repr(name), f"choose from {', '.join(DEFENCES)}")
    if "layers" in values:
        values["layers"] = str(values["layers"]).split("+")
    settings = config_from_json(DEFENCES[name].settings, values, f"defence {name}")
    return Chosen(name, settings, text)


def parse_named(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """A name and its settings from NAME:KEY=VALUE,KEY=VALUE; values are JSON where they can be, else text."""
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(what, repr(text), "give NAME:KEY=VALUE,KEY=VALUE")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return name, values


def change_training(local: LocalSettings, chosen: Sequence[Chosen]) -> LocalSettings:
    """The client's settings under all defences that change them, in their order."""
    for each in chosen:
        if each.defence.place == "training":
            local = each.defence.apply(local, each.settings)
    return local


def defend(update: ClientUpdate, chosen: Sequence[Chosen], generator: torch.Generator) -> ClientUpdate:
    """What the client sends under all defences that change it, in their order."""
    for each in chosen:
        if each.defence.place == "update":
            update = replace(update, tensors=each.defence.apply(update.tensors, each.settings, generator))
    return update


def cohort_defence(chosen: Sequence[Chosen]) -> Chosen | None:
    """The defence that stands between a round's updates and the server; None without one.

    Raises:
        InputError: more than one.
    """
    found = [each for each in chosen if each.defence.place == "cohort"]
    if len(found) > 1:
        raise InputError("defence", " and ".join(each.name for each in found), "one of them can sum the updates")
    return found[0] if found else None


def cohort_mean(
    each: Chosen,
    updates: Sequence[dict[str, Tensor]],
    weights: Sequence[float],
    planned: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The mean that the server goes on with."""
    return each.defence.apply(updates, weights, each.settings, planned, generator)


def described(chosen: Sequence[Chosen]) -> list[dict[str, Any]]:
    """Defences, settings and guarantees as JSON values, for a run's config.json."""
    return [
        {"name": each.name, "settings": config_to_json(each.settings), "guarantee": each.defence.guarantee}
        for each in chosen
    ]


def guarantees(chosen: Sequence[Chosen]) -> list[str]:
    """One line for each defence."""
    return [f"{each.text}: {each.defence.guarantee}" for each in chosen]
