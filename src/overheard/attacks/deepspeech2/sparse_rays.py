"""Which directions of a subspace are sparse frames: pulled on to the ray nearby, and certified by their zeros.

Every frame is h = a R for a known basis R, nowhere negative, and exactly zero in hundreds of units. A generic ray of
the cone {a : a R >= 0} has T - 1 zeros, so iteratively reweighted least squares pulls a guess on to the frame nearby,
and the count of zeros says that it is one, or a mixture of frames that share as many.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ZERO = 2e-3
"""A unit counts as zero below this part of the mean of the frame's largest tenth."""

NEGATIVE = 2e-2
"""A frame with a unit further below zero than this part is none."""

BELOW = 100.0
"""How much more a unit below zero weighs than one as far above: frames are nowhere negative."""

UNBIASED = 1e-3
"""delta from which on both weigh alike: the rest is rounding, whose size later steps read off units below zero."""

ROUGH, FINE = tuple(0.1 / 2**step for step in range(6)), (1.6e-3, 8e-4, 4e-4, 2e-4, 1e-4, 1e-4, 1e-4)
"""delta of the steps that find the ray near a guess, and of those that settle a guess that is off by little."""

ABOVE_NOISE = 100.0
"""Multiples of its noise that a unit's strength must have to tell zeros from other values."""

SAME = 1e-6
"""Frames whose cosine differs from one by less are one frame."""

NEAR = 0.05
"""Of a guess that is off by little, the part that settling may change at most."""


@dataclass(frozen=True)
class Cone:
    """The subspace with its columns scaled to equal strength; units that never move are left out.

    Attributes:
        columns: (T, C'), each of root mean square 1 over T.
        required: zeros that certify a frame.
        noise: of a unit of a frame of unit length.
    """

    columns: Float[Tensor, "T C"]
    required: int
    noise: float


def make_cone(basis: Float[Tensor, "T C"], zero_share: float, noise: float) -> Cone:
    """The cone of frames that a basis spans.

    Args:
        basis: orthonormal rows.
        zero_share: of the units, exact zeros that a frame must have.
        noise: norm of what the update's noise makes of a column of the basis.
    """
    strength = basis.norm(dim=0)
    kept = strength > max(1e-5 * float(strength.max()), ABOVE_NOISE * noise)
    columns = basis[:, kept] / strength[kept]
    # Units that are zero in every frame, or noise, certify nothing, but they are part of the share.
    never = basis.shape[1] - columns.shape[1]
    required = int(max(zero_share * basis.shape[1] - never, len(basis) + 20))
    return Cone(columns.contiguous(), required, noise / len(basis) ** 0.5)


def part_of(cone: Cone, rows: Float[Tensor, "N T"]) -> Cone:
    """The frames of a cone that orthonormal rows span."""
    columns = rows @ cone.columns
    strength = columns.norm(dim=0)
    kept = strength > ZERO * float(strength.max())
    required = max(cone.required - int((~kept).sum()), len(rows) + 20)
    return Cone(columns[:, kept] / strength[kept], required, cone.noise)


def sharpen(
    cone: Cone, rows: Float[Tensor, "M T"]
) -> tuple[Float[Tensor, "M T"], Int[Tensor, " M"], Bool[Tensor, " M"]]:
    """Pull rows on to sparse frames: least a R diag(1 / (h^2 + delta^2)) R' a' with |a| = 1, delta falling.

    Args:
        cone: of frames.
        rows: starts.

    Returns:
        Rows of unit length, their zeros, and which are certified.
    """
    sharp = _reweighted(cone.columns, rows, (*ROUGH, *FINE))
    zeros = zeros_of(cone, sharp)
    lowest = _scaled(cone.columns, sharp)[0].amin(dim=1)
    return sharp, zeros, (zeros >= cone.required) & (lowest > -NEGATIVE)


def settle(cone: Cone, row: Float[Tensor, " T"]) -> tuple[Float[Tensor, " T"], bool, float]:
    """The frame at a guess that is off by little, of unit length; whether zeros certify it; and how far it moved."""
    unit = torch.nn.functional.normalize(row, dim=0)
    sharp = _reweighted(cone.columns, unit[None], FINE)
    moved = float((sharp[0] - unit).norm())
    return sharp[0], int(zeros_of(cone, sharp)[0]) >= cone.required and moved < NEAR, moved


def _reweighted(
    columns: Float[Tensor, "T C"], rows: Float[Tensor, "M T"], deltas: tuple[float, ...], together: int = 16
) -> Float[Tensor, "M T"]:
    """One step of inverse iteration for each delta, in the columns' precision; rows of unit length, sum positive."""
    parts, ridge = [], 10 * torch.finfo(columns.dtype).eps
    for some in rows.split(together):
        for delta in deltas:
            units, some = _scaled(columns, some)
            weights = 1.0 / (units.square() + delta**2)
            if delta > UNBIASED:
                weights = torch.where(units < 0, BELOW * weights, weights)
            gram = (columns * weights[:, None]) @ columns.T  # (m, T, T)
            gram.diagonal(dim1=1, dim2=2).mul_(1 + ridge)
            factor = torch.linalg.cholesky_ex(gram)[0]
            some = torch.nn.functional.normalize(torch.cholesky_solve(some[..., None], factor)[..., 0], dim=1)
        parts.append(torch.nn.functional.normalize(_scaled(columns, some)[1], dim=1))
    return torch.cat(parts) if parts else rows


def merge(found: Float[Tensor, "M T"], rows: Float[Tensor, "K T"]) -> Float[Tensor, "_ T"]:
    """Frames found, and those rows that differ from all before them."""
    for row in rows:
        if not bool((found @ row > 1 - SAME).any()):
            found = torch.cat([found, row[None]])
    return found


def zeros_of(cone: Cone, rows: Float[Tensor, "M T"]) -> Int[Tensor, " M"]:
    """Units of each row that are zero."""
    return (_scaled(cone.columns, rows)[0].abs() < ZERO).sum(dim=1)


def _scaled(columns: Float[Tensor, "T C"], rows: Float[Tensor, "M T"]) -> tuple[Tensor, Tensor]:
    """Units of each row and the row itself, with the largest tenth of the units at 1 in the mean, sum positive."""
    units = rows @ columns
    scale = units.abs().topk(max(1, columns.shape[1] // 10), dim=1).values.mean(dim=1, keepdim=True)
    scale = torch.where(units.sum(dim=1, keepdim=True) < 0, -scale, scale)
    return units / scale, rows / scale
