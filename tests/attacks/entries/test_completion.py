"""Low-rank completion: the rank that nobody told, and silence where entries do not tell it."""

import pytest
import torch
from torch import Tensor

from overheard.attacks.entries.completion import complete, core, excess_over_any
from overheard.attacks.entries.row_least_squares import least_squares_by_row


def low_rank(rows: int, columns: int, rank: int, decay: float = 2.0) -> Tensor:
    """Values fall over `decay` decades, as those of speech do."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return (left * torch.logspace(0, -decay, rank)) @ right


def masks(matrix: Tensor) -> dict[str, Tensor]:
    drawn = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(0))
    sizes = matrix.abs()
    return {"random": drawn < 0.5, "largest": sizes >= sizes.flatten().kthvalue(matrix.numel() // 2).values}


@pytest.mark.parametrize("kind", ["random", "largest"])
@pytest.mark.parametrize("rank", [1, 7, 15])
def test_the_missing_half_and_the_rank_come_back(kind: str, rank: int) -> None:
    matrix = low_rank(120, 100, rank)
    mask = masks(matrix)[kind]
    found = complete(matrix * mask, mask, torch.Generator().manual_seed(0))
    assert found is not None
    assert found.rank == rank
    assert found.margin >= 10
    rows = matrix[:, found.columns] / found.scales
    outside = rows - (rows @ found.basis.T) @ found.basis
    assert float(outside.norm()) < 1e-2 * float(rows.norm())


def test_directions_too_many_are_taken_back() -> None:
    """Ranks grow from 26 to 33 here; 33 directions explain what is known as well as the right 28."""
    generator = torch.Generator().manual_seed(28)
    left = torch.randn(300, 28, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 28)
    matrix = left @ torch.randn(28, 450, generator=generator, dtype=torch.float64).cumsum(dim=0).relu()
    mask = masks(matrix)["random"]
    found = complete(matrix * mask, mask, torch.Generator().manual_seed(0))
    assert found is not None
    assert found.rank == 28


def test_weak_directions_come_back_from_behind_missing_entries() -> None:
    """What 26 directions leave of these 33 and what entries hide are alike in size."""
    matrix = low_rank(260, 220, 33, decay=4.0)
    mask = masks(matrix)["random"]
    found = complete(matrix * mask, mask, torch.Generator().manual_seed(0))
    assert found is not None
    assert found.rank == 33
    rows = matrix[:, found.columns] / found.scales
    outside = rows - (rows @ found.basis.T) @ found.basis
    assert float(outside.norm()) < 1e-9 * float(rows.norm())


def test_no_rank_is_made_up() -> None:
    full = torch.randn(80, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix in (full, low_rank(80, 60, 40)):
        mask = masks(matrix)["random"]
        assert complete(matrix * mask, mask, torch.Generator().manual_seed(0)) is None
    assert complete(full * 0, full != full, torch.Generator().manual_seed(0)) is None


@pytest.mark.parametrize(("size", "rank", "decay", "share"), [(400, 34, 2.0, 0.25), (500, 40, 2.5, 0.2)])
def test_few_entries_make_no_rank(size: int, rank: int, decay: float, share: float) -> None:
    """A missing direction shows in what is left by the share of its entries that is known only."""
    matrix = low_rank(size, size - 50, rank, decay)
    mask = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(0)) < share
    found = complete(matrix * mask, mask, torch.Generator().manual_seed(0))
    assert found is None or found.rank == rank


def test_a_known_rank_is_kept() -> None:
    matrix = low_rank(120, 100, 12)
    mask = masks(matrix)["random"]
    found = complete(matrix * mask, mask, torch.Generator().manual_seed(0), 12)
    assert found is not None
    assert found.rank == 12
    assert complete(matrix * mask, mask, torch.Generator().manual_seed(0), 70) is None


def test_what_is_left_tells_right_directions_from_wrong_ones() -> None:
    matrix = low_rank(120, 100, 8)
    noisy = matrix + 1e-4 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1), dtype=matrix.dtype)
    mask = masks(matrix)["random"]
    right = torch.linalg.svd(matrix, full_matrices=False)[2][:8]
    turned = torch.linalg.qr((right + 0.03 * torch.randn(right.shape, dtype=right.dtype)).T).Q.T
    for basis, low, high in ((right, 0.9, 1.3), (turned, 10.0, 1e9)):
        excess = excess_over_any(noisy * mask, mask, basis, 10)
        assert excess is not None
        assert low < excess < high
    assert excess_over_any(noisy * mask, mask, torch.eye(100, dtype=matrix.dtype)[:60], 3) is None


def test_rows_are_solved_one_by_one() -> None:
    matrix = low_rank(9, 20, 3)
    mask = masks(matrix)["random"]
    basis = torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=matrix.dtype)).Q.T
    found, _ = least_squares_by_row(matrix * mask, mask, basis)
    for row, known, coefficients in zip(matrix, mask, found, strict=True):
        slow = torch.linalg.lstsq(basis[:, known].T, row[known]).solution
        assert torch.allclose(slow, coefficients, rtol=1e-6)


def test_the_core_keeps_enough_of_itself() -> None:
    mask = masks(low_rank(60, 50, 5))["largest"].double()
    rows, columns = core(mask, 10)
    part = mask[rows][:, columns]
    assert float(part.sum(dim=0).min()) >= 11.5
    assert float(part.sum(dim=1).min()) >= 11.5
    assert not bool(core(mask, 45)[0].any())
