"""Rows that are rounded by their own size give away directions that the roughest rows would hide."""

import torch

from overheard.attacks.deepspeech2.row_span import find_row_span
from overheard.attacks.rank import numerical_rank

PRECISION = 1e-5


SIZES = torch.logspace(0, -3, 120).double()[:, None]


def faint(noise: float = 1e-7) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten directions, each fainter than the one before, in rows of many sizes, each rounded by its own.

    Large rows hold the first seven only.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(80, 10, generator=generator, dtype=torch.float64)).Q.T
    mixed = torch.randn(120, 10, generator=generator, dtype=torch.float64) * SIZES
    mixed *= torch.logspace(0, -4.5, 10)
    mixed[:, 7:] *= SIZES < 1e-2
    rounding = noise * torch.randn(120, 80, generator=generator, dtype=torch.float64)
    return mixed @ rows + SIZES * rounding, rows


def test_faint_directions_stand_out() -> None:
    matrix, rows = faint()
    found = find_row_span(matrix, PRECISION, torch.Generator().manual_seed(0))
    assert found.rank.rank == 10
    assert numerical_rank(matrix, PRECISION).rank < 10
    assert found.rank.margin > 10
    missed = rows - (rows @ found.basis.T) @ found.basis
    assert float(missed.norm()) < 0.05


def test_noise_of_each_row_is_told() -> None:
    matrix, _ = faint()
    found = find_row_span(matrix, PRECISION, torch.Generator().manual_seed(0))
    expected = 1e-7 * SIZES[:, 0]
    assert float((found.row_noise / expected).log().abs().median()) < 0.2


def test_rows_of_zeros_and_a_full_rank_do_no_harm() -> None:
    matrix, _ = faint()
    matrix[3:30] = 0.0
    assert find_row_span(matrix, PRECISION, torch.Generator().manual_seed(0)).rank.rank == 10
    full = torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert find_row_span(full, PRECISION, torch.Generator().manual_seed(0)).rank.rank == 12
