"""The closed form's linear equations: block-banded, built from each distinct block once."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.windows import WindowedLayer


def normal_equations(
    projector: Float[Tensor, "C C"], layer: WindowedLayer, num_frames: int, num_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Band (lower form) and right-hand side of sum_p S_p' Pi S_p x = -sum_p S_p' Pi e, S_p cutting window p out of x.

    Frames whose windows reach over no edge share one block row, so each distinct row is built once.
    """
    window, features = layer.window, layer.num_features
    width = window * features
    blocks = projector[:width, :width].reshape(window, features, window, features)
    constants = projector[:width, width].reshape(window, features)
    band = np.zeros((num_frames, features, width))
    right = np.zeros((num_frames, features))
    rows: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    for frame in range(num_frames):
        # Places at which the frame stands within the windows that hold it.
        places = tuple(
            place
            for place in range(window)
            if (position := frame + layer.before - place) % layer.stride == 0
            and 0 <= position // layer.stride < num_positions
        )
        if places not in rows:
            rows[places] = _block_row(blocks, constants, places)
        band[frame], right[frame] = rows[places]
    return band.reshape(-1, width).T, right.reshape(-1)


def _block_row(
    blocks: Float[Tensor, "K F K F"], constants: Float[Tensor, "K F"], places: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """One frame's row of the normal equations: entry [f, m] couples unknown f with the m-th unknown after it."""
    window, features = constants.shape
    row = torch.zeros(features, window, features, dtype=blocks.dtype)
    for place in places:
        row[:, : window - place] += blocks[place, :, place:]
    wide = torch.nn.functional.pad(row.flatten(1), (0, features))  # (F, KF + F)
    skewed = torch.stack([wide[index, index : index + window * features] for index in range(features)])
    right = -sum((constants[place] for place in places), torch.zeros(features, dtype=blocks.dtype))
    return skewed.numpy(), right.numpy()
