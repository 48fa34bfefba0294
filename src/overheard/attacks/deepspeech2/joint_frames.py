"""All frames at once: what a chain leaves wrong, taken out by everything that the update says about frames.

A chain finds frames one by one, and an error of one goes on into those behind it, the more where gradients are faint.
Together they are overdetermined, and how well each equation holds follows from the update's own noise:

    pairs    [a_t | s_{t-1}] lies in the span of pairs (`state_map`), s_{t-1} the state that all frames before leave,
             in both directions: what lies outside has noise of a known size
    zeros    a_t R is zero in hundreds of units, up to the noise of R

So least squares over all a_t: Gauss-Newton, each step by conjugate gradients, preconditioned by what each frame has of
its own, its state held. Which units are zero is weighed as by Geman and McClure (1987), (1 + (h / g)^2)^-2 / e^2 for a
unit h of noise e: the gate g is a few times what units lie below zero, and falls as frames come nearer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.conjugate_gradients import conjugate_gradients
from overheard.attacks.deepspeech2.frame_order import Timeline, Way

GATE = 4.0
"""Multiples of the size that units below zero have, at which one above zero counts a quarter."""

BELOW = 0.6745
"""Median of |v| for a standard normal v."""

NOISELESS = 1e-6
"""Part of the usual noise that a unit has at least: some columns of an update are exactly zero."""

ENERGY, MOST_ITERATIONS = 1e-5, 60
"""Part of a step's energy at which its conjugate gradients stop, and how many there are at most."""

SETTLED = 0.95
"""Part of the squares that a step must go below for another to follow."""


@dataclass(frozen=True)
class JointFrames:
    """Frames that fit best together.

    Attributes:
        coordinates: of the frames in the basis, strengths included; (P, P).
        noise: standard deviation of each unit of the frames, (P, C).
        misfit: of the pairs, root mean square in standard deviations of their noise, before and after.
    """

    coordinates: Float[Tensor, "P P"]
    noise: Float[Tensor, "P C"]
    misfit: tuple[float, float]


def fit_frames(
    matrix: Float[Tensor, "R C"],
    basis: Float[Tensor, "P C"],
    timeline: Timeline,
    ways: tuple[Way, Way],
    most_steps: int = 6,
) -> JointFrames:
    """Frames near those of a timeline.

    Args:
        matrix: update of the input weights of both directions, rows divided by their noise, float64.
        basis: orthonormal rows that span its rows.
        timeline: frames in order.
        ways: both directions.
        most_steps: of Gauss-Newton.
    """
    noise = _unit_noise(matrix, basis)
    rows, first, last = timeline.coordinates, 0.0, 0.0
    for step in range(most_steps):
        fitted, squares, misfit = _step(basis, rows, noise(rows), timeline.lengths, ways)
        first, last = (first if step else misfit[0]), misfit[1]
        if not squares[1] < squares[0]:
            last = misfit[0]
            break
        rows = fitted
        if squares[1] > SETTLED * squares[0]:
            break
    sizes = noise(rows)
    return JointFrames(rows, sizes * _excess(rows @ basis, sizes), (first, last))


def _unit_noise(
    matrix: Float[Tensor, "R C"], basis: Float[Tensor, "P C"]
) -> Callable[[Float[Tensor, "P P"]], Float[Tensor, "P C"]]:
    """Noise of each unit of frames with given coordinates: of its column of the update, times what the frame takes."""
    mixed = matrix @ basis.T
    rest = matrix - mixed @ basis
    column = rest.square().sum(dim=0).div(max(1, len(matrix) - len(basis))).sqrt()
    column = column.clamp(min=NOISELESS * float(column.median()) + torch.finfo(matrix.dtype).eps * float(mixed.std()))
    triangle = torch.linalg.qr(mixed).R
    return lambda rows: torch.linalg.solve_triangular(triangle.T, rows.T, upper=False).norm(dim=0)[:, None] * column


def _step(
    basis: Float[Tensor, "P C"],
    rows: Float[Tensor, "P P"],
    noise: Float[Tensor, "P C"],
    lengths: tuple[int, ...],
    ways: tuple[Way, Way],
) -> tuple[Float[Tensor, "P P"], tuple[float, float], tuple[float, float]]:
    """Frames a step on, the sum of squares and the misfit of pairs, each before and after."""
    weights = _zero_weights(rows @ basis, noise)
    sizes = [_pairs(way, basis, rows, lengths, backward)[1] for backward, way in enumerate(ways)]

    def outside(at: Float[Tensor, "P P"]) -> Float[Tensor, "2 P H"]:
        each = (_pairs(way, basis, at, lengths, backward)[0] for backward, way in enumerate(ways))
        return torch.stack([value / size for value, size in zip(each, sizes, strict=True)])

    blocks = torch.stack([(basis * each) @ basis.T for each in weights])
    for way, size in zip(ways, sizes, strict=True):
        own = way.states.pairs.frames_outside
        blocks += (own @ own.T) / size[:, :, None].square()
    factor = torch.linalg.cholesky_ex(blocks)[0]

    with torch.enable_grad():
        here = rows.clone().requires_grad_()
        left = outside(here)
        dual = torch.zeros_like(left, requires_grad=True)
        (back,) = torch.autograd.grad(left, here, dual, create_graph=True)

    def transposed(values: Tensor, units: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(left, here, values, retain_graph=True)
        return pulled + (weights * units) @ basis.T

    def normal(change: Tensor) -> Tensor:
        # `back` is linear in `dual`, so its gradient by that is the product with the Jacobian itself.
        (moved,) = torch.autograd.grad(back, dual, change, retain_graph=True)
        return transposed(moved, change @ basis)

    def precondition(right: Tensor) -> Tensor:
        return torch.cholesky_solve(right[..., None], factor)[..., 0]

    start = left.detach()
    there = rows + conjugate_gradients(normal, -transposed(start, rows @ basis), precondition, MOST_ITERATIONS, ENERGY)
    end = outside(there)
    squares = [
        float(each.square().sum() + (weights * (at @ basis).square()).sum())
        for each, at in ((start, rows), (end, there))
    ]
    misfits = [float(each.square().mean().sqrt()) for each in (start, end)]
    return there, (squares[0], squares[1]), (misfits[0], misfits[1])


def _zero_weights(units: Float[Tensor, "P C"], noise: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
    """How much each unit counts as a zero."""
    gate = GATE * _excess(units, noise)
    return (noise * (1 + (units / noise / gate).square())).square().reciprocal()


def _excess(units: Float[Tensor, "P C"], noise: Float[Tensor, "P C"]) -> Float[Tensor, "P 1"]:
    """How many times as far as noise puts them units of each frame lie below zero; 1 at least."""
    below = torch.where(units < 0, -units / noise, torch.nan).nanmedian(dim=1, keepdim=True).values.nan_to_num()
    return (below / BELOW).clamp(min=1.0)


def _pairs(
    way: Way, basis: Float[Tensor, "P C"], rows: Float[Tensor, "P P"], lengths: tuple[int, ...], backward: int
) -> tuple[Float[Tensor, "P H"], Float[Tensor, "P 1"]]:
    """What of each frame and the state before it lies outside the span of pairs, and its noise."""
    direction, pairs = way.direction, way.states.pairs
    outside, noise = [], []
    for utterance in rows.split(lengths):
        heard = utterance.flip(0) if backward else utterance
        state, states = direction.start(), []
        for projections in heard @ (basis @ direction.into_gates.T):
            states.append(state[0])
            state = direction.step(projections, state)
        before = torch.stack(states)
        before = before.flip(0) if backward else before
        outside.append(pairs.outside(utterance, before))
        noise.append(pairs.noise(utterance, before))
    return torch.cat(outside), torch.cat(noise)
