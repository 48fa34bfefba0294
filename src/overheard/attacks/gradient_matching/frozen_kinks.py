"""Freeze the kinks of any model: record on which side of each kink every value lies, and keep it there afterwards.

A rectifier's derivative jumps, so the finite difference of a gradient across a jump is wrong by the jump divided by
the step: the smaller the step, the worse. On the pattern of one base pass the model is smooth. This mode watches the
calls of torch's functions, whoever makes them (a module, `functional`, a method, an operator), and replaces

    piecewise linear functions (ReLU, clip, Hardtanh, abs ...)  by their tangent at the base pass's input
    choices (max-pool, maximum, max, sort ...)                  by the same choice
    comparisons, sign, rounding                                 by their outcome

A kernel that rectifies within (torch's `nn.RNN(nonlinearity="relu")`) is one call and cannot be watched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PIECEWISE_LINEAR_NAMES = (
    "relu", "relu6", "hardtanh", "leaky_relu", "threshold", "hardshrink", "softshrink", "hardsigmoid", "clamp", "clip",
    "clamp_min", "clamp_max", "abs", "absolute",
)  # fmt: skip
_STEP_NAMES = (
    "gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "sign", "sgn", "round", "floor", "ceil",
    "trunc", "fix", "argmax", "argmin", "argsort", "__gt__", "__ge__", "__lt__", "__le__",
)  # fmt: skip
_POOL_NAMES = tuple(f"{kind}max_pool{dims}d{asked}" for kind in ("", "adaptive_") for dims in (1, 2, 3)
                    for asked in ("", "_with_indices"))  # fmt: skip


def _named(*names: str) -> set[Any]:
    """The functions of these names, as torch's, `functional`'s and as methods."""
    found = {getattr(place, name, None) for place in (torch, F, Tensor) for name in names}
    return found - {None}


PIECEWISE_LINEAR = _named(*_PIECEWISE_LINEAR_NAMES)
IN_PLACE = _named(*(f"{name}_" for name in _PIECEWISE_LINEAR_NAMES))
_STEPS = _named(*_STEP_NAMES)
_POOLS = _named(*_POOL_NAMES)
_PAIRS = {function: name for name in ("maximum", "minimum", "fmax", "fmin") for function in _named(name)}
_ALONG = {
    function: name for name in ("max", "min", "amax", "amin", "sort", "topk", "median") for function in _named(name)
}


class _Kinks(TorchFunctionMode):
    """Records patterns in the order of the calls, or replays them in that order."""

    def __init__(self, patterns: list[Any], replaying: bool) -> None:
        super().__init__()
        self._patterns = patterns
        self._next = iter(patterns) if replaying else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = args[0] if args else kwargs.get("input")
        if not isinstance(values, Tensor):
            return func(*args, **kwargs)
        if func in _STEPS:
            return self._keep(lambda: func(*args, **kwargs))
        if not values.is_floating_point():
            return func(*args, **kwargs)
        if func in IN_PLACE or (func in PIECEWISE_LINEAR and kwargs.get("inplace")):
            return values.copy_(self._tangent(out_of_place(func), args, kwargs))
        if func in PIECEWISE_LINEAR:
            return self._tangent(func, args, kwargs)
        if func in _POOLS:
            return self._pool(func, values, args, kwargs)
        if func in _PAIRS:
            return self._pair(_PAIRS[func], values, args, kwargs)
        if func in _ALONG:
            return self._along(func, _ALONG[func], values, args, kwargs)
        if func in (F.prelu, Tensor.prelu):
            return self._prelu(values, *args[1:], **{key: each for key, each in kwargs.items() if key != "input"})
        if func is F.hardswish:
            product = values * self._tangent(F.hardsigmoid, (values,), {})
            return values.copy_(product) if kwargs.get("inplace") else product
        return func(*args, **kwargs)

    def _keep(self, compute: Callable[[], Any]) -> Any:
        """What the base pass computed."""
        if self._next is not None:
            return next(self._next)
        self._patterns.append(compute())
        return self._patterns[-1]

    def _tangent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        values = args[0] if args else kwargs["input"]
        rest = {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}

        def at_base() -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                base = values.detach().clone().requires_grad_()
                result = func(base, *args[1:], **rest)
                (slope,) = torch.autograd.grad(result.sum(), base)
            # The tangent as slope * x + offset; the offset is 0 or a clip's limit, exactly up to rounding.
            return slope, result.detach() - slope * base.detach()

        slope, offset = self._keep(at_base)
        return torch.addcmul(offset, slope, values)

    def _prelu(self, values: Tensor, weight: Tensor) -> Tensor:
        """No tangent at the base: its slope is itself a parameter."""
        slopes = weight.view(1, -1, *[1] * (values.ndim - 2)) if values.ndim > 1 else weight
        return torch.where(self._keep(lambda: values > 0), values, slopes * values)

    def _pool(self, func: Any, values: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.__name__.removesuffix("_with_indices")
        asked = func.__name__ != name or kwargs.get("return_indices", False)
        plain = {key: value for key, value in kwargs.items() if key not in ("input", "return_indices")}
        chosen = self._keep(lambda: getattr(F, name)(values.detach(), *args[1:], **plain, return_indices=True)[1])
        spatial = int(name[-2])
        pooled = values.flatten(-spatial).gather(-1, chosen.flatten(-spatial)).view_as(chosen)
        return (pooled, chosen) if asked else pooled

    def _pair(self, name: str, values: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        other = args[1] if len(args) > 1 else kwargs["other"]
        first = self._keep(lambda: values >= other if name in ("maximum", "fmax") else values <= other)
        return torch.where(first, values, other)

    def _along(self, func: Any, name: str, values: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1 and isinstance(args[1], Tensor):
            return self._pair({"max": "maximum", "min": "minimum"}[name], values, args, kwargs)
        plain = {key: value for key, value in kwargs.items() if key != "input"}
        if name in ("amax", "amin"):
            first = self._keep(lambda: values == func(values, *args[1:], **{**plain, "keepdim": True}))
            dims = plain.get("dim", args[1] if len(args) > 1 else ())
            share = first / first.sum(dims, keepdim=True)
            return (values * share).sum(dims, keepdim=plain.get("keepdim", False))
        along_one = plain.get("dim") is not None or len(args) > 1 or name in ("sort", "topk")
        if not along_one:
            place = self._keep(lambda: (values == func(values)).flatten().int().argmax())
            return values.flatten()[place]
        result = func(values, *args[1:], **plain)
        chosen = self._keep(lambda: result.indices)
        dim = plain.get("dim")
        if dim is None:
            dim = args[1] if len(args) > 1 and name != "topk" else args[2] if len(args) > 2 else -1
        whole = chosen if chosen.ndim == values.ndim else chosen.unsqueeze(dim)
        picked = values.gather(dim, whole)
        return type(result)((picked if whole is chosen else picked.squeeze(dim), chosen))


def out_of_place(func: Any) -> Any:
    name = func.__name__
    return getattr(torch, name.removesuffix("_"), None) or getattr(F, name.removesuffix("_"))


@contextmanager
def recorded_kinks() -> Iterator[list[Any]]:
    """Run the base pass in here; yields the patterns, filled as it goes."""
    patterns: list[Any] = []
    with _Kinks(patterns, replaying=False):
        yield patterns


@contextmanager
def frozen_kinks(patterns: list[Any]) -> Iterator[None]:
    """Run a pass with the patterns of the base pass; it must make the same calls in the same order."""
    with _Kinks(patterns, replaying=True):
        yield
