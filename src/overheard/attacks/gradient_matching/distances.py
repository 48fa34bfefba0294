"""How far a simulated update is from the observed one, and the derivative of that, both in closed form.

Gradient matching needs D(g, g*) and v = dD/dg at every step; v is the direction of the mixed second derivative that
follows (see `second_order`). Every distance is relative to the observed update, so that one learning rate and one
weight of a prior serve models of all sizes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from overheard.errors import InputError

DISTANCES = ("l2", "cosine", "per-tensor", "cosine+l2")
Distance: TypeAlias = Callable[[Sequence[Tensor]], tuple[float, list[Tensor]]]
"""Simulated tensors, in the observed ones' order -> D and dD/dg, one tensor for each."""


@dataclass(frozen=True)
class DistanceConfig:
    """What is compared.

    Attributes:
        kind: "l2": |g - g*|^2 / |g*|^2; "cosine": 1 - cos(g, g*), blind to the update's scale; "per-tensor": the mean
            of "l2" over the tensors, each relative to itself; "cosine+l2": the sum of the two.
        top_share: share of the observed entries that count, those of largest magnitude; the others are left out on
            both sides.
    """

    kind: str = "l2"
    top_share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in DISTANCES:
            raise InputError("distance", repr(self.kind), f"choose one of {', '.join(DISTANCES)}")
        if not 0.0 < self.top_share <= 1.0:
            raise InputError("top_share", self.top_share, "give a share above 0, at most 1")


def build_distance(config: DistanceConfig, observed: Sequence[Tensor]) -> Distance:
    """The distance from one observed update, whose norms and largest entries are found once.

    Raises:
        InputError: the observed tensors are all zero: nothing is near or far.
    """
    masks = _largest_entries(observed, config.top_share) if config.top_share < 1.0 else None
    target = _masked(observed, masks)
    squares = [_dot(each, each) for each in target]
    if sum(squares) == 0.0:
        raise InputError("update", "the tensors to match are all zero", "match other parameters")
    compare = _COMPARISONS[config.kind]

    def distance(simulated: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        value, slopes = compare(_masked(simulated, masks), target, squares)
        return value, _masked(slopes, masks)

    return distance


def _l2(simulated: list[Tensor], observed: list[Tensor], squares: list[float]) -> tuple[float, list[Tensor]]:
    total = sum(squares)
    errors = [g - target for g, target in zip(simulated, observed, strict=True)]
    value = sum(_dot(error, error) for error in errors) / total
    return value, [error.mul_(2.0 / total) for error in errors]


def _cosine(simulated: list[Tensor], observed: list[Tensor], squares: list[float]) -> tuple[float, list[Tensor]]:
    """1 - cos as half the squared distance of the unit vectors, which loses no digits where the two nearly agree."""
    length = math.sqrt(sum(_dot(g, g) for g in simulated))
    if length == 0.0:
        return 1.0, [torch.zeros_like(g) for g in simulated]
    scale = 1.0 / math.sqrt(sum(squares))
    errors = [g / length - target * scale for g, target in zip(simulated, observed, strict=True)]
    value = 0.5 * sum(_dot(error, error) for error in errors)
    # d(1 - cos)/dg = (u (1 - D) - u*) / |g| with unit vectors u and u*, and u - u* is at hand.
    slopes = [error.sub_(g, alpha=value / length).div_(length) for error, g in zip(errors, simulated, strict=True)]
    return value, slopes


def _per_tensor(simulated: list[Tensor], observed: list[Tensor], squares: list[float]) -> tuple[float, list[Tensor]]:
    # A tensor that the client's loss does not reach has a zero update: nothing to be relative to.
    weights = [1.0 / square if square > 0.0 else 0.0 for square in squares]
    count = sum(weight > 0.0 for weight in weights)
    errors = [g - target for g, target in zip(simulated, observed, strict=True)]
    value = sum(_dot(error, error) * weight for error, weight in zip(errors, weights, strict=True)) / count
    return value, [error.mul_(2.0 * weight / count) for error, weight in zip(errors, weights, strict=True)]


def _cosine_and_l2(simulated: list[Tensor], observed: list[Tensor], squares: list[float]) -> tuple[float, list[Tensor]]:
    angle, turning = _cosine(simulated, observed, squares)
    gap, closing = _l2(simulated, observed, squares)
    return angle + gap, [one.add_(other) for one, other in zip(turning, closing, strict=True)]


_COMPARISONS: dict[str, Callable[..., tuple[float, list[Tensor]]]] = dict(
    zip(DISTANCES, (_l2, _cosine, _per_tensor, _cosine_and_l2), strict=True)
)


def _largest_entries(observed: Sequence[Tensor], share: float) -> list[Bool[Tensor, "..."]]:
    sizes = torch.cat([each.abs().flatten() for each in observed])
    kept = max(1, round(share * len(sizes)))
    threshold = torch.kthvalue(sizes, len(sizes) - kept + 1).values
    return [each.abs() >= threshold for each in observed]


def _masked(tensors: Sequence[Tensor], masks: list[Tensor] | None) -> list[Tensor]:
    if masks is None:
        return list(tensors)
    return [each.where(mask, 0.0) for each, mask in zip(tensors, masks, strict=True)]


def _dot(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))
