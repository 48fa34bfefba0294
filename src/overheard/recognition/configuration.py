"""Configurations <-> JSON values, and the checks that fields share.

Specifications also arrive in files from other people, so types are checked before anything is built, and every size has
an upper limit: none may cost memory or time before it is compared with the tensors beside it.
"""

import functools
import math
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from overheard.errors import InputError
from overheard.speech.features import FrontEndConfig

Config = TypeVar("Config")

WIDEST_LAYER = 65536
MOST_LAYERS = 64


def config_to_json(config: Any) -> dict[str, Any]:
    """Every field of a configuration, nested ones too, as JSON values."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def config_from_json(config_class: type[Config], values: object, owner: str) -> Config:
    """A configuration from some of its fields; the others keep their defaults.

    Args:
        config_class: a frozen dataclass that checks its own values; types are checked here.
        values: by field name, as JSON or Python values; a nested configuration may be an object of either kind.
        owner: whose configuration it is, for the message.

    Raises:
        InputError: no object; a field that is unknown, missing, of the wrong type, or that the class refuses.
    """
    known = {field.name: field for field in fields(config_class)}  # pyright: ignore[reportArgumentType]
    if not isinstance(values, dict):
        raise InputError(owner, _shown(values), f"give an object with {', '.join(known)}")
    for name in values:
        if name not in known:
            raise InputError(owner, f"unknown setting {name!r}", f"choose from {', '.join(known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(owner, f"no {name}", f"give an object with {', '.join(known)}")
    hints = _hints(config_class)
    return config_class(**{name: _typed(name, value, hints[name]) for name, value in values.items()})


def config_from_file(config_class: type[Config], values: object, path: Path | str, what: str) -> Config:
    """As `config_from_json`, of values that a file held.

    Args:
        config_class: what they should be.
        values: of unknown origin.
        path: the file, for the message.
        what: its kind, such as "client update".

    Raises:
        InputError: names the file, and what is wrong in it.
    """
    try:
        return config_from_json(config_class, values, what)
    except InputError as error:
        found = f"not a {what} ({error.argument}: {error.found})"
        raise InputError(str(path), found, f"write the {what} again") from error
    except (TypeError, ValueError) as error:
        raise InputError(str(path), f"not a {what} ({error})", f"write the {what} again") from error


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    """Resolving them takes longer than all the rest, and there are files of many thousand records."""
    return get_type_hints(config_class)


def check_front_end(front_end: FrontEndConfig) -> None:
    """A front end whose features a layer can take."""
    check_whole("front_end", front_end.num_features, 1, WIDEST_LAYER)


def check_whole(name: str, value: int, least: int, most: int) -> None:
    """A whole number between two limits, both included."""
    if not least <= value <= most:
        raise InputError(name, value, f"give a whole number from {least} to {most}")


def check_positive(name: str, value: float) -> None:
    """A finite number above zero."""
    if not math.isfinite(value) or value <= 0:
        raise InputError(name, value, "give a number above 0")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of some names."""
    if value not in choices:
        raise InputError(name, repr(value), f"choose one of {', '.join(choices)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _typed(name: str, value: Any, hint: Any) -> Any:
    # Most values are plain and right, and a run's records are read through here by the hundred thousand.
    if type(value) is hint:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        check_choice(name, value, arguments)
        return value
    if origin is UnionType or origin is Union:
        if value is None and NoneType in arguments:
            return None
        return _typed(name, value, next(kind for kind in arguments if kind is not NoneType))
    if origin is tuple and arguments[1:] == (Ellipsis,):
        if not isinstance(value, list | tuple):
            raise InputError(name, _shown(value), "give a list")
        return tuple(_typed(name, inner, arguments[0]) for inner in value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise InputError(name, _shown(value), f"give a list of {len(arguments)}")
        return tuple(_typed(name, inner, kind) for inner, kind in zip(value, arguments, strict=True))
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else config_from_json(hint, value, name)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise InputError(name, _shown(value), "give a number that a float can hold") from error
    kind: type = origin or hint
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "an object"}[kind]
        raise InputError(name, _shown(value), f"give {wanted}")
    return value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no whole number of thousands of digits.
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
