"""The optimisers of gradient matching, and what a checkpoint keeps of one: numbers, tensors and lists of tensors."""

import math
import reprlib
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from overheard.errors import InputError

OptimiserState: TypeAlias = dict[str, Any]
"""Torch's own state of the one tensor that is optimised: a float, a tensor or a list of tensors under each name."""

Take: TypeAlias = Callable[[str, tuple[int, ...]], Tensor]
"""Name and shape -> the tensor of a checkpoint, checked."""

_ADAM = {"step": "count", "exp_avg": "block", "exp_avg_sq": "block"}
_STATES: dict[str, dict[str, str]] = {
    "signed-adam": _ADAM,
    "adam": _ADAM,
    "lbfgs": {
        "func_evals": "whole", "n_iter": "whole", "t": "number", "prev_loss": "number", "H_diag": "number",
        "d": "flat", "prev_flat_grad": "flat", "old_dirs": "flats", "old_stps": "flats", "ro": "numbers",
    },
    "sgd": {"momentum_buffer": "block"},
}  # fmt: skip
"""What each keeps: "block", a tensor of the optimised one's shape; "flat", of one dimension and as many entries;
"number" and "count" (from 1 up), a tensor without dimensions or a plain one; "whole", a plain one; lists of these."""

OPTIMISERS = tuple(_STATES)

LONGEST_LIST = 100
"""Of L-BFGS, torch's default."""

LARGEST = 10**12
"""Of whatever a checkpoint counts."""


def build_optimiser(kind: str, block: Tensor, rate: float) -> torch.optim.Optimizer:
    """A fresh optimiser of one tensor."""
    if kind == "lbfgs":
        return torch.optim.LBFGS([block], lr=rate, max_iter=4, line_search_fn="strong_wolfe")
    if kind == "sgd":
        return torch.optim.SGD([block], lr=rate, momentum=0.9)
    return torch.optim.Adam([block], lr=rate, eps=1e-12)


def state_of(kind: str, optimiser: torch.optim.Optimizer) -> OptimiserState | None:
    """All that a fresh optimiser lacks to go on alike; None where it has not moved yet."""
    state = optimiser.state_dict()["state"].get(0, {})
    # L-BFGS at a point without slope has counted its evaluations alone; what it keeps beside these names is scratch.
    if not state.keys() >= _STATES[kind].keys():
        return None
    return {name: state[name] for name in _STATES[kind]}


def restore(optimiser: torch.optim.Optimizer, state: OptimiserState) -> None:
    """Make a fresh optimiser go on where another stood."""
    optimiser.load_state_dict(optimiser.state_dict() | {"state": {0: state}})


def pack_state(state: OptimiserState) -> tuple[dict[str, float | int], dict[str, Tensor]]:
    """Numbers by name, the lengths of lists among them; and tensors by name, those of a list with their index."""
    numbers: dict[str, float | int] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, list):
            numbers[name] = len(value)
            tensors |= {f"{name}.{index}": each for index, each in enumerate(value)}
        else:
            numbers[name] = value
    return numbers, tensors


def unpack_state(
    kind: str, block: tuple[int, ...], numbers: dict[str, Any], names: set[str], take: Take
) -> OptimiserState:
    """`pack_state` undone, of numbers and tensors of unknown origin.

    Args:
        kind: of the optimiser.
        block: shape of what it optimises.
        numbers: by name.
        names: of the tensors there are.
        take: hands one of them over.

    Raises:
        InputError: something is missing, unknown, or not what this optimiser keeps.
    """
    forms, flat = _STATES[kind], (math.prod(block),)
    unknown = numbers.keys() - forms.keys()
    if unknown:
        raise InputError("optimiser", f"{min(unknown)!r}", f"give {', '.join(forms)}")
    state: OptimiserState = {}
    for name, form in forms.items():
        if form in ("flats", "numbers"):
            shape = flat if form == "flats" else ()
            count = range(int(_number(name, numbers.get(name), LONGEST_LIST)))
            state[name] = [take(f"{name}.{index}", shape) for index in count]
        elif form in ("block", "flat"):
            state[name] = take(name, block if form == "block" else flat)
        elif form != "whole" and name in names:
            state[name] = take(name, ())
        else:
            state[name] = _number(name, numbers.get(name), None if form == "number" else LARGEST)
    if kind == "lbfgs" and len({len(state[name]) for name in ("old_dirs", "old_stps", "ro")}) > 1:
        raise InputError("optimiser", "lists of unequal length", "keep old_dirs, old_stps and ro together")
    for name, form in forms.items():
        if form == "count" and not float(state[name]) >= 1.0:
            raise InputError(name, float(state[name]), "give a number from 1 up")
    return state


def _number(name: str, value: Any, largest: int | None) -> float | int:
    """A whole number from 0 to the largest; any number without one."""
    if largest is None and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return value
    if largest is not None and type(value) is int and 0 <= value <= largest:
        return value
    raise InputError(name, reprlib.repr(value), "give a number")
