"""Flags that mean the same in every command."""

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from overheard.errors import InputError

if TYPE_CHECKING:
    from overheard.federation.client import ClientSettings
    from overheard.speech.corpus import Selection

RecipeName = Literal[
    "librispeech-960", "librispeech-100", "librispeech-mini", "digits", "digits-new-voices", "synthetic"
]

DEFAULT_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Choice:
    """Which utterances of the corpus are meant.

    Attributes:
        min_seconds: shortest duration, s
        max_seconds: longest duration, s
        speakers: only these speakers
        subsets: only these parts of the corpus, such as test-clean
        utterance: only these utterances, by id
        limit: at most so many, drawn by --seed
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    speakers: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    utterance: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Machine:
    """What to run on.

    Attributes:
        seed: of random weights and of everything drawn
        device: cpu, cuda, cuda:1 ...
        threads: for torch; more than there are cores slows everything
    """

    seed: int = 0
    device: str = "cpu"
    threads: int = DEFAULT_THREADS


@dataclass(frozen=True)
class Client:
    """How the client trains.

    Attributes:
        kind: share the gradient, or the weights' change (delta) after local SGD
        mode: normalisation and dropout as in evaluation or as in training
        local_steps: steps of local SGD behind a delta
        learning_rate: of local SGD
        momentum: of local SGD
        weight_decay: of local SGD
        clip_norm: largest norm of a step's gradient over all parameters
    """

    kind: Literal["gradient", "delta"] = "gradient"
    mode: Literal["eval", "train"] = "eval"
    local_steps: int = 1
    learning_rate: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None


def selection_of(choice: Choice, machine: Machine) -> "Selection":
    """The flags as the corpus understands them."""
    from overheard.speech.corpus import Selection

    return Selection(
        choice.min_seconds,
        choice.max_seconds,
        choice.speakers,
        choice.subsets,
        choice.utterance,
        choice.limit,
        machine.seed,
    )


def client_settings(client: Client) -> "ClientSettings":
    """The flags as the client understands them."""
    from overheard.federation.client import ClientSettings

    return ClientSettings(**asdict(client))


def attack_options(settings: tuple[str, ...]) -> dict[str, Any]:
    """Settings of an attack from NAME=VALUE: ("schedule.learning_rate=0.1",) -> {"schedule": {"learning_rate": 0.1}}.

    A value is read as JSON where it is JSON, otherwise as text.

    Raises:
        InputError: no name, or a name that stands for a value and for a group of settings at once.
    """
    options: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        *groups, name = path.split(".")
        if not equals or not all([*groups, name]):
            raise InputError("settings", repr(setting), "give NAME=VALUE, such as iterations=200")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        target = options
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise InputError("settings", repr(setting), f"{group} has a value already; give one of the two")
        if name in target:
            raise InputError("settings", repr(setting), "give each setting once")
        target[name] = value
    return options
