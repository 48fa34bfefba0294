"""Frames that are nearly right come out as exactly as the update's noise lets them, from pairs and zeros together."""

from dataclasses import replace

import pytest
import torch
from test_chain import CELLS, heard, order, speech
from test_frames import basis_of

from overheard.attacks.conjugate_gradients import conjugate_gradients
from overheard.attacks.deepspeech2.frame_order import Timeline, Way
from overheard.attacks.deepspeech2.joint_frames import JointFrames, fit_frames
from overheard.recognition.recurrence import CellName, Recurrence


def fit(layer: Recurrence, ways: tuple[Way, Way], basis: torch.Tensor, timeline: Timeline) -> JointFrames:
    return fit_frames(input_update(layer), basis, timeline, ways)


def input_update(layer: Recurrence) -> torch.Tensor:
    return torch.cat([getattr(layer, f"weight_ih_l0{suffix}").grad for suffix in ("", "_reverse")])


def off(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(((found - true).norm(dim=1) / true.norm(dim=1)).max())


@pytest.mark.parametrize("cell", CELLS)
def test_strengths_and_directions_come_out_together(cell: CellName) -> None:
    frames = speech()
    basis, generator = basis_of(frames), torch.Generator().manual_seed(0)
    layer, ways = heard(cell, frames)
    true = frames @ basis.T
    moved = true + 1e-3 * true.norm(dim=1, keepdim=True) * torch.randn(true.shape, generator=generator).double()
    fitted = fit(layer, ways, basis, Timeline(moved, (len(frames),), 0, 0.0, 0.0))
    assert off(fitted.coordinates, true) < 1e-6 < off(moved, true)
    assert fitted.misfit[1] < 1e-3 * fitted.misfit[0]


def test_several_utterances_and_noise() -> None:
    frames = speech()
    basis = basis_of(frames)
    layer, ways = heard("gru", frames[:6], frames[6:], noise=1e-6)
    timeline = order(basis, ways)
    assert isinstance(timeline, Timeline)
    true = (frames if timeline.lengths[0] == 6 else frames.roll(4, 0)) @ basis.T
    fitted = fit(layer, ways, basis, timeline)
    assert off(fitted.coordinates, true) < 0.3 * off(timeline.coordinates, true)
    assert fitted.misfit[1] < 3
    silent = fitted.coordinates @ basis - true @ basis
    ratio = (silent / fitted.noise)[:, frames.amax(dim=0) > 0]
    assert 0.1 < float(ratio.square().mean().sqrt()) < 3


def test_frames_of_something_else_stay_and_their_misfit_shows_it() -> None:
    frames = speech()
    basis = basis_of(frames)
    layer, ways = heard("gru", frames, noise=1e-6)
    timeline = order(basis, ways)
    assert isinstance(timeline, Timeline)
    swapped = replace(timeline, coordinates=timeline.coordinates.roll(3, 0))
    assert fit(layer, ways, basis, swapped).misfit[1] > 100


def test_conjugate_gradients_solve() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(12, dtype=torch.float64)
    right = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    diagonal = matrix.diagonal()[:, None]
    found = conjugate_gradients(lambda x: matrix @ x, right, lambda x: x / diagonal, 40, 1e-24)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))
