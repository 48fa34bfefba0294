"""Which units of the frames are exactly zero, decided by the bias that they share.

A rectified unit passes its gradient on if it is above zero and not saturated, so the bias of the convolution in front
of it shares, for each channel, the sum of the gradients of its active units. A unit whose value is lost in noise may be
either; taking it for the wrong one leaves its gradient, a figure of its own, in that sum. Few units are in doubt and
most sums have none, so each sum that does not close is closed by the fewest changes that do it.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SURE = (10.0, 7.0, 5.0)
"""Multiples of its noise above which a unit may first be taken for active: rounding in float32 has longer tails than
noise, which hides more units."""

DOUBT = (4.0, 1000.0)
"""Multiples of its noise between which a unit's prediction may reverse the decision."""

MOST_DOUBTFUL = (60, 30, 12)
"""Units nearest to that bound from which one, two or three changes are drawn, in each channel."""


QUIET = (0.2, 0.2533 / 0.6745)
"""Part of channels that are taken to have no wrong unit, and that quantile of |v| to the median, v standard normal."""


@dataclass(frozen=True)
class ActiveUnits:
    """Units through which gradients pass.

    Attributes:
        active: (C, K, T) by channel, frequency, frame.
        sure: channels whose sum closed as first decided. Where changes had to be looked for, others may fit by chance.
        changed: units whose first decision the sums reversed.
        residual: of the sums, relative.
    """

    active: Bool[Tensor, "C K T"]
    sure: Bool[Tensor, " C"]
    changed: int
    residual: float


def decide_active(
    units: Float[Tensor, "C K T"],
    noise: Float[Tensor, "C K T"],
    gradients: Float[Tensor, "C K T"],
    bias_update: Float[Tensor, " C"],
    clip: float,
) -> ActiveUnits:
    """Active units, such that the gradients of each channel's sum to the update of its bias.

    How far above its noise a unit must be is what leaves the sums least open.

    Args:
        units: values behind the rectifier, noise included.
        noise: standard deviation of each.
        gradients: what reaches the bias through each unit if it is active.
        bias_update: of the convolution, float64.
        clip: where the rectifier saturates.
    """
    size = torch.minimum(units.abs(), (units - clip).abs()) / noise

    def taken(sure: float) -> Bool[Tensor, "C K T"]:
        return (units > sure * noise) & (units < clip - sure * noise)

    def open_part(sure: float) -> float:
        return float((bias_update - (gradients * taken(sure)).sum((1, 2))).norm())

    sure = min(SURE, key=open_part)
    return _close_sums(taken(sure), gradients, bias_update, (size / sure).log().abs())


def confirm_active(
    active: Bool[Tensor, "C K T"],
    units: Float[Tensor, "C K T"],
    noise: Float[Tensor, "C K T"],
    gradients: Float[Tensor, "C K T"],
    bias_update: Float[Tensor, " C"],
    predicted: Float[Tensor, "C K T"],
) -> ActiveUnits:
    """Decide units in doubt again, by what the features found predict for them, and by the sums once more.

    A unit that is off comes out as far below zero as units go; one that is on comes out at its own small value. What is
    clearly zero stays so, unless a sum asks for it: among so many zeros some are predicted near zero by chance.

    Args:
        active: as decided before.
        units: values behind the rectifier, noise included.
        noise: standard deviation of each.
        gradients: what reaches the bias through each unit if it is active.
        bias_update: of the convolution, float64.
        predicted: values in front of the rectifier, of features that are near the truth.
    """
    error = (predicted - units)[active].abs()
    bound = (5 * float(error.median()) if len(error) else 0.0) + torch.finfo(units.dtype).tiny
    size, off = units / noise, (predicted - units).abs() / bound
    doubtful = (size > DOUBT[0]) & (size < DOUBT[1])
    confirmed = torch.where(doubtful, off < 1, active)
    candidate = (size > -DOUBT[0]) & (size < DOUBT[1]) & (doubtful | (off < 3))
    doubt = torch.where(candidate, off.clamp(min=1e-30).log().abs(), torch.inf)
    return _close_sums(confirmed, gradients, bias_update, doubt)


def _close_sums(
    active: Bool[Tensor, "C K T"],
    gradients: Float[Tensor, "C K T"],
    bias_update: Float[Tensor, " C"],
    doubt: Float[Tensor, "C K T"],
) -> ActiveUnits:
    """Change as few units as close the sums of all channels; those least in doubt last, infinite doubt never."""
    active = active.contiguous()
    open_sums = bias_update - (gradients * active).sum((1, 2))
    scale = (gradients.abs() * active).sum((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    # Channels without a wrong unit show how well sums close; where noise hides many units, few are without.
    closed = float((open_sums.abs() / scale).quantile(QUIET[0])) / QUIET[1]
    sure = open_sums.abs() <= 10 * closed * scale
    changed = 0
    for channel in (~sure).nonzero()[:, 0].tolist():
        places = _close(
            float(open_sums[channel]), float(5 * closed * scale[channel]), active[channel], gradients[channel],
            doubt[channel],
        )  # fmt: skip
        for place in places:
            flat = active[channel].view(-1)
            flat[place] = ~flat[place]
            changed += 1
    residual = bias_update - (gradients * active).sum((1, 2))
    return ActiveUnits(active, sure, changed, float(residual.norm() / bias_update.norm().clamp(min=1e-300)))


def _close(
    open_sum: float,
    tolerance: float,
    active: Bool[Tensor, "K T"],
    gradients: Float[Tensor, "K T"],
    doubt: Float[Tensor, "K T"],
) -> tuple[int, ...]:
    """The fewest doubtful units whose change closes a sum, as flat indices; those that close it best if none does."""
    changes = torch.where(active, -gradients, gradients).flatten()
    nearest = doubt.flatten().argsort()[: int(doubt.isfinite().sum())]
    best: tuple[float, tuple[int, ...]] = abs(open_sum), ()
    for count, most in enumerate(MOST_DOUBTFUL, start=1):
        few = nearest[:most]
        if len(few) < count:
            break
        sets = torch.tensor(list(combinations(range(len(few)), count)), device=few.device)
        left = (changes[few][sets].sum(dim=1) - open_sum).abs()
        at = int(left.argmin())
        # More changes fit by chance: each further one has to earn its place.
        if float(left[at]) < 0.1 * best[0]:
            best = float(left[at]), tuple(few[sets[at]].tolist())
        if best[0] <= tolerance:
            break
    return best[1]
