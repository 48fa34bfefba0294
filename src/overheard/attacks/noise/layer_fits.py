"""How well given inputs explain a layer's update: the best gradients, what is left over, and its derivatives.

For inputs A (P, C), one row a position, the gradients G (P, R) that explain D = G'A best are in closed form; what they
leave is what `likelihood` makes as small as noise allows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from overheard.attacks.pointwise import Activation


@dataclass(frozen=True)
class NoisyLayer:
    """One layer's noisy update, and how its inputs follow from the windows.

    Attributes:
        matrix: D, each column over its scale; the last is the bias's where `affine`. Rows may be any rotation of the
            units'.
        rows: R, units that `matrix` stands for.
        affine: whether the constant is one of its inputs.
        scales: of the columns' noise.
        weight: W of the windowed layer for the layer behind it, (H, windowed); None for the windowed layer itself.
        bias: b.
        activation: of the windowed layer's outputs.
        mask: entries of `matrix` that were sent, whose rows are then the units themselves; None for all.
    """

    matrix: Float[Tensor, "R C"]
    rows: int
    affine: bool
    scales: Float[Tensor, " C"]
    weight: Float[Tensor, "H K"] | None = None
    bias: Float[Tensor, " H"] | None = None
    activation: Activation | None = None
    mask: Bool[Tensor, "R C"] | None = None

    def inputs(self, windows: Float[Tensor, "P K"]) -> tuple[Float[Tensor, "P C"], Float[Tensor, "P2 H"]]:
        """A over the scales, and the slopes of its columns but the constant's, one row where all rows are equal."""
        slopes = torch.ones_like(windows[:1])
        if self.weight is not None and self.bias is not None and self.activation is not None:
            windows, slopes = self.activation(windows @ self.weight.T + self.bias)
        inputs = nn.functional.pad(windows, (0, 1), value=1.0) if self.affine else windows
        return inputs / self.scales, slopes / self.scales[: slopes.shape[1]]

    def pulled(self, slopes: Float[Tensor, "P2 H"], inputs: Float[Tensor, "P H"]) -> Float[Tensor, "P K"]:
        """From the layer's inputs back to the windows."""
        inputs = inputs * slopes
        return inputs if self.weight is None else inputs @ self.weight


@dataclass(frozen=True)
class WholeFit:
    """A layer at given features: Q (C, P) spans the rows of A, G (P, R) is the best, E = D - G'A is what is left."""

    layer: NoisyLayer
    inside: Float[Tensor, "C P"]
    triangle: Float[Tensor, "P P"]
    shown: Float[Tensor, "R P"]
    rest: Float[Tensor, "R C"]
    slopes: Float[Tensor, "P2 H"]
    unknowns: int

    @cached_property
    def square(self) -> float:
        return float(self.rest.square().sum())

    @property
    def equations(self) -> int:
        return self.layer.rows * (self.inside.shape[0] - self.inside.shape[1])

    @property
    def variance(self) -> float:
        """Of the noise, as these features leave it."""
        return self.square / max(1, self.equations - self.unknowns)

    @cached_property
    def gradients(self) -> Float[Tensor, "P R"]:
        """G over the noise's deviation."""
        return torch.linalg.solve_triangular(self.triangle, self.shown.T, upper=True) / self.variance**0.5

    @cached_property
    def weights(self) -> Float[Tensor, "P P"]:
        """GG'."""
        return self.gradients @ self.gradients.T

    @cached_property
    def columns(self) -> Float[Tensor, "K P"]:
        """Q without the constant's row."""
        return self.inside[:-1] if self.layer.affine else self.inside

    def pull(self) -> Float[Tensor, "P K"]:
        """Minus half the derivative of f over the noise's variance, by windows."""
        return self.layer.pulled(self.slopes, (self.gradients @ self.rest)[:, : len(self.columns)] / self.variance**0.5)

    def drawn(self, generator: torch.Generator) -> Float[Tensor, "P K"]:
        """`pull` of noise alone, a draw of it."""
        root = torch.linalg.cholesky_ex(self.weights)[0]
        inputs = root @ torch.randn(len(root), len(self.columns), generator=generator, dtype=root.dtype)
        return self.layer.pulled(self.slopes, inputs - (inputs @ self.columns) @ self.columns.T)

    def operator(self, kind: torch.dtype = torch.float32) -> Callable[[Float[Tensor, "P K"]], Float[Tensor, "P K"]]:
        """Change of windows to this layer's part of the normal equations, in a precision."""
        weights, columns, slopes = self.weights.to(kind), self.columns.to(kind), self.slopes.to(kind)
        weight = None if self.layer.weight is None else self.layer.weight.to(kind)

        def operate(windows: Tensor) -> Tensor:
            change = (windows if weight is None else windows @ weight.T) * slopes
            change = (weights @ (change - (change @ columns) @ columns.T)) * slopes
            return change if weight is None else change @ weight

        return operate

    def block(self) -> Float[Tensor, "K K"]:
        """The mean over positions of one window's part of the normal operator."""
        together = (self.slopes.T @ self.slopes) / len(self.slopes) * self.weights.diagonal().mean()
        together = together * (torch.eye(len(together), dtype=together.dtype) - self.columns @ self.columns.T)
        weight = self.layer.weight
        return together if weight is None else weight.T @ (together @ weight)


def fit_whole(layer: NoisyLayer, windows: Float[Tensor, "P K"], unknowns: int) -> WholeFit:
    """The best gradients for an update all of whose entries were sent.

    Args:
        layer: its update.
        windows: of all utterances.
        unknowns: numbers that the windows are made of.
    """
    inputs, slopes = layer.inputs(windows)
    inside, triangle = torch.linalg.qr(inputs.T)
    shown = layer.matrix @ inside
    rest = layer.matrix - shown @ inside.T
    return WholeFit(layer, inside, triangle, shown, rest, slopes, unknowns)
