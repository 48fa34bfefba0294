"""Which sparse, non-negative frames span a subspace: the rows of H, given only the row space that they share.

A basis R of it is known, so every frame is h = a R for some a. Two facts make a alone recoverable. Frames are
non-negative, so the rows of A, one for each frame, generate a cone that the data fill, and the simplex of largest
volume among those that fit is close to the true one:

    maximise  log |det A| - mean_c sum_t (A R)_tc - (1 / 2 eps) mean_c sum_t min((A R)_tc, 0)^2,   eps falling.

And frames are sparse, which pulls each row on to the frame nearby and certifies it (`sparse_rays`). The first frames of
a few utterances are told apart so. Of all frames of speech volume finds most with random weights, but with trained ones
other simplices have more of it than the true one.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from overheard.attacks.deepspeech2.sparse_rays import Cone, merge, sharpen

SLACKS = (0.1, 0.03, 0.01, 0.003)
"""eps of the volume's penalty, in turn."""


def find_frames(cone: Cone, generator: torch.Generator, rounds: int = 4) -> Float[Tensor, "M T"]:
    """All frames that can be certified, of unit length, in no order.

    Args:
        cone: of frames.
        generator: of starting points.
        rounds: searches by volume at most, each from a new start.
    """
    found = cone.columns.new_zeros(0, len(cone.columns))
    for _ in range(rounds):
        rows, zeros, certified = sharpen(cone, _largest_volume(cone, _start(cone, generator)))
        found = merge(found, rows[certified][zeros[certified].argsort(descending=True)])
        if len(found) >= len(cone.columns):
            break
    return found


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
