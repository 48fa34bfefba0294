"""Sparse non-negative frames come back from the subspace they span, and nothing else is certified."""

import pytest
import torch

from overheard.attacks.frames import certify_frames, find_frames


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


def matches(found: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize
    return unit(found, dim=1) @ unit(frames, dim=1).T > 1 - 1e-6


@pytest.mark.parametrize(("count", "units", "likeness"), [(2, 300, 0.0), (5, 200, 1.0), (16, 300, 0.0), (16, 300, 2.0)])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_every_frame_comes_back_once(count: int, units: int, likeness: float, noise: float) -> None:
    frames = sparse_frames(count, units, seed=count, likeness=likeness)
    basis = basis_of(frames, noise)
    found = find_frames(basis, 0.35, 4, torch.Generator().manual_seed(0))
    match = matches(found.coordinates @ basis, frames)
    assert len(found.coordinates) == count
    assert match.any(dim=1).all()
    assert match.any(dim=0).all()


def test_units_that_are_noise_do_not_mislead() -> None:
    frames = sparse_frames(16, 300, seed=2)
    frames[:, 100:] *= 1e-5
    noise = 1e-6 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.svd(frames + noise, full_matrices=False)[2]
    in_a_column = 1e-6 * float(torch.linalg.pinv(frames).norm())
    naive, careful = (
        find_frames(basis, 0.35, 1, torch.Generator().manual_seed(0), noise=each) for each in (0.0, in_a_column)
    )
    assert len(naive.coordinates) < 16
    assert matches(careful.coordinates @ basis, frames).any(dim=0).all()


def test_a_subspace_without_sparse_frames_gives_none() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.rand(200, 12, generator=generator, dtype=torch.float64)).Q.T
    assert len(find_frames(basis, 0.35, 2, generator).coordinates) == 0


def test_known_frames_are_kept_and_the_others_found() -> None:
    frames = sparse_frames(12, 300, seed=3)
    basis = basis_of(frames)
    found = find_frames(basis, 0.35, 4, torch.Generator().manual_seed(0), known=frames[:7] @ basis.T)
    assert len(found.coordinates) == 12
    assert matches(found.coordinates[:7] @ basis, frames).diagonal().all()


def test_a_guess_is_sharpened_and_a_mixture_is_not_certified() -> None:
    frames = sparse_frames(10, 300, seed=4)
    basis = basis_of(frames)
    near = frames[2] + 0.01 * frames.mean(dim=0)
    between = frames[0] + frames[1] + frames[2] + frames[3]
    rows, certified = certify_frames(basis, torch.stack([near, between]) @ basis.T, 0.35)
    assert certified[0]
    assert matches(rows[:1] @ basis, frames[2:3]).all()
    assert not certified[1] or bool(matches(rows[1:] @ basis, frames).any())


def test_equal_generators_give_equal_frames() -> None:
    basis = basis_of(sparse_frames(8, 200, seed=5))
    first, second = (find_frames(basis, 0.35, 2, torch.Generator().manual_seed(1)).coordinates for _ in range(2))
    torch.testing.assert_close(first, second)
