"""Every distance: zero at the observed update, its slope that of autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overheard.attacks.gradient_matching.distances import DISTANCES, DistanceConfig, build_distance
from overheard.errors import InputError


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def plain(kind: str, simulated: list[Tensor], observed: list[Tensor]) -> Tensor:
    """The definitions as they are written, for autograd."""
    g, t = (torch.cat([each.flatten() for each in side]) for side in (simulated, observed))
    l2 = (g - t).square().sum() / t.square().sum()
    cosine = 1 - torch.nn.functional.cosine_similarity(g, t, dim=0)
    pairs = zip(simulated, observed, strict=True)
    each = torch.stack([(a - b).square().sum() / b.square().sum() for a, b in pairs]).mean()
    return {"l2": l2, "cosine": cosine, "per-tensor": each, "cosine+l2": cosine + l2}[kind]


@given(kind=st.sampled_from(DISTANCES), rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 99))
def test_value_and_slope_are_those_of_autograd(kind: str, rows: int, columns: int, seed: int) -> None:
    shapes = ((rows, columns), (columns,), (2, rows, 3))
    observed, simulated = tensors(seed, *shapes), [each.requires_grad_() for each in tensors(seed + 100, *shapes)]
    expected = plain(kind, simulated, observed)
    value, slopes = build_distance(DistanceConfig(kind), observed)([each.detach() for each in simulated])
    assert value == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, simulated), strict=True):
        torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("kind", DISTANCES)
def test_only_the_largest_entries_count(kind: str, share: float) -> None:
    observed, simulated = tensors(0, (8, 5), (10,)), tensors(1, (8, 5), (10,))
    value, slopes = build_distance(DistanceConfig(kind, share), observed)(simulated)
    counted = sum(int((slope != 0).sum()) for slope in slopes)
    assert counted <= round(share * 50)
    threshold = torch.cat([each.abs().flatten() for each in observed]).sort(descending=True).values[round(share * 50)]
    for slope, target, other in zip(slopes, observed, simulated, strict=True):
        assert not slope[target.abs() <= threshold].any()
        other[target.abs() <= threshold] += 7.0
    assert build_distance(DistanceConfig(kind, share), observed)(simulated)[0] == pytest.approx(value)


@pytest.mark.parametrize("kind", DISTANCES)
def test_the_observed_update_is_at_distance_zero(kind: str) -> None:
    observed = tensors(3, (4, 4), (3,))
    value, slopes = build_distance(DistanceConfig(kind), observed)([each.clone() for each in observed])
    assert abs(value) < 1e-15
    assert all(float(slope.abs().max()) < 1e-8 for slope in slopes)


def test_cosine_resolves_small_angles_in_float32() -> None:
    observed = [torch.randn(100_000, generator=torch.Generator().manual_seed(0))]
    moved = [observed[0] + 1e-4 * torch.randn(100_000, generator=torch.Generator().manual_seed(1))]
    exact = plain("cosine", [moved[0].double()], [observed[0].double()])
    assert build_distance(DistanceConfig("cosine"), observed)(moved)[0] == pytest.approx(float(exact), rel=0.05)


def test_zero_updates_are_refused_and_a_zero_tensor_is_left_out() -> None:
    with pytest.raises(InputError, match="all zero"):
        build_distance(DistanceConfig(), [torch.zeros(3)])
    observed = [torch.zeros(3), torch.ones(2)]
    value, slopes = build_distance(DistanceConfig("per-tensor"), observed)([torch.ones(3), torch.ones(2)])
    assert value == 0.0
    assert not any(bool(slope.any()) for slope in slopes)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(InputError, match="l2"):
        DistanceConfig("l3")
    with pytest.raises(InputError, match="top_share"):
        DistanceConfig(top_share=0.0)
