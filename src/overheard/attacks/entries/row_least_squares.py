"""Least squares of many rows by the same directions, each over the entries of it that are known."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROWS_AT_ONCE = 256
TRACE = 1e-12
"""Of the identity, in normal equations: a row of hardly more entries than directions may leave them singular."""


def least_squares_by_row(
    matrix: Float[Tensor, "R C"],
    mask: Float[Tensor, "R C"] | Bool[Tensor, "R C"],
    basis: Float[Tensor, "r C"],
    ridge: Float[Tensor, " r"] | None = None,
) -> tuple[Float[Tensor, "R r"], Float[Tensor, "R r r"]]:
    """Coefficients with which orthonormal rows explain each row where it is known; Cholesky factors of the equations.

    Args:
        matrix: 0 where it is not known.
        mask: where it is.
        basis: the rows.
        ridge: added to the diagonal of each row's normal equations.
    """
    low, high = torch.tril_indices(len(basis), len(basis))
    products = (basis[low] * basis[high]).T  # (C, r (r + 1) / 2): half of every outer product
    right = matrix @ basis.T
    found, factors = [], []
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        sums = mask[start : start + ROWS_AT_ONCE].to(products) @ products
        normal = sums.new_zeros(len(sums), len(basis), len(basis))
        normal[:, low, high] = sums
        normal[:, high, low] = sums
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += TRACE * diagonal.mean(dim=1, keepdim=True) + (0.0 if ridge is None else ridge)
        factor = torch.linalg.cholesky_ex(normal)[0]
        found.append(torch.cholesky_solve(right[start : start + ROWS_AT_ONCE, :, None], factor)[:, :, 0])
        factors.append(factor)
    return torch.cat(found), torch.cat(factors)
