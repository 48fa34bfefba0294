"""Order, direction and strength come out of the recurrence's own update, whichever cell it has."""

import pytest
import torch
from test_frames import basis_of, sparse_frames

from overheard.attacks.frame_order import Stopped, Timeline, order_frames
from overheard.attacks.missing_frames import solve_frame
from overheard.attacks.trajectory import Direction, follow, make_direction, open_path
from overheard.recognition.recurrence import CellName, Recurrence

CELLS: tuple[CellName, ...] = ("gru", "lstm", "tanh")
COUNT, UNITS, HIDDEN = 10, 200, 40


def heard(cell: CellName, frames: torch.Tensor) -> tuple[Recurrence, tuple[Direction, Direction]]:
    """A layer that has heard frames, and what its update says of each direction."""
    generator = torch.Generator().manual_seed(1)
    layer = Recurrence(cell, UNITS, HIDDEN, bias=False, generator=generator).double()
    states = layer(frames[:, None])[:, 0]
    (states * torch.randn(states.shape, generator=generator, dtype=torch.float64)).sum().backward()
    made = []
    for suffix in ("", "_reverse"):
        update = getattr(layer, f"weight_hh_l0{suffix}").grad
        made.append(make_direction(layer, suffix, update, len(frames) - 1))
    return layer, (made[0], made[1])


def speech(seed: int = 0) -> torch.Tensor:
    frames = sparse_frames(COUNT, UNITS, seed, likeness=0.5)
    return frames * torch.linspace(0.1, 0.5, COUNT, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_is_the_layers_own(cell: CellName) -> None:
    frames = speech()
    layer, (forward, _) = heard(cell, frames)
    state = forward.start()
    for frame, expected in zip(frames, layer(frames[:, None])[:, 0, 0], strict=True):
        state = forward.step(frame @ forward.into_gates.T, state)
        torch.testing.assert_close(state[0], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_the_path_names_order_and_strength(cell: CellName) -> None:
    frames = speech()
    shuffle = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    _, (forward, backward) = heard(cell, frames)
    units = torch.nn.functional.normalize(frames, dim=1)[shuffle]
    for direction, order in ((forward, range(COUNT - 1)), (backward, range(COUNT - 1, 0, -1))):
        path = follow(direction, units, open_path(direction), 1e-6, COUNT - 1)
        assert shuffle[list(path.order)].tolist() == list(order)
        expected = frames[list(order)].norm(dim=1)
        torch.testing.assert_close(torch.tensor(path.strengths, dtype=torch.float64), expected, rtol=1e-5, atol=0)


def test_noise_of_the_update_is_told_beforehand() -> None:
    frames = speech()
    layer, _ = heard("gru", frames)
    clean = layer.weight_hh_l0.grad
    assert isinstance(clean, torch.Tensor)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    forward = make_direction(layer, "", clean + 1e-6 * clean.norm() / noise.norm() * noise, COUNT - 1)
    state, outside = forward.start(), []
    for frame in frames[:-1]:
        state = forward.step(frame @ forward.into_gates.T, state)
        outside.append(float(forward.outside_part(state).norm()))
    assert 0.1 * forward.blur < max(outside) < 3 * forward.blur


def test_frames_that_were_never_heard_fit_nowhere() -> None:
    _, (forward, _) = heard("gru", speech())
    others = torch.nn.functional.normalize(sparse_frames(COUNT, UNITS, seed=9), dim=1)
    assert follow(forward, others, open_path(forward), 1e-3, COUNT - 1).order == ()


@pytest.mark.parametrize("cell", CELLS)
def test_a_missing_frame_is_solved_for(cell: CellName) -> None:
    frames = speech()
    basis = basis_of(frames)
    _, (forward, _) = heard(cell, frames)
    state = forward.start()
    for frame in frames[:4]:
        state = forward.step(frame @ forward.into_gates.T, state)
    neighbour = frames[4] + 0.3 * (frames[3] - frames[4])
    row, residual = solve_frame(forward, basis, state, neighbour @ basis.T)
    assert residual < 1e-5
    torch.testing.assert_close(row @ basis, frames[4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("missing", [(), (0,), (COUNT - 1,), (4, 5, 6)])
def test_a_timeline_from_shuffled_and_missing_frames(missing: tuple[int, ...]) -> None:
    frames = speech()
    # Missing frames are those that resemble their neighbours.
    for place in missing:
        frames[place] = 0.9 * frames[place - 1 if place else 1] + 0.1 * frames[place]
    basis = basis_of(frames)
    _, directions = heard("gru", frames)
    units = torch.nn.functional.normalize(frames @ basis.T, dim=1)
    kept = [place for place in (7, 2, 9, 0, 5, 1, 8, 3, 6, 4) if place not in missing]
    found = order_frames(basis, units[kept], directions, 0.35)
    assert isinstance(found, Timeline)
    assert found.solved == len(missing)
    torch.testing.assert_close(found.frames, frames, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("missing", [(), (3,), (0, 7)])
def test_two_utterances_are_told_apart(missing: tuple[int, ...]) -> None:
    frames = speech()
    for place in missing:
        frames[place] = 0.9 * frames[place + 1] + 0.1 * frames[place]
    basis = basis_of(frames)
    generator = torch.Generator().manual_seed(1)
    layer = Recurrence("gru", UNITS, HIDDEN, bias=False, generator=generator).double()
    for part in frames.split([6, 4]):
        states = layer(part[:, None])[:, 0]
        (states * torch.randn(states.shape, generator=generator, dtype=torch.float64)).sum().backward()
    forward, backward = (
        make_direction(layer, suffix, getattr(layer, f"weight_hh_l0{suffix}").grad, len(frames) - 2)
        for suffix in ("", "_reverse")
    )
    units = torch.nn.functional.normalize(frames @ basis.T, dim=1)
    kept = [place for place in (7, 2, 9, 0, 5, 1, 8, 3, 6, 4) if place not in missing]
    found = order_frames(basis, units[kept], (forward, backward), 0.35, utterances=2)
    assert isinstance(found, Timeline)
    assert found.solved == len(missing)
    assert sorted(found.lengths) == [4, 6]
    ordered = frames if found.lengths[0] == 6 else frames.roll(4, 0)
    torch.testing.assert_close(found.frames, ordered, rtol=1e-3, atol=1e-3)


def test_a_path_that_cannot_go_on_says_where() -> None:
    _, directions = heard("gru", speech())
    others = basis_of(sparse_frames(COUNT, UNITS, seed=9))
    stopped = order_frames(others, torch.empty(0, COUNT, dtype=torch.float64), directions, 0.35)
    assert isinstance(stopped, Stopped)
    assert "forward path reaches 0" in stopped.reason
