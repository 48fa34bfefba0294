"""How close recovered features are to the true ones."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class FeatureScore:
    """Distance of one utterance's recovered features from the true ones, frame by frame from the first on.

    Attributes:
        frames_true: T.
        frames_recovered: T of the reconstruction.
        mae: mean absolute error over the true frames, in the features' unit; a missing frame counts as zeros, and
            each frame too many as an error of its own magnitude.
        snr_db: power of the true features over that of the error, dB; None where both are zero or the error is.
    """

    frames_true: int
    frames_recovered: int
    mae: float
    snr_db: float | None


def score_features(recovered: Float[Tensor, "R F"], true: Float[Tensor, "T F"]) -> FeatureScore:
    """Compare two feature matrices; see `FeatureScore`."""
    longest = max(len(recovered), len(true))
    error = _extended(recovered, longest) - _extended(true, longest)
    mae = float(error.abs().sum() / max(1, true.numel()))
    signal, noise = float(true.double().square().sum()), float(error.square().sum())
    snr = 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None
    return FeatureScore(len(true), len(recovered), mae, snr)


def match_utterances(
    recovered: tuple[Float[Tensor, "_ F"], ...], true: tuple[Float[Tensor, "_ F"], ...]
) -> dict[int, int]:
    """Which recovered utterance stands for which true one: the assignment of least total error.

    An update has no order, so an attack cannot name its utterances. Values are indices into `recovered`; true
    utterances that nothing stands for are absent.
    """
    if not recovered:
        return {}
    costs = np.array([[score_features(guess, truth).mae for guess in recovered] for truth in true])
    rows, columns = linear_sum_assignment(costs)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True)}


def _extended(features: Float[Tensor, "T F"], frames: int) -> Float[Tensor, "T2 F"]:
    return torch.nn.functional.pad(features.double(), (0, 0, 0, frames - len(features)))
