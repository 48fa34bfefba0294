"""How well given inputs explain a layer's update of which only some entries were sent.

Row r of D = G'A is seen at its columns O_r alone. The best g_r are least squares over these: in the orthonormal basis Q
of A's rows, y_r = N_r^-1 Q_O' d_O with N_r = Q_O'Q_O, one (P, P) matrix for each row. A row of n_r entries so leaves
n_r - P equations on the inputs. The normal operator projects every row's change out of its own A_O.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overheard.attacks.entries.row_least_squares import least_squares_by_row
from overheard.attacks.noise.layer_fits import NoisyLayer


@dataclass(frozen=True)
class MaskedFit:
    """A layer at given inputs.

    Attributes:
        layer: its update, over rows of more entries than inputs.
        mask: entries that were sent.
        inside: Q.
        triangle: A = triangle' Q'.
        factors: lower Cholesky factor of each N_r.
        gradients: G over the noise's deviation.
        rest: D - G'A where it was sent, else 0.
        slopes: of the layer's inputs.
        unknowns: numbers that the inputs are made of.
        variance: of the noise, as these inputs leave it.
    """

    layer: NoisyLayer
    mask: Bool[Tensor, "R C"]
    inside: Float[Tensor, "C P"]
    triangle: Float[Tensor, "P P"]
    factors: Float[Tensor, "R P P"]
    gradients: Float[Tensor, "P R"]
    rest: Float[Tensor, "R C"]
    slopes: Float[Tensor, "P2 H"]
    unknowns: int
    variance: float

    @property
    def square(self) -> float:
        """Of what is left."""
        return self.variance * max(1, self.equations - self.unknowns)

    @cached_property
    def equations(self) -> int:
        """On the inputs, once the gradients are eliminated."""
        return equations_of(self.mask, len(self.triangle))

    def pull(self) -> Float[Tensor, "P K"]:
        """Minus half the derivative of f over the noise's variance, by windows."""
        return self._from_rows(self.rest) / self.variance**0.5

    def operator(self, kind: torch.dtype = torch.float32) -> Callable[[Float[Tensor, "P K"]], Float[Tensor, "P K"]]:
        """Change of windows to this layer's part of the normal equations, in a precision."""
        gradients, slopes, layer = self.gradients.to(kind), self.slopes.to(kind), self.layer
        weight = None if layer.weight is None else layer.weight.to(kind)
        factors, inside, present = self.factors.to(kind), self.inside.to(kind), self.mask.to(kind)
        width = len(inside) - layer.affine

        def operate(windows: Tensor) -> Tensor:
            change = (windows if weight is None else windows @ weight.T) * slopes
            rows = torch.zeros_like(present)
            rows[:, :width] = gradients.T @ change
            rows = _outside(rows * present, present, inside, factors)
            change = (gradients @ rows)[:, :width] * slopes
            return change if weight is None else change @ weight

        return operate

    def block(self) -> Float[Tensor, "K K"]:
        """About the mean over positions of one window's part of the normal operator: masks at their weighted mean."""
        width = self.inside.shape[0] - self.layer.affine
        weights = self.gradients.square().mean(dim=0)
        share = (weights @ self.mask.double()) / weights.sum()
        root = share.sqrt()
        inside = torch.linalg.qr(root[:, None] * self.inside).Q
        outside = torch.eye(len(root), dtype=root.dtype) - inside @ inside.T
        outside = (root[:, None] * outside * root)[:width, :width] * weights.sum()
        outside = outside * ((self.slopes.T @ self.slopes) / len(self.slopes))
        weight = self.layer.weight
        return outside if weight is None else weight.T @ (outside @ weight)

    def _from_rows(self, rows: Float[Tensor, "R C"]) -> Float[Tensor, "P K"]:
        return self.layer.pulled(self.slopes, (self.gradients @ rows)[:, : rows.shape[1] - self.layer.affine])


def _outside(
    rows: Float[Tensor, "R C"],
    present: Float[Tensor, "R C"],
    inside: Float[Tensor, "C P"],
    factors: Float[Tensor, "R P P"],
) -> Float[Tensor, "R C"]:
    """Each row, which is 0 where nothing was sent, less what the inputs explain of it there."""
    coefficients = torch.cholesky_solve((rows @ inside)[:, :, None], factors)[:, :, 0]
    return rows - (coefficients @ inside.T) * present


def equations_of(mask: Bool[Tensor, "R C"], positions: int) -> int:
    """Equations on the inputs that entries leave once each row's gradients at so many positions are eliminated."""
    return int((mask.sum(dim=1) - positions).clamp(min=0).sum())


def fit_masked(layer: NoisyLayer, mask: Bool[Tensor, "R C"], windows: Float[Tensor, "P K"], unknowns: int) -> MaskedFit:
    """The best gradients for an update of which only some entries were sent.

    Args:
        layer: its update; 0 where nothing was sent.
        mask: where something was.
        windows: of all utterances.
        unknowns: numbers that the windows are made of.
    """
    inputs, slopes = layer.inputs(windows)
    inside, triangle = torch.linalg.qr(inputs.T)
    coefficients, factors = least_squares_by_row(layer.matrix, mask, inside.T)
    rest = (layer.matrix - coefficients @ inside.T) * mask
    tiny = torch.finfo(rest.dtype).tiny
    variance = max(float(rest.square().sum()) / max(1, equations_of(mask, len(triangle)) - unknowns), tiny)
    gradients = torch.linalg.solve_triangular(triangle, coefficients.T, upper=True) / variance**0.5
    return MaskedFit(layer, mask, inside, triangle, factors, gradients, rest, slopes, unknowns, variance)
