"""Directions down to rounding from some entries of a matrix."""

import torch
from torch import Tensor

from overheard.attacks.entries.row_least_squares import least_squares_by_row
from overheard.attacks.entries.wiberg import wiberg


def known_part(rows: int, columns: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix whose directions differ a thousandfold, which of it is known, and its directions."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, rank)
    basis = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64)).Q.T
    mask = (torch.rand(rows, columns, generator=generator) < 0.4).double()
    return left @ basis, mask, basis


def rest(matrix: Tensor, mask: Tensor, basis: Tensor) -> float:
    left, _ = least_squares_by_row(matrix * mask, mask, basis)
    return float(((matrix - left @ basis) * mask).norm() / (matrix * mask).norm())


def test_rough_directions_come_down_to_rounding() -> None:
    matrix, mask, basis = known_part(90, 110, 12)
    noise = torch.randn(basis.shape, generator=torch.Generator().manual_seed(0), dtype=basis.dtype)
    rough = torch.linalg.qr((basis + 0.05 * noise).T).Q.T
    assert rest(matrix, mask, rough) > 0.1
    left, found = wiberg(matrix * mask, mask, rough)
    assert torch.allclose(found @ found.T, torch.eye(12, dtype=found.dtype))
    assert float((matrix - left @ found).norm() / matrix.norm()) < 1e-9


def test_too_few_directions_explain_no_more_than_they_can() -> None:
    matrix, mask, basis = known_part(90, 110, 12)
    left, found = wiberg(matrix * mask, mask, basis[:11])
    after = float(((matrix - left @ found) * mask).norm() / (matrix * mask).norm())
    assert 1e-5 < after <= rest(matrix, mask, basis[:11])
