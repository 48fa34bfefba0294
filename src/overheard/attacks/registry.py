"""Attacks by name, and the one way to run them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from overheard.attacks import hessian_free, matching, sequential, span, sparse_frames
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.rank import rank_scan
from overheard.errors import InputError
from overheard.federation.update import check_fits
from overheard.metering import metered
from overheard.recognition.configuration import config_from_json


@dataclass(frozen=True)
class Attack:
    """One row of the registry.

    Attributes:
        run: `(observation, config, *, generator) -> Reconstruction`, with another's reconstruction as `start` if it
            takes one.
        config: its settings' frozen dataclass.
        summary: what it does, in a line.
        in_auto: whether "auto" tries it; attacks that take minutes are asked for by name.
        takes_start: whether it can begin with what another attack brought back.
    """

    run: Callable[..., Reconstruction]
    config: type
    summary: str
    in_auto: bool = True
    takes_start: bool = False


ATTACKS = {
    "span": Attack(span.attack, span.SpanConfig, "closed form for layers that see overlapping windows of the input"),
    "sequential": Attack(
        sequential.attack, sequential.SequentialConfig, "past that: frame after frame out of the layer behind"
    ),
    "sparse_frames": Attack(
        sparse_frames.attack,
        sparse_frames.SparseFramesConfig,
        "DeepSpeech 2: sparse frames out of the first recurrence, then features out of the convolutions",
    ),
    "matching": Attack(
        matching.attack,
        matching.MatchingConfig,
        "gradient matching, for any model",
        in_auto=False,
        takes_start=True,
    ),
    "hessian_free": Attack(
        hessian_free.attack,
        hessian_free.HessianFreeConfig,
        "zeroth-order baseline of Dang et al.; transcript and length given",
        in_auto=False,
    ),
}

AUTO = "auto"
"""Every attack but the slow ones, in the registry's order, until one brings back what it does not doubt; where all
doubt, the last that brings back most and explains it."""

LARGEST_REST = 0.1
"""Residual, relative to what a layer was shown, from which on features do not explain it."""


def config_of(name: str, options: dict[str, Any]) -> Any:
    """An attack's settings; None for "auto", whose attacks have their defaults.

    Raises:
        InputError: no such attack or setting.
    """
    if name != AUTO and name not in ATTACKS:
        raise InputError("attack", repr(name), f"choose one of {', '.join([AUTO, *ATTACKS])}, ladder")
    if name == AUTO:
        if options:
            raise InputError("attack", "settings without an attack", f"name one of {', '.join(ATTACKS)}")
        return None
    return config_from_json(ATTACKS[name].config, options, f"settings of attack {name}")


def check_update(observation: Observation) -> None:
    """Refuse an update that does not fit the model.

    Raises:
        InputError: names the first difference.
    """
    shapes = {key: tuple(parameter.shape) for key, parameter in observation.model.named_parameters()}
    check_fits(observation.update, shapes, "update")


def run_attack(
    observation: Observation,
    name: str = AUTO,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    start: Reconstruction | None = None,
) -> Reconstruction:
    """Run one attack, or all in turn, with its time and memory measured.

    Args:
        observation: all that the attacker sees.
        name: of the attack, or "auto".
        options: settings of that attack; none with "auto".
        seed: of whatever it draws.
        start: where an attack that takes a start begins.

    Raises:
        InputError: no such attack or setting, or an update that does not fit the model.
    """
    check_update(observation)
    config_of(name, options or {})
    device = next(observation.model.parameters()).device
    tried: dict[str, str | None] = {}
    doubtful: Reconstruction | None = None
    with metered(device) as meter:
        for each in [key for key, row in ATTACKS.items() if row.in_auto] if name == AUTO else [name]:
            attack = ATTACKS[each]
            generator = torch.Generator(device).manual_seed(seed)
            config = config_of(each, options or {})
            given = {"start": start} if attack.takes_start else {}
            found = attack.run(observation, config, generator=generator, **given)
            tried[each] = found.reason
            if found.features and found.unique is not False:
                break
            if found.features and (doubtful is None or (_fits(found) and _amount(found) >= _amount(doubtful))):
                doubtful = found
        else:
            if doubtful is None:
                exposed = [row.layer for row in rank_scan(observation) if row.verdict == "span exposed"]
                reason = "; ".join(f"{key}: {why}" for key, why in tried.items()) if len(tried) > 1 else found.reason
                found = replace(found, reason=reason, diagnostics={**found.diagnostics, "exposed_layers": exposed})
            found = doubtful or found
    return replace(
        found,
        given=observation.given(),
        diagnostics={**found.diagnostics, "tried": tried},
        seconds=meter.seconds,
        peak_mb=meter.peak_mb,
    )


def _fits(found: Reconstruction) -> bool:
    """Whether features leave little of what the layer that told them was shown, where the attack says how much."""
    return max(found.diagnostics.get("residuals") or [0.0]) <= LARGEST_REST


def _amount(found: Reconstruction) -> tuple[int, int]:
    """Utterances and frames that came back."""
    return len(found.features), sum(map(len, found.features))
