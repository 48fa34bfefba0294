"""Model configurations <-> JSON values, and the checks their fields share.

Specifications also arrive in files from other people, so every size has an upper limit: none may cost memory or time
before it is compared with what the file holds.
"""

import math
from dataclasses import asdict, fields
from typing import Any, TypeVar

from overheard.errors import InputError
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import FrontEndConfig

Config = TypeVar("Config")

WIDEST_LAYER = 65536
MOST_LAYERS = 64


def config_to_json(config: Any) -> dict[str, Any]:
    """Every field of a configuration, nested ones too, as JSON values."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def config_from_json(config_class: type[Config], values: dict[str, Any], owner: str) -> Config:
    """A configuration from some of its fields; the others keep their defaults.

    Args:
        config_class: a frozen dataclass that checks its own values.
        values: by field name, as JSON or Python values; `front_end` may be an object or a `FrontEndConfig`.
        owner: whose configuration it is, for the message.

    Raises:
        InputError: an unknown field, named beside the known ones, or a value that the class refuses.
    """
    names = [field.name for field in fields(config_class)]  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in names:
            raise InputError(owner, f"unknown setting {name!r}", f"choose from {', '.join(names)}")
    return config_class(**{name: _frozen(name, value) for name, value in values.items()})


def check_front_end(front_end: object) -> None:
    """A front end whose features a layer can take."""
    if not isinstance(front_end, FrontEndConfig):
        raise InputError("front_end", repr(front_end), "give a FrontEndConfig, or its fields as a JSON object")
    check_whole("front_end", front_end.num_features, 1, WIDEST_LAYER)


def check_characters(characters: object) -> None:
    """Characters that make an alphabet."""
    if not isinstance(characters, str):
        raise InputError("characters", repr(characters), "give the symbols as one text")
    Alphabet(characters)


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """A whole number between two limits, both included."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(name, repr(value), f"give a whole number from {least} to {most}")


def check_positive(name: str, value: object) -> None:
    """A finite number above zero."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise InputError(name, repr(value), "give a number above 0")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of some names."""
    if value not in choices:
        raise InputError(name, repr(value), f"choose one of {', '.join(choices)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _frozen(name: str, value: Any) -> Any:
    if name == "front_end" and isinstance(value, dict):
        return config_from_json(FrontEndConfig, value, "front_end")
    return tuple(_frozen(name, inner) for inner in value) if isinstance(value, list | tuple) else value
