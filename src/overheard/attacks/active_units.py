"""Which units of the frames are exactly zero, decided by the bias that they share.

A rectified unit passes its gradient on if it is above zero and not saturated, so the bias of the convolution in front
of it shares, for each channel, the sum of the gradients of its active units. A unit whose value is lost in rounding may
be either; taking it for the wrong one leaves its gradient, a figure of its own, in that sum. Few units are in doubt and
most sums have none, so each sum that does not close is closed by the fewest changes that do it.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SURE = (25.0, 16.0, 10.0, 6.0)
"""Multiples of its rounding above which a unit is first taken for active. Rounding in float32 has long tails, and hides
next to nothing; noise has none, and hides many units."""

CLEARLY_BETTER = 0.5
"""Part of the open sums that a lower bound must go below: it leaves more to be closed by chance."""

DOUBT = (4.0, 1000.0)
"""Multiples of its rounding between which a unit's prediction may reverse the decision."""

FEW = 8
"""Negative values of a unit that say how large its rounding is."""

MOST_DOUBTFUL = (60, 30, 12)
"""Units nearest to that bound from which one, two or three changes are drawn, in each channel."""


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
    gradients: Float[Tensor, "C K T"],
    bias_update: Float[Tensor, " C"],
    clip: float,
) -> ActiveUnits:
    """Active units, such that the gradients of each channel's sum to the update of its bias.

    How far above its rounding a unit must be is what closes the sums best.

    Args:
        units: values behind the rectifier, rounding included.
        gradients: what reaches the bias through each unit if it is active.
        bias_update: of the convolution, float64.
        clip: where the rectifier saturates.
    """
    rounding = rounding_of(units)
    size = torch.minimum(units.abs(), (units - clip).abs()) / rounding
    best: ActiveUnits | None = None
    for sure in SURE:
        active = ((units > sure * rounding) & (units < clip - sure * rounding)).contiguous()
        found = _close_sums(active, gradients, bias_update, (size / sure).log().abs())
        if best is None or found.residual < CLEARLY_BETTER * best.residual:
            best = found
    assert best is not None
    return best


def confirm_active(
    active: Bool[Tensor, "C K T"],
    units: Float[Tensor, "C K T"],
    gradients: Float[Tensor, "C K T"],
    bias_update: Float[Tensor, " C"],
    predicted: Float[Tensor, "C K T"],
) -> ActiveUnits:
    """Decide units in doubt again, by what the features found predict for them, and by the sums once more.

    A unit that is off comes out as far below zero as units go; one that is on comes out at its own small value. What is
    clearly zero stays so, unless a sum asks for it: among so many zeros some are predicted near zero by chance.

    Args:
        active: as decided before.
        units: values behind the rectifier, rounding included.
        gradients: what reaches the bias through each unit if it is active.
        bias_update: of the convolution, float64.
        predicted: values in front of the rectifier, of features that are near the truth.
    """
    error = (predicted - units)[active].abs()
    bound = (5 * float(error.median()) if len(error) else 0.0) + torch.finfo(units.dtype).tiny
    size, off = units / rounding_of(units), (predicted - units).abs() / bound
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
    # Channels without a wrong unit are most, and show how well sums close.
    closed = float((open_sums.abs() / scale).median())
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


def rounding_of(units: Float[Tensor, "C K T"]) -> Float[Tensor, "C K T"]:
    """Standard deviation of each unit's rounding: a figure for each unit times one for each frame.

    Both are read off the zeros that rounding made negative, about half of what is zero. A gradient's rounding follows
    the strength of what it is of, that of a difference of weights does not, so neither is taken for granted.
    """
    below = torch.where(units < 0, -units, torch.nan)
    strength = units.square().mean(dim=2, keepdim=True).sqrt()
    strength = strength.clamp(min=1e-5 * float(strength.max()) + torch.finfo(units.dtype).tiny)
    own = below.nanmedian(dim=2, keepdim=True).values  # (C, K, 1)
    usual = float((own / strength).nanmedian().nan_to_num())
    # Units that are seldom zero are taken for the like of others of their channel.
    channel = below.flatten(1).nanmedian(dim=1).values.nan_to_num()[:, None, None]
    few = (units < 0).sum(dim=2, keepdim=True) < FEW
    size = torch.where(few, torch.maximum(usual * strength, channel), own)
    size = torch.maximum(size, torch.finfo(units.dtype).eps * strength)
    spread = (below / size).flatten(0, 1).nanmedian(dim=0).values.nan_to_num(1.0)
    return spread.clamp(min=torch.finfo(units.dtype).eps) * size / 0.6745


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
