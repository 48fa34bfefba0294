"""Tiled convolutions are torch's own, and so are their first and second derivatives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional

from overheard.recognition import tiled_convolution
from overheard.recognition.tiled_convolution import FEWEST_TAPS, TiledConvolutions, tiled_conv2d

Pair = tuple[int, int]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.tuples(st.integers(1, 9), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.integers(0, 70), st.integers(0, 40)),
)
def test_equals_torch(count: int, channels: int, kernel: Pair, stride: Pair, padding: Pair, more: Pair) -> None:
    """All that a matching step asks for: outputs, gradients, and how those change along directions."""
    size = [max(1, taps - 2 * zeros) + extra for taps, zeros, extra in zip(kernel, padding, more, strict=True)]
    inputs, weight, bias = drawn(count, channels, *size), drawn(4, channels, *kernel, seed=1), drawn(4, seed=2)
    results = []
    for convolve in (tiled_conv2d, functional.conv2d):
        outputs = convolve(inputs, weight, bias, stride, padding)
        above = drawn(*outputs.shape, seed=3)
        first = grad(outputs, (inputs, weight, bias), above, create_graph=True)
        along = [drawn(*each.shape, seed=4 + k).detach() for k, each in enumerate(first)]
        second = grad(first, (inputs, weight, above), along)
        results.append([outputs, *first, *second])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("size", "kernel", "stride"), [((1, 1), (1, 1), (1, 1)), ((5, 6), (2, 3), (2, 1))])
def test_derivatives_are_right_by_differences(size: Pair, kernel: Pair, stride: Pair, monkeypatch) -> None:
    monkeypatch.setattr(tiled_convolution, "SHORTEST_TILE", 2)
    inputs, weight, bias = drawn(1, 2, *size), drawn(1, 2, *kernel, seed=1), drawn(1, seed=2)

    def convolve(*tensors: Tensor) -> Tensor:
        return tiled_conv2d(*tensors, stride=stride, padding=(1, 0))

    assert torch.autograd.gradcheck(convolve, (inputs, weight, bias))
    assert torch.autograd.gradgradcheck(convolve, (inputs, weight, bias))


def test_float32_keeps_its_digits() -> None:
    inputs, weight = drawn(1, 32, 60, 90, dtype=torch.float32), drawn(16, 32, 21, 11, seed=1, dtype=torch.float32)
    wanted = functional.conv2d(inputs.double(), weight.double(), stride=(2, 1))
    error = tiled_conv2d(inputs, weight, stride=(2, 1)) - wanted
    assert (error.norm() / wanted.norm()).item() < 1e-6


def test_large_kernels_alone_are_tiled(monkeypatch) -> None:
    taken: list[int] = []

    def noted(inputs: Tensor, weight: Tensor, *rest: object) -> Tensor:
        taken.append(weight.shape[3])
        return inputs

    monkeypatch.setattr(tiled_convolution, "tiled_conv2d", noted)
    inputs = torch.zeros(1, 2, 40, FEWEST_TAPS + 5)
    with TiledConvolutions():
        torch.nn.Conv2d(2, 2, (1, FEWEST_TAPS), padding=(1, 2))(inputs)
        assert taken == [FEWEST_TAPS]
        torch.nn.Conv2d(2, 2, (1, FEWEST_TAPS - 1))(inputs)
        torch.nn.Conv2d(2, 2, (1, FEWEST_TAPS), groups=2)(inputs)
        torch.nn.Conv2d(2, 2, (5, 15), dilation=2)(inputs)
        torch.nn.Conv2d(2, 2, (1, FEWEST_TAPS + 1), padding="same")(inputs)
        torch.nn.Conv2d(2, 2, (1, FEWEST_TAPS))(inputs[0])
    torch.nn.Conv2d(2, 2, (1, FEWEST_TAPS))(inputs)
    assert len(taken) == 1
