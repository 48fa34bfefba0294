"""Which sparse, non-negative frames span a subspace: the rows of H, given only the row space that they share.

The update of the layer that sees H (T, C) gives R (T, C), a basis of H's row space, so every frame is h = a R for some
a in R^T. Two facts make a alone recoverable. Frames are non-negative, so the rows of A, one for each frame, generate
a cone that the data fill, and the simplex of largest volume among those that fit is close to the true one:

    maximise  log |det A| - mean_c sum_t (A R)_tc - (1 / 2 eps) mean_c sum_t min((A R)_tc, 0)^2,   eps falling.

And frames are sparse: rectified units are exactly zero. A generic ray of that cone has T - 1 zeros, a true frame
hundreds more, so iteratively reweighted least squares pulls each row on to the frame nearby, and the count of zeros
certifies it. Rows that pass are kept; the search goes on in the complement of what they span.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

ZERO = 2e-3
"""A unit counts as zero below this part of the mean of the frame's largest tenth."""

NEGATIVE = 2e-2
"""A frame with a unit further below zero than this part is none."""

ABOVE_NOISE = 100.0
"""Multiples of its noise that a unit's strength must have to tell zeros from other values."""

SLACKS = (0.1, 0.03, 0.01, 0.003)
"""eps of the volume's penalty, in turn."""


@dataclass(frozen=True)
class FrameSet:
    """Frames found in a subspace.

    Attributes:
        coordinates: rows a of unit length; frame = a R.
        zeros: exact zeros of each, the certificate.
        rounds: restarts that were needed.
    """

    coordinates: Float[Tensor, "M T"]
    zeros: Int[Tensor, " M"]
    rounds: int


@dataclass(frozen=True)
class _Cone:
    """The subspace with its columns scaled to equal strength; units that never move are left out.

    Attributes:
        columns: (T, C'), each of root mean square 1 over T.
        required: zeros that certify a frame.
    """

    columns: Float[Tensor, "T C"]
    required: int


def find_frames(
    basis: Float[Tensor, "T C"],
    zero_share: float,
    rounds: int,
    generator: torch.Generator,
    known: Float[Tensor, "M T"] | None = None,
    noise: float = 0.0,
) -> FrameSet:
    """All frames that can be certified, in no order.

    Args:
        basis: orthonormal rows that span H's.
        zero_share: of the units, exact zeros that a frame must have.
        rounds: restarts at most.
        generator: of starting points.
        known: coordinates of frames found before, of any scale.
        noise: norm of what the update's noise makes of a column of the basis.
    """
    size = len(basis)
    cone = _cone(basis, zero_share, noise)
    found = basis.new_zeros(0, size) if known is None else torch.nn.functional.normalize(known, dim=1)
    done = 0
    while len(found) < size and done < rounds:
        start = _start(cone, found, generator)
        rows = torch.nn.functional.normalize(_largest_volume(cone, found, start), dim=1)
        rows, zeros, accepted = sharpen(cone.columns, rows, cone.required)
        found = _merge(found, rows[accepted][zeros[accepted].argsort(descending=True)])
        done += 1
    return FrameSet(found, _zeros(cone.columns, found), done)


def certify_frames(
    basis: Float[Tensor, "T C"], rows: Float[Tensor, "M T"], zero_share: float, noise: float = 0.0
) -> tuple[Float[Tensor, "M T"], Bool[Tensor, " M"]]:
    """Sharpen guesses of single frames and say which are certified."""
    cone = _cone(basis, zero_share, noise)
    rows, _, accepted = sharpen(cone.columns, torch.nn.functional.normalize(rows, dim=1), cone.required)
    return rows, accepted


def refit_frames(
    basis: Float[Tensor, "T C"], coordinates: Float[Tensor, "T T"], zeros: Bool[Tensor, "T C"]
) -> Float[Tensor, "T T"]:
    """Frames from their exact zeros: the direction that those units see least; strengths stay.

    Args:
        basis: orthonormal rows that span the frames.
        coordinates: of each frame, strength included.
        zeros: units of each that are zero.
    """
    strength = basis.norm(dim=0)
    columns = basis / strength.clamp(min=1e-5 * float(strength.max()))
    refitted = []
    for row, silent in zip(coordinates, zeros, strict=True):
        seen = columns[:, silent]
        least = torch.linalg.eigh(seen @ seen.T).eigenvectors[:, 0]
        refitted.append(least * (least @ row))
    return torch.stack(refitted)


def _cone(basis: Float[Tensor, "T C"], zero_share: float, noise: float) -> _Cone:
    strength = basis.norm(dim=0)
    kept = strength > max(1e-5 * float(strength.max()), ABOVE_NOISE * noise)
    columns = basis[:, kept] / strength[kept]
    # Units that are zero in every frame, or noise, certify nothing, but they are part of the share.
    never = basis.shape[1] - columns.shape[1]
    return _Cone(columns.contiguous(), int(max(zero_share * basis.shape[1] - never, len(basis) + 20)))


def _start(cone: _Cone, found: Float[Tensor, "M T"], generator: torch.Generator) -> Float[Tensor, "K T"]:
    """Rows near the one whose units are all alike, spread at random over the complement of what was found."""
    size, count = cone.columns.shape
    free = size - len(found)
    middle = torch.linalg.lstsq(cone.columns.T, cone.columns.new_ones(count, 1)).solution[:, 0]
    mix = torch.randn(free, free, generator=generator, dtype=cone.columns.dtype, device=cone.columns.device)
    spread = (_complement(found) @ torch.linalg.qr(mix).Q).T
    return middle + 0.3 * (count / size) ** 0.5 * spread


def _complement(rows: Float[Tensor, "M T"]) -> Float[Tensor, "T K"]:
    """Orthonormal columns that no row reaches."""
    if len(rows) == 0:
        return torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.linalg.qr(rows.T, mode="complete").Q[:, len(rows) :]


def _largest_volume(
    cone: _Cone, found: Float[Tensor, "M T"], start: Float[Tensor, "K T"], iterations: int = 150
) -> Float[Tensor, "K T"]:
    """Rows of the simplex of largest volume; those found before stay, and enter through their complement alone."""
    columns, shape = cone.columns, start.shape
    complement = _complement(found)
    count = columns.shape[1]
    mean = columns.mean(dim=1)

    def objective(flat: np.ndarray, slack: float) -> tuple[float, np.ndarray]:
        rows = torch.from_numpy(flat).view(shape).to(columns)
        below = (rows @ columns).clamp(max=0.0)
        inner = rows @ complement
        value = -torch.linalg.slogdet(inner)[1] + (rows @ mean).sum() + below.square().sum() / (2 * slack * count)
        gradient = mean - (complement @ torch.linalg.inv(inner)).T + below @ columns.T / (slack * count)
        return float(value), gradient.cpu().numpy().ravel()

    point = start.cpu().numpy().ravel()
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 10, "ftol": 1e-13, "gtol": 1e-7}
    for slack in SLACKS:
        point = minimize(objective, point, (slack,), method="L-BFGS-B", jac=True, options=options).x
    return torch.from_numpy(point).view(shape).to(columns)


def sharpen(
    columns: Float[Tensor, "T C"], rows: Float[Tensor, "M T"], required: int, steps: int = 12, together: int = 16
) -> tuple[Float[Tensor, "M T"], Int[Tensor, " M"], Bool[Tensor, " M"]]:
    """Pull rows on to sparse frames: least a R diag(1 / (h^2 + delta^2)) R' a' with |a| = 1, delta falling.

    Args:
        columns: the subspace, scaled.
        rows: starts.
        required: zeros that certify.
        steps: of reweighting, each halving delta from 3e-2.
        together: rows in one batch of factorisations.

    Returns:
        Rows of unit length, their zeros, and which are certified.
    """
    parts = []
    for some in rows.split(together):
        delta = 3e-2
        for _ in range(steps):
            units, some = _scaled(columns, some)
            weights = 1.0 / (units.square() + delta**2)
            weights = torch.where(units < 0, 4.0 * weights, weights)
            gram = (columns * weights[:, None]) @ columns.T  # (m, T, T)
            gram.diagonal(dim1=1, dim2=2).mul_(1 + 1e-13)
            factor = torch.linalg.cholesky_ex(gram)[0]
            for _ in range(3):
                some = torch.cholesky_solve(some[..., None], factor)[..., 0]
                some = torch.nn.functional.normalize(some, dim=1)
            delta = max(delta / 2, 1e-4)
        parts.append(torch.nn.functional.normalize(_scaled(columns, some)[1], dim=1))
    sharp = torch.cat(parts) if parts else rows
    zeros = _zeros(columns, sharp)
    lowest = _scaled(columns, sharp)[0].amin(dim=1)
    return sharp, zeros, (zeros >= required) & (lowest > -NEGATIVE)


def _scaled(columns: Float[Tensor, "T C"], rows: Float[Tensor, "M T"]) -> tuple[Tensor, Tensor]:
    """Units of each row and the row itself, with the largest tenth of the units at 1 in the mean, sum positive."""
    units = rows @ columns
    scale = units.abs().topk(max(1, columns.shape[1] // 10), dim=1).values.mean(dim=1, keepdim=True)
    scale = torch.where(units.sum(dim=1, keepdim=True) < 0, -scale, scale)
    return units / scale, rows / scale


def _zeros(columns: Float[Tensor, "T C"], rows: Float[Tensor, "M T"]) -> Int[Tensor, " M"]:
    return (_scaled(columns, rows)[0].abs() < ZERO).sum(dim=1)


def _merge(found: Float[Tensor, "M T"], rows: Float[Tensor, "K T"]) -> Float[Tensor, "_ T"]:
    """Those rows that differ from all before them, the sparsest first, with the ones found earlier."""
    for row in rows:
        if not bool((found @ row > 1 - 1e-6).any()):
            found = torch.cat([found, row[None]])
    return found
