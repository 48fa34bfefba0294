"""Solutions already known made repulsive, so that Newton's method finds the others from the same guesses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Deflated:
    """A residual times the factor of deflation, as a least-squares problem sees it.

    Attributes:
        residual: (E,), factor * r.
        jacobian: (E, U), factor * J + r grad(factor)'.
        factor: by which r was multiplied, 1 and above.
    """

    residual: Float[Tensor, " E"]
    jacobian: Float[Tensor, "E U"]
    factor: float


@dataclass(frozen=True)
class Deflation:
    """The factor prod_k (1 + |x_k|^2 / |x - x_k|^2): without bound near a known solution x_k, 1 far from all of them.

    A root of the residual other than the known ones is a root of the product, too (Farrell, Birkisson and Funke 2015,
    "Deflation techniques for finding distinct solutions of nonlinear partial differential equations", section 2).

    Attributes:
        known: solutions, (U,) each.
    """

    known: Sequence[Float[Tensor, " U"]] = ()

    def factors(self, unknowns: Float[Tensor, " U"]) -> Float[Tensor, ""]:
        """At x, differentiable; infinite at a known solution."""
        closeness = [_closeness(each, unknowns) for each in self.known]
        return (1 + torch.stack(closeness)).prod() if closeness else unknowns.new_ones(())

    def factor(self, unknowns: Float[Tensor, " U"]) -> float:
        """The same as a number."""
        return float(self.factors(unknowns))

    def apply(
        self, unknowns: Float[Tensor, " U"], residual: Float[Tensor, " E"], jacobian: Float[Tensor, "E U"]
    ) -> Deflated:
        """The product and its Jacobian at x, away from every known solution."""
        if not self.known:
            return Deflated(residual, jacobian, 1.0)
        factor = self.factor(unknowns)
        # The gradient of log(1 + c) is that of c over 1 + c, and that of c = s / |d|^2 is -2 c d / |d|^2.
        slope = torch.zeros_like(unknowns)
        for each in self.known:
            away, closeness = unknowns - each, _closeness(each, unknowns)
            slope -= 2 * closeness / (1 + closeness) * away / away.square().sum()
        return Deflated(factor * residual, factor * (jacobian + torch.outer(residual, slope)), factor)


NOTHING_KNOWN = Deflation()


def _closeness(known: Float[Tensor, " U"], unknowns: Float[Tensor, " U"]) -> Float[Tensor, ""]:
    return known.square().sum() / (unknowns - known).square().sum()
