"""Directions of a low-rank matrix from some of its entries, down to rounding: the Wiberg algorithm.

min over V of sum_r |(D_r - g_r V) M_r|^2, every row's g_r eliminated over its own entries M_r (variable projection).
The Gauss-Newton step on V that is left solves sum_r g_r' P_r (g_r dV M_r) = sum_r g_r' (D_r - g_r V) M_r, P_r what the
directions cannot explain at the entries of row r (Wiberg 1976; damped: Okatani and Deguchi 2007). Conjugate gradients
do, preconditioned by the equations of each column with the rows held, which are those of alternating least squares: a
step does what dozens of sweeps do, where weak directions hide behind missing entries.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.conjugate_gradients import conjugate_gradients
from overheard.attacks.entries.row_least_squares import least_squares_by_row

STEPS = 15
INNER_STEPS = 30
INNER_REST = 1e-4
"""Part of the right side's energy that conjugate gradients may leave."""
FIRST_DAMPING, LEAST_DAMPING = 1e-3, 1e-12
EASED, STIFFENED = 0.1, 30.0
"""What a step that led on, or did not, makes of the damping."""
AT_REST = 0.9
"""Ratio of squared residuals of one step to the next from which on the rest falls no more."""


def wiberg(
    matrix: Float[Tensor, "R C"], mask: Float[Tensor, "R C"], basis: Float[Tensor, "r C"]
) -> tuple[Float[Tensor, "R r"], Float[Tensor, "r C"]]:
    """Coefficients and orthonormal directions that explain the known entries best, near those given.

    Args:
        matrix: float64, 0 where it is not known, rows and columns of like size.
        mask: 1 where it is known, 0 elsewhere.
        basis: first guess of the directions, orthonormal rows.
    """
    turned_mask = mask.T.contiguous()
    damping = FIRST_DAMPING
    here = _Point.at(matrix, mask, basis)
    for _ in range(STEPS):
        there = _Point.at(matrix, mask, here.stepped(mask, turned_mask, damping))
        if there.square < here.square:
            gain, here = there.square / here.square, there
            if gain > AT_REST:
                break
            damping = max(EASED * damping, LEAST_DAMPING)
        elif damping >= FIRST_DAMPING:
            break
        else:
            damping = STIFFENED * damping
    return here.left, here.basis


class _Point:
    """Directions V and, for them, each row's g, what is left of the entries, and Cholesky factors of V M_r V'."""

    def __init__(
        self,
        basis: Float[Tensor, "r C"],
        left: Float[Tensor, "R r"],
        rest: Float[Tensor, "R C"],
        factors: Float[Tensor, "R r r"],
    ) -> None:
        self.basis, self.left, self.rest, self.factors = basis, left, rest, factors
        self.square = float(rest.square().sum())

    @staticmethod
    def at(matrix: Float[Tensor, "R C"], mask: Float[Tensor, "R C"], basis: Float[Tensor, "r C"]) -> "_Point":
        left, factors = least_squares_by_row(matrix, mask, basis)
        return _Point(basis, left, (matrix - left @ basis) * mask, factors)

    def stepped(
        self, mask: Float[Tensor, "R C"], turned_mask: Float[Tensor, "C R"], damping: float
    ) -> Float[Tensor, "r C"]:
        """Orthonormal directions one damped step on.

        Coordinates are those in which coefficients of different directions are at right angles, so that damping and
        preconditioner feel each direction by its own size.
        """
        outer, sizes, turn = torch.linalg.svd(self.left, full_matrices=False)
        left = outer * sizes
        damp = damping * sizes.square() * float(mask.mean())
        _, of_columns = least_squares_by_row(self.rest.T.contiguous(), turned_mask, left.T.contiguous(), damp)

        def normal(step: Tensor) -> Tensor:
            moved = (left @ step) * mask
            back = torch.cholesky_solve((moved @ self.basis.T)[:, :, None], self.factors)[:, :, 0]
            return left.T @ (moved - (back @ self.basis) * mask) + damp[:, None] * step

        def precondition(right: Tensor) -> Tensor:
            return torch.cholesky_solve(right.T[:, :, None], of_columns)[:, :, 0].T

        step = conjugate_gradients(normal, left.T @ self.rest, precondition, INNER_STEPS, INNER_REST)
        return torch.linalg.qr((turn @ self.basis + step).T).Q.T.contiguous()
