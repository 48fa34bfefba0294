"""Sparse non-negative frames come back from the subspace they span, and nothing else is certified."""

import pytest
import torch

from overheard.attacks.deepspeech2.frames import find_frames
from overheard.attacks.deepspeech2.sparse_rays import make_cone, settle


def sparse_frames(count: int, units: int, seed: int, likeness: float = 0.0) -> torch.Tensor:
    """Rectified mixtures: what a convolution with a rectifier gives; `likeness` is what all frames share."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, units, generator=generator, dtype=torch.float64)
    own = torch.randn(count, units, generator=generator, dtype=torch.float64)
    return (likeness * shared + own).clamp(min=0.0)


def basis_of(frames: torch.Tensor, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(2 * len(frames), len(frames), generator=generator, dtype=torch.float64) @ frames
    mixed = mixed + noise * mixed.std() * torch.randn(mixed.shape, generator=generator, dtype=torch.float64)
    return torch.linalg.svd(mixed, full_matrices=False)[2][: len(frames)]


def find(basis: torch.Tensor, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    return find_frames(make_cone(basis, 0.35, noise), torch.Generator().manual_seed(seed))


def matches(found: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize
    return unit(found, dim=1) @ unit(frames, dim=1).T > 1 - 1e-6


@pytest.mark.parametrize(("count", "units", "likeness"), [(2, 300, 0.0), (5, 200, 1.0), (16, 300, 0.0), (16, 300, 2.0)])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_every_frame_comes_back_once(count: int, units: int, likeness: float, noise: float) -> None:
    frames = sparse_frames(count, units, seed=count, likeness=likeness)
    basis = basis_of(frames, noise)
    found = find(basis)
    match = matches(found @ basis, frames)
    assert len(found) == count
    assert match.any(dim=1).all()
    assert match.any(dim=0).all()


def test_units_that_are_noise_do_not_mislead() -> None:
    frames = sparse_frames(16, 300, seed=2)
    frames[:, 100:] *= 1e-5
    noise = 1e-6 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.svd(frames + noise, full_matrices=False)[2]
    in_a_column = 1e-6 * float(torch.linalg.pinv(frames).norm())
    naive, careful = (find(basis, each) for each in (0.0, in_a_column))
    assert len(naive) < 16
    assert matches(careful @ basis, frames).any(dim=0).all()


def test_a_subspace_without_sparse_frames_gives_none() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.rand(200, 12, generator=generator, dtype=torch.float64)).Q.T
    assert len(find(basis)) == 0


def test_a_guess_is_settled_and_a_mixture_is_not_certified() -> None:
    frames = sparse_frames(10, 300, seed=4)
    basis = basis_of(frames)
    cone = make_cone(basis, 0.35, 0.0)
    row, certified, _ = settle(cone, (frames[2] + 1e-3 * frames.mean(dim=0)) @ basis.T)
    assert certified
    assert matches(row[None] @ basis, frames[2:3]).all()
    _, certified, _ = settle(cone, (frames[0] + frames[1] + frames[2] + frames[3]) @ basis.T)
    assert not certified


def test_rounding_of_a_settled_frame_has_no_side() -> None:
    frames = sparse_frames(10, 300, seed=4)
    basis = basis_of(frames, noise=1e-6)
    row, certified, _ = settle(make_cone(basis, 0.35, 0.0), frames[2] @ basis.T)
    assert certified
    below = ((row @ basis)[frames[2] == 0] < 0).double().mean()
    assert 0.35 < float(below) < 0.65


def test_equal_generators_give_equal_frames() -> None:
    basis = basis_of(sparse_frames(8, 200, seed=5))
    torch.testing.assert_close(find(basis, seed=1), find(basis, seed=1))
