"""Which lengths a span allows: every number of frames tested at the price of one.

For T frames the closed form minimises q_T(x) = sum_p |Pi [u_p(x), 1]|^2; its least value is at rounding where an
utterance of T frames is in the span, and far above elsewhere. q_T for two lengths differ only in the blocks of the last
frames, those that the windows behind the end would also have held, so one banded Cholesky factorisation of the longest
serves all: for each T the last block is corrected and solved, (k F)^3 operations instead of T F (k F)^2.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cholesky, cholesky_banded, get_lapack_funcs, solve_triangular
from torch import Tensor

from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.windows import WindowedLayer


def length_scan(projector: Float[Tensor, "C C"], layer: WindowedLayer, longest: int) -> dict[int, float]:
    """Least mean square of Pi [u_p, 1] over the windows of an utterance of T frames, by T.

    Args:
        projector: Pi, on the complement of the span, columns sorted by frame, then feature, then the constant.
        layer: how the windows lie.
        longest: T up to which to look.
    """
    features, tail = layer.num_features, layer.window - 1
    # Behind `longest` come as many frames of zeros as a window reaches, so that no window is missing at its end.
    padded = longest + tail
    endless = (padded + layer.before + layer.window) // layer.stride + 1
    band, right = normal_equations(projector, layer, padded, torch.ones(endless, dtype=projector.dtype))
    try:
        factor = cholesky_banded(band, lower=True, check_finite=False)
    except LinAlgError:
        return {}
    forward = _forward_substitution(factor, right)
    energy = np.concatenate([[0.0], np.cumsum(forward**2)])
    constant = float(projector[-1, -1])
    found = {}
    for num_frames in range(1, longest + 1):
        positions = layer.num_positions(num_frames)
        if positions < 1:
            continue
        head = max(0, num_frames - tail) * features
        size = num_frames * features - head
        lower = _dense(factor, head, size)
        blocks, wanted = _excess(projector, layer, num_frames, size // features, positions, endless)
        schur = lower @ lower.T - blocks
        weight = lower @ forward[head : head + size] - wanted
        try:
            root = cholesky(schur, lower=True, check_finite=False)
        except LinAlgError:
            # Several utterances of this length: their differences solve the homogeneous equations.
            found[num_frames] = 0.0
            continue
        rest = solve_triangular(root, weight, lower=True, check_finite=False)
        least = positions * constant - energy[head] - float(rest @ rest)
        found[num_frames] = max(least, 0.0) / positions
    return found


def _forward_substitution(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    (solve_banded_triangle,) = get_lapack_funcs(("tbtrs",), (factor, right))
    solved, info = solve_banded_triangle(factor, right[:, None], uplo="L")
    if info != 0:
        raise LinAlgError(f"banded triangle not solved: {info}")
    return solved[:, 0]


def _dense(factor: np.ndarray, start: int, size: int) -> np.ndarray:
    """Rows and columns start to start + size of a banded lower factor."""
    block = np.zeros((size, size))
    for offset in range(min(size, factor.shape[0])):
        np.fill_diagonal(block[offset:, :], factor[offset, start : start + size - offset])
    return block


def _excess(
    projector: Float[Tensor, "C C"],
    layer: WindowedLayer,
    num_frames: int,
    tail: int,
    positions: int,
    endless: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What windows behind the last position add to the equations of the last `tail` frames."""
    features, width = layer.num_features, layer.window * layer.num_features
    blocks = np.zeros((tail * features, tail * features))
    right = np.zeros(tail * features)
    first = num_frames - tail
    table = projector.numpy()
    for position in range(positions, endless):
        start = position * layer.stride - layer.before
        if start >= num_frames:
            break
        low, high = max(start, first), min(start + layer.window, num_frames)
        here = slice((low - first) * features, (high - first) * features)
        there = slice((low - start) * features, (high - start) * features)
        blocks[here, here] += table[there, there]
        right[here] -= table[there, width]
    return blocks, right
