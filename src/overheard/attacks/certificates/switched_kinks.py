"""Switch the rectifiers whose side rounding leaves open, to see how much an update depends on them.

Features that are right to a few units in the last place put some pre-activations on the other side of a kink than the
client had them: a unit that is off contributes nothing to the gradients before it, however near to zero it lies. Two
passes tell which units these are: where the values of the second may lie on either side of a kink for all that the
distance between the passes tells, its slope is set to the one that the first pass did not have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from overheard.attacks.gradient_matching.frozen_kinks import IN_PLACE, PIECEWISE_LINEAR, out_of_place

REACH = 3.0
"""How far from a kink a value counts as undecided, in root mean squares of the distance between the passes."""


class _Kinks(TorchFunctionMode):
    """Keeps the inputs of piecewise linear functions in the order of the calls, or switches slopes in that order."""

    def __init__(self, seen: list[Tensor], switching: bool) -> None:
        super().__init__()
        self._seen = seen
        self._first = iter(seen) if switching else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = args[0] if args else kwargs.get("input")
        if func not in PIECEWISE_LINEAR | IN_PLACE or not isinstance(values, Tensor) or not values.is_floating_point():
            return func(*args, **kwargs)
        if self._first is None:
            self._seen.append(values.detach().clone())
            return func(*args, **kwargs)
        in_place = func in IN_PLACE or bool(kwargs.get("inplace"))
        plain = out_of_place(func) if func in IN_PLACE else func
        rest = {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}
        before = values.clone() if in_place else values
        found = plain(before, *args[1:], **rest)
        change = _switches(lambda at: plain(at, *args[1:], **rest), next(self._first), before.detach())
        if change is not None:
            found = found + (before - before.detach()) * change
        return values.copy_(found) if in_place else found


def _switches(function: Any, first: Tensor, second: Tensor) -> Tensor | None:
    """What to add to the second pass's slopes so that undecided units have the slope they had not in the first."""
    distance = (first - second).double().square()
    size = torch.maximum(distance.mean(), distance.mean(dim=-1, keepdim=True)).sqrt()
    below, above = (_slope(function, first.double() + sign * REACH * size) for sign in (-1.0, 1.0))
    undecided = below != above
    if not bool(undecided.any()):
        return None
    other = torch.where(_slope(function, first.double()) == below, above, below)
    return torch.where(undecided, other - _slope(function, second.double()), 0.0).to(second.dtype)


def _slope(function: Any, values: Tensor) -> Tensor:
    with torch.enable_grad():
        at = values.requires_grad_()
        return torch.autograd.grad(function(at).sum(), at)[0]


@contextmanager
def watched_kinks() -> Iterator[list[Tensor]]:
    """Run the first pass in here; yields the inputs of piecewise linear functions, filled as it goes."""
    seen: list[Tensor] = []
    with _Kinks(seen, switching=False):
        yield seen


@contextmanager
def switched_kinks(seen: list[Tensor]) -> Iterator[None]:
    """Run the second pass in here; it must make the same calls in the same order."""
    with _Kinks(seen, switching=True):
        yield
