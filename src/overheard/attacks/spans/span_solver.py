"""One utterance of a given length from a span: least squares by a banded Cholesky factorisation.

Rounding of an update turns every direction of its span by as much as that is weak, so a window errs by the directions
it has a share in: e_p^2 = sum_i <u_p, v_i>^2 / s_i^2 with singular values s_i, times the rounding's variance. A trained
model's gradients differ a millionfold from frame to frame, and its windows' errors with them. The features are
therefore fitted again with every window over its own error, as the fit before tells it (iteratively reweighted least
squares; Aitken 1936 for the weights).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded, get_lapack_funcs
from torch import Tensor

from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.windows import WindowedLayer

PRECISE = 1e-5
"""Likely error up to which nothing more is asked than the first layer's equations, all windows alike."""
WEIGHINGS = 4
WORTHWHILE = 0.5
"""Part of its likely error that a weighed fit must stay below for another."""
LONGER = 0.7
"""Part of a shorter utterance's residual that a longer one of as many windows must stay below to be preferred."""


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
        equations: that they solve; None where they solve others.
    """

    features: Float[Tensor, "T F"]
    residual: float
    predicted_error: float
    likely_error: float
    errors: Float[Tensor, "D T F"]
    equations: "WindowEquations | None" = None


@dataclass(frozen=True)
class WindowEquations:
    """Pi [u_p, 1] = 0 for every window of an utterance, each weighed by one over the variance of its errors.

    Attributes:
        basis: orthonormal rows on whose complement Pi projects.
        scales: of the columns.
        weights: of the windows.
    """

    basis: Float[Tensor, "P C"]
    scales: Float[Tensor, " C"]
    weights: Float[Tensor, " W"]

    @property
    def count(self) -> int:
        """Equations of one window."""
        return self.basis.shape[1] - self.basis.shape[0]

    @property
    def projector(self) -> Float[Tensor, "C C"]:
        """Pi over the scales on either side."""
        return projector_on_complement(self.basis) / (self.scales[:, None] * self.scales)

    def rest(self, windows: Float[Tensor, "W K"], constant: float = 1.0) -> Float[Tensor, "W C"]:
        """Pi [u_p, 1]; of changes of the windows with the constant 0."""
        inputs = torch.nn.functional.pad(windows, (0, 1), value=constant) / self.scales
        return inputs - (inputs @ self.basis.T) @ self.basis

    def square(self, windows: Float[Tensor, "W K"]) -> float:
        """Weighed sum of squares of what is left."""
        return float((self.weights * self.rest(windows).square().sum(dim=1)).sum())

    def pull(self, windows: Float[Tensor, "W K"], constant: float = 1.0) -> Float[Tensor, "W K"]:
        """Half the derivative of `square` by the windows, or with the constant 0 what that changes by."""
        return (self.weights[:, None] * self.rest(windows, constant) / self.scales)[:, :-1]

    def single_precision(self) -> "WindowEquations":
        return WindowEquations(self.basis.float(), self.scales.float(), self.weights.float())


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
        self,
        basis: Float[Tensor, "P C"],
        layer: WindowedLayer,
        scales: Float[Tensor, " C"] | None = None,
        values: Float[Tensor, " P"] | None = None,
    ) -> None:
        """Args:
        basis: orthonormal rows that span [u_p, 1] over the scales, columns sorted by frame, then feature, then the
            constant.
        layer: how the windows lie.
        scales: of the columns, so that errors are of one size in all; None for 1.
        values: singular values of the basis, by which windows are weighed; None for all alike.
        """
        self._basis, self._values, self._layer = basis, values, layer
        self._scales = torch.ones(basis.shape[1], dtype=basis.dtype) if scales is None else scales
        self.projector = projector_on_complement(basis) / (self._scales[:, None] * self._scales)
        """What of a row of inputs lies outside the span."""
        self._last: _Factored | None = None

    def solve(self, lengths: Sequence[int]) -> SpanSolution | None:
        """Least-squares features whose windows lie in the span; None where they are left undetermined.

        Of lengths with as many windows the shortest, unless a longer one leaves less: with a stride, frames behind the
        last one may be taken for frames of zeros.

        Args:
            lengths: T, one or several with the same number of windows.
        """
        best: _Fit | None = None
        for num_frames in sorted(lengths):
            found = self._fit(num_frames)
            if found is not None and (best is None or found.square < LONGER**2 * best.square):
                best = found
        return None if best is None else self._weighed(best)

    def _weighed(self, fit: "_Fit") -> SpanSolution:
        """A fit with each window over the size of its own error, which the fit before tells, while that pays."""
        for _ in range(WEIGHINGS):
            if self._values is None or fit.likely_error <= PRECISE:
                break
            weights = (fit.inside / self._values).square().sum(dim=1).reciprocal()
            following = self._fitted(self._factor(len(fit.features), weights), len(fit.features))
            if following is None or following.likely_error >= fit.likely_error:
                break
            pays = following.likely_error < WORTHWHILE * fit.likely_error
            fit = following
            if not pays:
                break
        return fit.solution(WindowEquations(self._basis, self._scales, fit.weights))

    def _fit(self, num_frames: int) -> "_Fit | None":
        last, positions = self._last, self._layer.num_positions(num_frames)
        if last is None or last.num_frames < num_frames or self._layer.num_positions(last.num_frames) != positions:
            last = self._factor(max(self._layer.lengths(positions)))
        if last.band is None and last.num_frames > num_frames:
            last = self._factor(num_frames)
        self._last = last
        return self._fitted(last, num_frames)

    def _fitted(self, equations: "_Factored", num_frames: int) -> "_Fit | None":
        if equations.band is None:
            return None
        right = equations.right[: num_frames * self._layer.num_features]
        factor = (equations.band[:, : len(right)], True)
        solution = cho_solve_banded(factor, right, check_finite=False)
        features = torch.from_numpy(solution).view(num_frames, self._layer.num_features)
        windows = torch.nn.functional.pad(self._layer.windows(features), (0, 1), value=1.0) / self._scales
        inside = windows @ self._basis.T
        squares = (windows - inside @ self._basis).square().sum(dim=1)
        weights = torch.ones_like(squares) if equations.weights is None else equations.weights
        count = windows.numel() - inside.numel() - features.numel()
        return _Fit(features, factor, inside, weights, squares, float(windows.square().sum()), max(1, count))

    def _factor(self, num_frames: int, weights: Float[Tensor, " P"] | None = None) -> "_Factored":
        band, right = normal_equations(self.projector, self._layer, num_frames, weights)
        try:
            factor = cholesky_banded(band, overwrite_ab=True, lower=True, check_finite=False)
        except LinAlgError:
            factor = None
        return _Factored(num_frames, factor, right, weights)


@dataclass(frozen=True)
class _Factored:
    """The equations of one length, windows weighed or not: Cholesky factor in banded form, None where there is none,
    and right-hand side."""

    num_frames: int
    band: np.ndarray | None
    right: np.ndarray
    weights: Float[Tensor, " P"] | None


@dataclass(frozen=True)
class _Fit:
    """Features of one length, their equations' Cholesky factor, their windows inside the span and weights, squared
    norms of what of these lies outside, the sum of squares of all, and how many more equations than unknowns."""

    features: Float[Tensor, "T F"]
    factor: tuple[np.ndarray, bool]
    inside: Float[Tensor, "W P"]
    weights: Float[Tensor, " W"]
    squares: Float[Tensor, " W"]
    size: float
    count: int

    @property
    def square(self) -> float:
        return float(self.squares.sum())

    @property
    def noise(self) -> float:
        """Variance of an equation's error, weighed."""
        return float((self.weights * self.squares).sum()) / self.count

    @property
    def scale(self) -> float:
        """Root mean square of the features."""
        return max(float(self.features.square().mean().sqrt()), torch.finfo(torch.float64).tiny)

    @cached_property
    def errors(self) -> Float[Tensor, "D T F"]:
        return self.noise**0.5 * error_draws(self.factor, *self.features.shape)

    @property
    def likely_error(self) -> float:
        return float(self.errors.square().mean().sqrt()) / self.scale

    def solution(self, equations: WindowEquations) -> SpanSolution:
        """With the equations that were solved, but for their variance."""
        worst = (self.noise / smallest_eigenvalue(self.factor, self.features.numel())) ** 0.5 / self.scale
        residual = (self.square / self.size) ** 0.5
        variance = max(self.noise, torch.finfo(torch.float64).tiny)
        own = replace(equations, weights=equations.weights / variance)
        return SpanSolution(self.features, residual, worst, self.likely_error, self.errors, own)


def error_draws(
    factor: tuple[np.ndarray, bool], num_frames: int, num_features: int, draws: int = 4
) -> Float[Tensor, "D T F"]:
    """Errors that residuals of unit variance cause: L^-T z has their covariance, the inverse of L L'."""
    (solve_banded_triangle,) = get_lapack_funcs(("tbtrs",), (factor[0],))
    draw = np.random.default_rng(0).standard_normal((num_frames * num_features, draws)).astype(factor[0].dtype)
    errors, info = solve_banded_triangle(factor[0], draw, uplo="L", trans="T")
    if info != 0:
        raise LinAlgError(f"banded triangle not solved: {info}")
    return torch.from_numpy(errors.T.copy()).double().view(draws, num_frames, num_features)


def smallest_eigenvalue(factor: tuple[np.ndarray, bool], size: int, steps: int = 4) -> float:
    """By inverse iteration with the Cholesky factor; an upper bound that a few steps bring close."""
    vector = np.random.default_rng(0).standard_normal(size).astype(factor[0].dtype)
    growth = 1.0
    for _ in range(steps):
        vector /= np.linalg.norm(vector)
        vector = cho_solve_banded(factor, vector, check_finite=False)
        growth = float(np.linalg.norm(vector))
    return 1.0 / growth
