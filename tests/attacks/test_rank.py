"""The rank scan says how many positions a layer saw, and where a layer saw too many to tell."""

import pytest
import torch
from torch import nn

from builders import batch_of, observe, small_deepspeech1, small_deepspeech2
from overheard.attacks.rank import numerical_rank, rank_scan


@pytest.mark.parametrize(
    ("rank", "shape"), [(1, (64, 48)), (40, (64, 48)), (7, (600, 700)), (511, (600, 700)), (530, (600, 700))]
)
def test_rank_of_a_product_with_float32_rounding(rank: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(shape[0], rank, generator=generator)
    right = torch.randn(rank, shape[1], generator=generator)
    found = numerical_rank((left @ right).double(), torch.finfo(torch.float32).eps)
    assert found.rank == rank
    assert found.margin > 10


def test_the_end_of_a_sketch_is_no_end_of_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        left = torch.linalg.qr(torch.randn(600, 30, generator=generator, dtype=torch.float64)).Q
        right = torch.linalg.qr(torch.randn(700, 30, generator=generator, dtype=torch.float64)).Q
        signal = (left * torch.logspace(0, -4, 30)) @ right.T
        noise = 4e-7 * torch.randn(600, 700, generator=generator, dtype=torch.float64)
        assert numerical_rank(signal + noise, 1e-5).rank == 30


def test_exact_zeros_behind_the_rounding_do_not_end_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(64, 40, generator=generator) * 10.0 ** -torch.linspace(0, 4, 40)
    matrix = torch.zeros(64, 60, dtype=torch.float64)  # twelve of its inputs were zero for all positions
    matrix[:, :48] = (product @ torch.randn(40, 48, generator=generator)).double()
    assert numerical_rank(matrix, torch.finfo(torch.float32).eps).rank == 40


def test_full_rank_and_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    full = numerical_rank(torch.randn(30, 20, generator=generator, dtype=torch.float64), 1e-7)
    assert (full.rank, full.margin) == (20, 1.0)
    assert numerical_rank(torch.zeros(5, 4, dtype=torch.float64), 1e-7).rank == 0


def test_deepspeech1_gives_its_length_away_in_every_wide_layer() -> None:
    rows = {row.layer: row for row in rank_scan(observe(small_deepspeech1(), batch_of(45)))}
    for layer in ("input_layers.0", "input_layers.1", "input_layers.2", "recurrence", "hidden_layer"):
        assert (rows[layer].rank, rows[layer].verdict) == (45, "span exposed"), layer
    assert rows["output"].verdict == "saturated"


def test_deepspeech2_convolutions_are_saturated_and_its_first_recurrence_is_not() -> None:
    batch = batch_of(51, num_features=257)
    rows = {row.layer: row for row in rank_scan(observe(small_deepspeech2(hidden_size=64), batch))}
    assert rows["convolutions.0"].verdict == "saturated"
    assert (rows["recurrences.0"].rank, rows["recurrences.0"].verdict) == ((51 - 9) // 2, "span exposed")


def test_any_module_can_be_scanned() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(26, 50), nn.Tanh(), nn.Linear(50, 29))

        def output_lengths(self, num_frames: torch.Tensor) -> torch.Tensor:
            return num_frames

        def forward(self, features: torch.Tensor, num_frames: torch.Tensor):
            return self.body(features), num_frames

    rows = rank_scan(observe(Plain(), batch_of(9)))
    assert [row.layer for row in rows] == ["body.0", "body.2"]
    assert rows[0].rank == 9
