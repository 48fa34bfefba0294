"""Rectifiers whose side two passes leave open take the other one; the rest stays as it is."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from overheard.attacks.certificates.switched_kinks import switched_kinks, watched_kinks

FUNCTIONS = {
    "relu": torch.relu,
    "method": lambda values: values.relu(),
    "in place": lambda values: (values * 1.0).relu_(),
    "module in place": lambda values: nn.ReLU(inplace=True)(values * 1.0),
    "hardtanh": lambda values: functional.hardtanh(values, 0.0, 20.0),
    "leaky": lambda values: functional.leaky_relu(values, 0.1),
}


def slopes(function, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    with watched_kinks() as seen:
        function(first)
    values = second.clone().requires_grad_()
    with switched_kinks(seen):
        found = function(values)
    return torch.autograd.grad(found.sum(), values)[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_undecided_units_change_sides(name: str) -> None:
    first = torch.tensor([[1e-7, -1e-7, 2e-7, 0.5, -0.5, 3.0]])
    second = first + torch.tensor([[3e-7, 1e-7, -4e-7, 2e-7, 3e-7, -1e-7]])
    low = 0.1 if name == "leaky" else 0.0
    # Whatever the second pass found, the slope that the first had not.
    assert slopes(FUNCTIONS[name], first, second)[0].tolist() == pytest.approx([low, 1.0, low, 1.0, low, 1.0])


def test_the_upper_kink_counts_too() -> None:
    first = torch.tensor([[19.999999, 20.000001, 10.0, 30.0]], dtype=torch.float64)
    second = first + 1e-6
    found = slopes(FUNCTIONS["hardtanh"], first, second)
    assert found[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_equal_passes_switch_nothing() -> None:
    values = torch.tensor([[1e-9, -1e-9, 1.0]])
    assert slopes(torch.relu, values, values)[0].tolist() == [1.0, 0.0, 1.0]
