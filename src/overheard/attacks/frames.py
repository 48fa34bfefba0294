"""Which sparse, non-negative frames span a subspace: the rows of H, given only the row space that they share.

The update of the layer that sees H (T, C) gives R (T, C), a basis of H's row space, so every frame is h = a R for some
a in R^T. Two facts make a alone recoverable. Frames are non-negative, so the rows of A, one for each frame, generate
a cone that the data fill, and the simplex of largest volume among those that fit is close to the true one:

    maximise  log |det A| - mean_c sum_t (A R)_tc - (1 / 2 eps) mean_c sum_t min((A R)_tc, 0)^2,   eps falling.

And frames are sparse, which pulls each row on to the frame nearby and certifies it (`sparse_rays`). Where frames differ
little from moment to moment, other simplices have more volume than the true one: volume then finds only some frames,
and not the same from each start. Others lie between those (`between_frames`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from overheard.attacks.between_frames import search_between
from overheard.attacks.sparse_rays import Cone, make_cone, new_from, sharpen, zeros_of

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
        rounds: searches by volume at most, each from a new start.
        generator: of starting points.
        known: coordinates of frames found before, of any scale.
        noise: norm of what the update's noise makes of a column of the basis.
    """
    cone = make_cone(basis, zero_share, noise)
    found = basis.new_zeros(0, len(basis)) if known is None else torch.nn.functional.normalize(known, dim=1)
    done = 0
    while len(found) < len(basis) and done < rounds:
        largest = _largest_volume(cone, _start(cone, generator))
        found = search_between(cone, new_from(cone, found, largest), generator)
        done += 1
    return FrameSet(found, zeros_of(cone, found), done)


def certify_frames(
    basis: Float[Tensor, "T C"], rows: Float[Tensor, "M T"], zero_share: float, noise: float = 0.0
) -> tuple[Float[Tensor, "M T"], Bool[Tensor, " M"]]:
    """Sharpen guesses of single frames and say which are certified."""
    rows, _, accepted = sharpen(make_cone(basis, zero_share, noise), torch.nn.functional.normalize(rows, dim=1))
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


def _start(cone: Cone, generator: torch.Generator) -> Float[Tensor, "T T"]:
    """Rows near the one whose units are all alike, spread at random."""
    size, count = cone.columns.shape
    middle = torch.linalg.lstsq(cone.columns.T, cone.columns.new_ones(count, 1)).solution[:, 0]
    mix = torch.randn(size, size, generator=generator, dtype=cone.columns.dtype, device=cone.columns.device)
    return middle + 0.3 * (count / size) ** 0.5 * torch.linalg.qr(mix).Q.T


def _largest_volume(cone: Cone, start: Float[Tensor, "T T"], iterations: int = 150) -> Float[Tensor, "T T"]:
    """Rows of the simplex of largest volume."""
    columns, shape = cone.columns, start.shape
    count = columns.shape[1]
    mean = columns.mean(dim=1)

    def objective(flat: np.ndarray, slack: float) -> tuple[float, np.ndarray]:
        rows = torch.from_numpy(flat).view(shape).to(columns)
        below = (rows @ columns).clamp(max=0.0)
        value = -torch.linalg.slogdet(rows)[1] + (rows @ mean).sum() + below.square().sum() / (2 * slack * count)
        gradient = mean - torch.linalg.inv(rows).T + below @ columns.T / (slack * count)
        return float(value), gradient.cpu().numpy().ravel()

    point = start.cpu().numpy().ravel()
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 10, "ftol": 1e-13, "gtol": 1e-7}
    for slack in SLACKS:
        point = minimize(objective, point, (slack,), method="L-BFGS-B", jac=True, options=options).x
    return torch.from_numpy(point).view(shape).to(columns)
