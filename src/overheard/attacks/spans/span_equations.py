"""The closed form's linear equations, block-banded: where frames stand within windows, times the windows' blocks."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.windows import WindowedLayer


def normal_equations(
    projector: Float[Tensor, "C C"],
    layer: WindowedLayer,
    num_frames: int,
    weights: Float[Tensor, " P"] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Band (lower form) and right-hand side of sum_p w_p S_p' Pi S_p x = -sum_p w_p S_p' Pi e.

    S_p cuts window p out of x, e is the constant.

    Args:
        projector: Pi, the constant's row and column last.
        layer: how the windows lie.
        num_frames: T.
        weights: w_p, of every window; None for 1, and as many windows as the frames give.
    """
    if weights is None:
        weights = torch.ones(layer.num_positions(num_frames), dtype=projector.dtype)
    window, features = layer.window, layer.num_features
    width = window * features
    blocks = _block_rows(projector[:width, :width].reshape(window, features, width), layer)
    places = _places(layer, num_frames, weights)
    band = (places @ blocks.flatten(1)).view(num_frames * features, width)
    right = -(places @ projector[:width, width].reshape(window, features)).flatten()
    return band.numpy().T, right.numpy()


def _places(layer: WindowedLayer, num_frames: int, weights: Float[Tensor, " P"]) -> Float[Tensor, "T K"]:
    """Weights of the windows that hold a frame, by the frame's place within each; 0 where there is none."""
    starts = torch.arange(num_frames)[:, None] + layer.before - torch.arange(layer.window)
    positions = starts.div(layer.stride, rounding_mode="floor")
    held = (starts % layer.stride == 0) & (positions >= 0) & (positions < len(weights))
    return torch.where(held, weights[positions.clamp(0, len(weights) - 1)], 0.0)


def _block_rows(blocks: Float[Tensor, "K F C"], layer: WindowedLayer) -> Float[Tensor, "K F C"]:
    """A frame's rows for each place: entry [k, f, m] couples its feature f with the m-th unknown after that."""
    window, features = layer.window, layer.num_features
    width = window * features
    wide = blocks.new_zeros(window, features, width + features)
    for place in range(window):
        wide[place, :, : (window - place) * features] = blocks[place, :, place * features :]
    row = width + features
    return wide.as_strided((window, features, width), (features * row, row + 1, 1))
