"""Frames, their order, direction and strength come out of the recurrence's own update, whichever cell it has."""

from functools import partial

import pytest
import torch
from test_frames import basis_of, sparse_frames

from overheard.attacks.deepspeech2 import frame_order
from overheard.attacks.deepspeech2.chain import Chain, follow_states
from overheard.attacks.deepspeech2.frame_order import Stopped, Timeline, Way, order_frames
from overheard.attacks.deepspeech2.sparse_rays import make_cone
from overheard.attacks.deepspeech2.state_map import make_state_map
from overheard.attacks.deepspeech2.trajectory import make_direction
from overheard.recognition.recurrence import CellName, Recurrence

CELLS: tuple[CellName, ...] = ("gru", "lstm", "tanh")
COUNT, UNITS, HIDDEN = 10, 200, 40


def speech(seed: int = 0) -> torch.Tensor:
    frames = sparse_frames(COUNT, UNITS, seed, likeness=0.5)
    return frames * torch.linspace(0.1, 0.5, COUNT, dtype=torch.float64)[:, None]


def heard(cell: CellName, *utterances: torch.Tensor, noise: float = 0.0) -> tuple[Recurrence, tuple[Way, Way]]:
    """A layer that has heard utterances, and what its update, noise relative to its size added, says of each way.

    The layer's own gradients are that update.
    """
    generator = torch.Generator().manual_seed(1)
    layer = Recurrence(cell, UNITS, HIDDEN, bias=False, generator=generator).double()
    for frames in utterances:
        states = layer(frames[:, None])[:, 0]
        (states * torch.randn(states.shape, generator=generator, dtype=torch.float64)).sum().backward()
    for weight in layer.parameters():
        assert weight.grad is not None
        drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.grad += noise * weight.grad.norm() / drawn.norm() * drawn
    basis = basis_of(torch.cat(utterances))

    def way(suffix: str) -> Way:
        into_gates, recurrent = (getattr(layer, f"weight_{kind}_l0{suffix}").grad for kind in ("ih", "hh"))
        direction = make_direction(layer, suffix, recurrent, len(basis) - len(utterances))
        return Way(direction, make_state_map(cell, into_gates, recurrent, basis, len(utterances)))

    return layer, (way(""), way("_reverse"))


def order(basis: torch.Tensor, ways: tuple[Way, Way], zero_share: float = 0.35) -> Timeline | Stopped:
    return order_frames(basis, make_cone(basis, zero_share, 0.0), ways, 1e-3, torch.Generator().manual_seed(0))


check = partial(torch.testing.assert_close, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_is_the_layers_own(cell: CellName) -> None:
    frames = speech()
    layer, (forward, _) = heard(cell, frames)
    state = forward.direction.start()
    for frame, expected in zip(frames, layer(frames[:, None])[:, 0, 0], strict=True):
        state = forward.direction.step(frame @ forward.direction.into_gates.T, state)
        torch.testing.assert_close(state[0], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_every_state_names_the_frame_behind_it(cell: CellName) -> None:
    frames = speech()
    basis = basis_of(frames)
    layer, (forward, backward) = heard(cell, frames)
    states = layer(frames[:, None])[:, 0].detach()
    for way, before, behind in ((forward, states[:-1, 0], frames[1:]), (backward, states[1:, 1], frames[:-1])):
        first = way.states.firsts[0]
        expected = behind @ basis.T
        found = before @ way.states.frames
        check(found - torch.outer(found @ first, first), expected - torch.outer(expected @ first, first))
    check((forward.states.firsts @ basis).abs(), frames[:1] / frames[0].norm())


def test_noise_of_the_update_is_told_beforehand() -> None:
    frames = speech()
    _, (way, _) = heard("gru", frames, noise=1e-6)
    forward = way.direction
    state, outside = forward.start(), []
    for frame in frames[:-1]:
        state = forward.step(frame @ forward.into_gates.T, state)
        outside.append(float(forward.outside_part(state).norm()))
    assert 0.1 * forward.blur < max(outside) < 3 * forward.blur


@pytest.mark.parametrize("cell", CELLS)
def test_a_timeline_from_the_update_alone(cell: CellName) -> None:
    frames = speech()
    _, ways = heard(cell, frames)
    found = order(basis_of(frames), ways)
    assert isinstance(found, Timeline)
    assert found.certified == COUNT
    check(found.coordinates @ basis_of(frames), frames)


def test_frames_that_are_nearly_one_are_told_apart() -> None:
    frames = speech()
    for place in (3, 4, 5):
        frames[place] = 0.99 * frames[place - 1] + 0.01 * frames[place]
    _, ways = heard("gru", frames)
    found = order(basis_of(frames), ways)
    assert isinstance(found, Timeline)
    check(found.coordinates @ basis_of(frames), frames, atol=3e-4)


def test_the_state_behind_the_last_frame_says_nothing_about_it() -> None:
    """In silence the state hardly moves, so that the last one is near the span of those before it."""
    frames = speech()
    for place in (6, 7, 8, 9):
        frames[place] = frames[place - 1] + 0.02 * frames[place]
    _, (way, _) = heard("gru", frames)
    basis = basis_of(frames)
    first = torch.nn.functional.normalize(frames[0] @ basis.T, dim=0)
    chain = follow_states(way.direction, way.states, make_cone(basis, 0.35, 0.0), basis, first, 1e-3)
    assert chain.residuals[-1] < 0.03
    assert not chain.certified[-1]
    check(chain.rows @ basis, frames, atol=1e-4)


def test_few_zeros_are_enough() -> None:
    frames = sparse_frames(COUNT, UNITS, seed=3) + 0.05
    frames[:, ::10] = sparse_frames(COUNT, UNITS // 10, seed=4)
    _, ways = heard("gru", frames)
    found = order(basis_of(frames), ways)
    assert isinstance(found, Timeline)
    assert found.certified < COUNT
    check(found.coordinates @ basis_of(frames), frames, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_frames_of_either_sign_come_in_order(cell: CellName) -> None:
    frames = speech() - 0.02
    for signed in (frames, -frames):
        _, ways = heard(cell, signed)
        found = order(basis_of(signed), ways)
        assert isinstance(found, Timeline)
        came = found.coordinates @ basis_of(signed)
        # A tanh cell without biases hears the negative as its negative.
        check(came.abs() if cell == "tanh" else came, signed.abs() if cell == "tanh" else signed, atol=3e-4)


def test_two_utterances_are_told_apart() -> None:
    frames = speech()
    _, ways = heard("gru", frames[:6], frames[6:])
    found = order(basis_of(frames), ways)
    assert isinstance(found, Timeline)
    assert sorted(found.lengths) == [4, 6]
    ordered = frames if found.lengths[0] == 6 else frames.roll(4, 0)
    check(found.coordinates @ basis_of(frames), ordered)


def test_chains_that_break_off_need_only_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = speech()
    _, ways = heard("gru", frames)

    def broken(*arguments) -> Chain:
        """The seventh frame is wrong, and its state shows it."""
        whole = follow_states(*arguments)
        rows = torch.cat([whole.rows[:6], whole.rows[:1]])
        return Chain(rows, (*whole.residuals[:6], 1.0), (*whole.certified[:6], False))

    monkeypatch.setattr(frame_order, "follow_states", broken)
    found = order(basis_of(frames), ways)
    assert isinstance(found, Timeline)
    check(found.coordinates @ basis_of(frames), frames)


def test_a_path_that_cannot_go_on_says_where() -> None:
    _, ways = heard("gru", speech())
    stopped = order(basis_of(sparse_frames(COUNT, UNITS, seed=9)), ways)
    assert isinstance(stopped, Stopped)
    assert "forward path reaches 1" in stopped.reason
