"""One utterance of a given length from a span: least squares by a banded Cholesky factorisation."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded, get_lapack_funcs
from torch import Tensor

from overheard.attacks.span_equations import normal_equations
from overheard.attacks.windows import WindowedLayer


@dataclass(frozen=True)
class SpanSolution:
    """Features that fit a span, and how well they are determined.

    Attributes:
        features: (T, F).
        residual: root mean square of Pi [u_p, 1], relative to that of [u_p, 1].
        predicted_error: root mean square error that this residual can cause along the worst-determined direction,
            relative to the root mean square of the features.
        likely_error: the same, expected over all directions.
        errors: (D, T, F) draws of that error, alike in neighbouring frames as the equations make it.
    """

    features: Float[Tensor, "T F"]
    residual: float
    predicted_error: float
    likely_error: float
    errors: Float[Tensor, "D T F"]


def row_space(matrix: Float[Tensor, "R C"]) -> tuple[Float[Tensor, "K C"], Float[Tensor, " K"]]:
    """Right singular vectors, one a row, and singular values, largest first; K = min(R, C)."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = torch.linalg.qr(matrix, mode="r").R
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, values


def projector_on_complement(basis: Float[Tensor, "P C"]) -> Float[Tensor, "C C"]:
    """Pi = 1 - V'V for orthonormal rows V."""
    return torch.eye(basis.shape[1], dtype=basis.dtype) - basis.T @ basis


class SpanSolver:
    """Utterances of any length from one span.

    What stands behind the last frame is zero padding, so that of all lengths that give one number of positions the
    equations of a shorter one are the first of the longest's, and so is their Cholesky factor: it is computed once.
    """

    def __init__(
        self, basis: Float[Tensor, "P C"], layer: WindowedLayer, scales: Float[Tensor, " C"] | None = None
    ) -> None:
        """Args:
        basis: orthonormal rows that span [u_p, 1] over the scales, columns sorted by frame, then feature, then the
            constant.
        layer: how the windows lie.
        scales: of the columns, so that errors are of one size in all; None for 1.
        """
        self._basis, self._layer = basis, layer
        self._scales = torch.ones(basis.shape[1], dtype=basis.dtype) if scales is None else scales
        self.projector = projector_on_complement(basis) / (self._scales[:, None] * self._scales)
        """What of a row of inputs lies outside the span."""
        self._last: _Factored | None = None

    def solve(self, num_frames: int) -> SpanSolution | None:
        """Least-squares features (T, F) whose windows lie in the span; None where they are left undetermined.

        Args:
            num_frames: T.
        """
        last, positions = self._last, self._layer.num_positions(num_frames)
        if last is None or last.num_frames < num_frames or self._layer.num_positions(last.num_frames) != positions:
            last = self._factor(max(self._layer.lengths(positions)))
        if last.band is None and last.num_frames > num_frames:
            last = self._factor(num_frames)
        self._last = last
        return None if last.band is None else self._solution(num_frames, last.band, last.right)

    def _factor(self, num_frames: int) -> "_Factored":
        positions = self._layer.num_positions(num_frames)
        band, right = normal_equations(self.projector, self._layer, num_frames, positions)
        try:
            return _Factored(num_frames, cholesky_banded(band, lower=True, check_finite=False), right)
        except LinAlgError:
            return _Factored(num_frames, None, right)

    def _solution(self, num_frames: int, band: np.ndarray, right: np.ndarray) -> SpanSolution:
        layer, basis, (positions, size) = self._layer, self._basis, self._basis.shape
        right = right[: num_frames * layer.num_features]
        factor = (band[:, : len(right)], True)
        solution = cho_solve_banded(factor, right, check_finite=False)
        features = torch.from_numpy(solution).view(num_frames, layer.num_features)
        windows = torch.nn.functional.pad(layer.windows(features), (0, 1), value=1.0) / self._scales
        outside = windows - (windows @ basis.T) @ basis
        residual = float(outside.square().mean().sqrt())
        equations = windows.shape[0] * (size - positions)
        noise = float(outside.square().sum() / max(1, equations - features.numel()))
        worst = (noise / smallest_eigenvalue(factor, len(right))) ** 0.5
        scale = max(float(features.square().mean().sqrt()), torch.finfo(torch.float64).tiny)
        errors = noise**0.5 * error_draws(factor, num_frames, layer.num_features)
        likely = float(errors.square().mean().sqrt())
        relative = residual / float(windows.square().mean().sqrt())
        return SpanSolution(features, relative, worst / scale, likely / scale, errors)


@dataclass(frozen=True)
class _Factored:
    """The equations of one length: Cholesky factor in banded form, None where there is none, and right-hand side."""

    num_frames: int
    band: np.ndarray | None
    right: np.ndarray


def error_draws(
    factor: tuple[np.ndarray, bool], num_frames: int, num_features: int, draws: int = 4
) -> Float[Tensor, "D T F"]:
    """Errors that residuals of unit variance cause: L^-T z has their covariance, the inverse of L L'."""
    (solve_banded_triangle,) = get_lapack_funcs(("tbtrs",), (factor[0],))
    draw = np.random.default_rng(0).standard_normal((num_frames * num_features, draws))
    errors, info = solve_banded_triangle(factor[0], draw, uplo="L", trans="T")
    if info != 0:
        raise LinAlgError(f"banded triangle not solved: {info}")
    return torch.from_numpy(errors.T.copy()).view(draws, num_frames, num_features)


def smallest_eigenvalue(factor: tuple[np.ndarray, bool], size: int, steps: int = 4) -> float:
    """By inverse iteration with the Cholesky factor; an upper bound that a few steps bring close."""
    vector = np.random.default_rng(0).standard_normal(size)
    growth = 1.0
    for _ in range(steps):
        vector /= np.linalg.norm(vector)
        vector = cho_solve_banded(factor, vector, check_finite=False)
        growth = float(np.linalg.norm(vector))
    return 1.0 / growth
