"""Features at the edges of frequency, which few windows see: a preconditioner that solves for them exactly.

For fixed active units, features follow from W_1' A D A W_1 and what else is known, D a diagonal. Away from the edges
each feature is seen by hundreds of windows of random weights, and that matrix is near its own diagonal. The last bins
are seen by a few frequencies' windows only, which they share: their errors go down several times more slowly than all
others', and conjugate gradients wait for them. So the bins of each edge are solved for together, over all frames. A
window is eleven frames long, so that their matrix is block tridiagonal in time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overheard.attacks.deepspeech2.conv_front import Front
from overheard.recognition.deepspeech2 import KERNELS, STRIDES

BINS = 24
"""At each edge; a window is 41 wide, and features 24 from the edge are seen by half the windows that others are."""

RIDGE = 1e-4
"""Of the diagonal, added to it: windows that hardly count must not make blocks singular."""


@dataclass(frozen=True)
class _Band:
    """A block tridiagonal Cholesky factor over the bins of one edge.

    Attributes:
        first: of its bins.
        bins: how many.
        early: frames of the padding in front of the first real one.
        diagonal: lower triangular blocks, (blocks, B, B) with B = frames x bins.
        below: blocks beneath the diagonal, (blocks - 1, B, B).
    """

    first: int
    bins: int
    early: int
    diagonal: Float[Tensor, "N B B"]
    below: Float[Tensor, "M B B"]

    def solve(self, right: Float[Tensor, "T W"]) -> Float[Tensor, "T W"]:
        """A^-1 right."""
        size = self.diagonal.shape[1]
        inside = slice(self.early * self.bins, self.early * self.bins + right.numel())
        padded = right.new_zeros(len(self.diagonal) * size)
        padded[inside] = right.flatten()
        parts = list(padded.view(-1, size, 1))
        for place, factor in enumerate(self.diagonal):
            if place:
                parts[place] = parts[place] - self.below[place - 1] @ parts[place - 1]
            parts[place] = torch.linalg.solve_triangular(factor, parts[place], upper=False)
        for place in reversed(range(len(parts))):
            if place + 1 < len(parts):
                parts[place] = parts[place] - self.below[place].T @ parts[place + 1]
            parts[place] = torch.linalg.solve_triangular(self.diagonal[place].T, parts[place], upper=True)
        return torch.stack(parts).flatten()[inside].view(right.shape)


def preconditioner(
    front: Front, counted: Float[Tensor, "C K U"], num_frames: int, num_features: int
) -> Callable[[Float[Tensor, "T F"]], Float[Tensor, "T F"]]:
    """An approximate inverse of W_1' diag(counted) W_1: exact at the edges of frequency, diagonal elsewhere.

    Args:
        front: the first layer.
        counted: how much each of its units counts; zero where it is not active.
        num_frames: T.
        num_features: F.
    """
    energy = front.energy(counted, num_frames, num_features)
    bins = min(BINS, num_features // 2)
    spoken = torch.ones(num_frames, dtype=torch.bool, device=counted.device)
    if front.utterances is not None:
        spoken = front.utterances.features
    bands = [_band(front, counted, first, bins, spoken) for first in (0, num_features - bins)]

    def solve(right: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        solved = right / energy
        for band in bands:
            inside = slice(band.first, band.first + band.bins)
            solved[:, inside] = band.solve(right[:, inside])
        return solved

    return solve


def _band(front: Front, counted: Float[Tensor, "C K U"], first: int, bins: int, spoken: Bool[Tensor, " T"]) -> _Band:
    (high, long), stride, (low, early) = KERNELS[0], STRIDES[0][1], front.padding[0]
    rows = [row for row in range(counted.shape[1]) if row * STRIDES[0][0] - low < first + bins]
    rows = [row for row in rows if row * STRIDES[0][0] - low + high > first]
    # Weights through which each frequency's windows see the band.
    seen = counted.new_zeros(len(rows), len(front.weight), bins, long)
    for place, row in enumerate(rows):
        start = row * STRIDES[0][0] - low
        begin, end = max(start, first), min(start + high, first + bins)
        seen[place, :, begin - first : end - first] = front.weight[:, 0, begin - start : end - start]
    flat = seen.transpose(2, 3).flatten(2).flatten(0, 1)  # (rows C, long bins)
    grams = torch.stack([flat.T @ (flat * each[:, None]) for each in counted[:, rows].permute(2, 1, 0).flatten(1)])
    return _Band(first, bins, early, *_factorised(grams.view(-1, long, bins, long, bins), stride, early, spoken))


def _factorised(
    grams: Float[Tensor, "U S W S W"], stride: int, early: int, spoken: Bool[Tensor, " T"]
) -> tuple[Float[Tensor, "N B B"], Float[Tensor, "M B B"]]:
    """Cholesky factor of the sum of all windows' shares, in blocks so long that a window meets two at most."""
    count, long, bins = grams.shape[:3]
    frames = -(-(long - 1) // stride) * stride
    blocks, size = max(stride * (count - 1) + long, early + len(spoken)) // frames + 1, frames * bins
    pairs = grams.new_zeros(blocks, 2 * frames, bins, 2 * frames, bins)
    for window, gram in enumerate(grams):
        block, start = divmod(window * stride, frames)
        pairs[block, start : start + long, :, start : start + long] += gram
    pairs = pairs.view(blocks, 2 * size, 2 * size)
    diagonal, below = pairs[:, :size, :size].double(), pairs[:-1, size:, :size].double()
    diagonal[1:] += pairs[:-1, size:, size:]
    # Frames of the padding, and between utterances, are no unknowns.
    real = diagonal.new_zeros(blocks * frames)
    real[early : early + len(spoken)] = spoken.to(real)
    real = real.repeat_interleave(bins).view(blocks, size)
    diagonal *= real[:, :, None] * real[:, None, :]
    below *= real[1:, :, None] * real[:-1, None, :]
    own = diagonal.diagonal(dim1=1, dim2=2)
    own += RIDGE * own + RIDGE**2 * float(own.max()) + torch.finfo(own.dtype).tiny
    for block in range(blocks):
        if block:
            below[block - 1] = torch.linalg.solve_triangular(
                diagonal[block - 1].T, below[block - 1], upper=True, left=False
            )
            diagonal[block] -= below[block - 1] @ below[block - 1].T
        diagonal[block] = torch.linalg.cholesky(diagonal[block])
    return diagonal.float(), below.float()
