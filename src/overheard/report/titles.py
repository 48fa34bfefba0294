"""`Titles`: what each model of a report is called, short enough for a legend and unlike all others beside it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {"deepspeech1": "DeepSpeech 1", "deepspeech2": "DeepSpeech 2", "transformer": "Transformer-CTC"}
SIZES = {"hidden_size": "units", "num_layers": "layers"}
"""Settings that tell models apart at a glance, and how they are said; a title always has them."""
LONGEST = 40
"""Characters of a title, but for what it takes to tell two models apart."""
LEGEND_LINE = 52
"""Characters that a figure of one column holds beside a marker."""
NOT_STATED = "model not stated"


@dataclass(frozen=True)
class Titles:
    """Titles of the models of one report.

    Attributes:
        by_model: from what records call a model to its title.
    """

    by_model: Mapping[str | None, str]

    @classmethod
    def of(cls, models: Iterable[str | None]) -> "Titles":
        """Titles of all models that a report names; the order matters only where nothing tells two apart."""
        distinct = list(dict.fromkeys(models))
        titles = {model: _title(model, ()) for model in distinct}
        for alike in _clashes(titles):
            needed = _differing(alike)
            titles |= {model: _title(model, needed) for model in alike}
        for alike in _clashes(titles):
            titles |= {model: f"{titles[model]} #{index}" for index, model in enumerate(alike, start=1)}
        return cls(titles)

    def __call__(self, model: str | None) -> str:
        """The title of one of them."""
        return self.by_model[model]

    def series(self, model: str | None, defence: str | None) -> str:
        """A model, and its defence where there is one; on two lines where it takes more than one of a legend."""
        if defence in (None, "none"):
            return self(model)
        between = ", " if len(self(model)) + len(defence) < LEGEND_LINE else ",\n"
        return f"{self(model)}{between}{defence}"

    def explained(self) -> list[tuple[str, str]]:
        """Titles that are not the whole name, each with what records call the model."""
        return [
            (title, model) for model, title in self.by_model.items() if model and title not in (model, NAMES.get(model))
        ]


def registry_name(model: str | None) -> str:
    """The name in a specification; of anything else the whole."""
    return _read(model)[0]


def whole_title(model: str | None) -> str:
    """The name and every setting that is not the default, however long that is."""
    name, settings = _read(model)
    said = ", ".join(_said(key, value) for key, value in settings.items())
    return f"{NAMES.get(name, name)} ({said})" if said else NAMES.get(name, name)


def _title(model: str | None, needed: Iterable[str]) -> str:
    """Name, sizes and `needed`, then what else there is room for; an ellipsis says that there is more."""
    name, settings = _read(model)
    if not settings:
        title = NAMES.get(name, name)
        # The end of a path says more than its beginning.
        return title if len(title) <= LONGEST or name in needed else f"…{title[1 - LONGEST :]}"
    shown = [
        *(key for key in SIZES if key in settings),
        *(key for key in settings if key in needed and key not in SIZES),
    ]
    for key in settings:
        if key not in shown and len(_together(name, settings, [*shown, key])) <= LONGEST:
            shown.append(key)
    return _together(name, settings, shown)


def _together(name: str, settings: Mapping[str, Any], shown: Iterable[str]) -> str:
    parts = [_said(key, settings[key]) for key in shown]
    return f"{NAMES.get(name, name)} ({', '.join(parts if len(parts) == len(settings) else [*parts, '…'])})"


def _clashes(titles: Mapping[str | None, str]) -> list[list[str | None]]:
    groups: dict[str, list[str | None]] = {}
    for model, title in titles.items():
        groups.setdefault(title, []).append(model)
    return [group for group in groups.values() if len(group) > 1]


def _differing(models: Iterable[str | None]) -> tuple[str, ...]:
    """Settings in which these differ; their names where they have no settings."""
    read = [_read(model) for model in models]
    keys = dict.fromkeys(key for _, settings in read for key in settings)
    values = {key: {json.dumps(settings.get(key)) for _, settings in read} for key in keys}
    return (*(key for key in keys if len(values[key]) > 1), *(name for name, settings in read if not settings))


def _read(model: str | None) -> tuple[str, dict[str, Any]]:
    """Name and changed settings, one level deep; of what is no specification the whole and none."""
    if not model:
        return NOT_STATED, {}
    if not model.startswith("{"):
        return model, {}
    try:
        found = json.loads(model)
        name, settings = str(found["name"]), dict(found.get("config", {}))
        if found.get("seed"):
            settings["seed"] = found["seed"]
        return name, dict(_flat(settings))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return model, {}


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}_")
        else:
            yield above + key, value


def _said(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text} {SIZES[key]}" if key in SIZES else f"{key.replace('_', ' ')} {text}"
