"""Flower's strategies by name, and what of their state a run must keep to go on."""

import inspect
from typing import Any

import numpy as np
import torch
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from overheard.errors import InputError
from overheard.federation.defences.registry import parse_named
from overheard.federation.messages import WEIGHT

STRATEGIES: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        flower.FedAvg,
        flower.FedProx,
        flower.FedAvgM,
        flower.FedAdagrad,
        flower.FedAdam,
        flower.FedYogi,
        flower.QFedAvg,
        flower.FedMedian,
        flower.FedTrimmedAvg,
        flower.Krum,
        flower.MultiKrum,
        flower.Bulyan,
    )
}
COMPARING = ("FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "QFedAvg")
"""They compare the clients' updates or losses, so somebody has to see these one by one."""
OURS = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
"""The cohort is drawn before a strategy sees it, and measured by the server."""
MOMENTS = ("m_t", "v_t", "momentum_vector")


def build_strategy(text: str) -> Strategy:
    """A strategy from NAME or NAME:KEY=VALUE,KEY=VALUE: "FedAdam:eta=0.01".

    Raises:
        InputError: an unknown name or setting, or a value that Flower refuses.
    """
    name, values = parse_named(text, "strategy")
    if name not in STRATEGIES:
        raise InputError("strategy", repr(name), f"choose from {', '.join(STRATEGIES)}")
    known = [each for each in inspect.signature(STRATEGIES[name]).parameters if not _is_ours(each)]
    for key in values:
        if key not in known:
            raise InputError(
                "strategy", f"unknown setting {key!r} of {name}", f"choose from {', '.join(known) or 'none'}"
            )
    try:
        return STRATEGIES[name](**OURS, **values, weighted_by_key=WEIGHT)
    except (ValueError, TypeError) as error:
        raise InputError("strategy", f"{text} ({error})", "change that setting") from error


def strategy_state(strategy: Strategy) -> dict[str, Tensor]:
    """Moments of the server's optimiser as named tensors."""
    state: dict[str, Tensor] = {}
    for moment in MOMENTS:
        values = getattr(strategy, moment, None)
        entries = values.items() if isinstance(values, dict) else enumerate(values or [])
        for key, value in entries:
            state[f"{moment}.{key}"] = torch.from_numpy(np.array(value))
    return state


def load_strategy_state(strategy: Strategy, state: dict[str, Tensor]) -> None:
    """Put back what `strategy_state` gave."""
    for moment in MOMENTS:
        prefix = f"{moment}."
        values = {name.removeprefix(prefix): each.numpy() for name, each in state.items() if name.startswith(prefix)}
        if not values:
            continue
        listed = moment == "momentum_vector"
        setattr(strategy, moment, [values[str(index)] for index in range(len(values))] if listed else values)


def _is_ours(setting: str) -> bool:
    inner = setting.endswith(("_key", "_fn", "_nodes", "_rule")) and "malicious" not in setting
    return setting in OURS or inner
