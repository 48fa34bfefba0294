"""How estimated occupancies err, symbol by symbol, and the map that makes those errors independent and of size one.

Three things make an estimate of gamma_t differ from that of the right text:
- rounding of the update, each symbol's row by its own size, carried into frames by least squares;
- float32 messages of CTC: alpha and beta are logarithms as large as the loss, and so is the spacing of such numbers;
- the same rounding in the likelihood that divides them. It makes sum_k gamma_t(k) = 1 + d_t, which the gradient of
  log-softmax turns into an error along p_t - gamma_t, the same d_t for all symbols of a frame.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.output_layer import FLOAT32, FrameEvidence

ROUNDING = 2.0
"""Times the expected rounding that errors are taken to have."""

LIKELIHOOD = 3.0
"""The same of errors that a frame's symbols share."""

NEGATIVE = 2.5
"""Times the expected error by which a frame's lowest occupancy may be below zero; beyond, its errors count larger."""

LEAST = 1e-6
"""Standard deviation that no error is taken to be below."""


def unit_noise(evidence: FrameEvidence, symbols: list[int], floor: float) -> Float[Tensor, "T K K"]:
    """Triangular maps of occupancies of some symbols, one for each frame, that make their errors independent and of
    standard deviation 1 at most.

    Args:
        evidence: of the output layer.
        symbols: K of them.
        floor: standard deviation of a further error, for what is not to be told apart.
    """
    least = max(floor, LEAST)
    probabilities = evidence.log_probs[:, symbols].exp()
    occupancy = evidence.occupancy[:, symbols]
    # A model that knows nothing has this loss; nearly all others are below.
    spacing = FLOAT32 * len(probabilities) * math.log(evidence.log_probs.shape[1])
    frames = (evidence.directions.square() @ evidence.variances).sqrt()
    own = ROUNDING * frames[:, None] * evidence.rows[symbols]
    messages = ROUNDING * spacing * torch.maximum(occupancy.clamp(0.0, 1.0), probabilities)
    shared = LIKELIHOOD * spacing * (probabilities - occupancy)
    # No occupancy is negative: what is below zero shows a frame's own errors, which features that are not exact add to.
    size = (own.square() + messages.square() + shared.square() + LEAST**2).sqrt()
    below = (-occupancy / size).amax(dim=1) / NEGATIVE
    own = own * below.clamp(min=1.0)[:, None]
    covariance = torch.diag_embed(own.square() + messages.square() + least**2) + shared[:, :, None] * shared[:, None, :]
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(symbols), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
