"""Many frames fitted together to a `StateSpan`: Gauss-Newton on a band.

A state moves with the frames of its own window and, through the memory that each unit keeps to itself, with those of
the windows before, whose part is followed for some positions. What else went through W_hh is left out of derivatives,
not of residuals: a step takes about 0.7 of what is wrong away, and costs little where derivatives are used again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import cho_solve_banded
from torch import Tensor

from overheard.attacks.spans.recurrent_layer import cell_slopes
from overheard.attacks.spans.span_solver import error_draws, smallest_eigenvalue
from overheard.attacks.spans.state_span import UNSEEN, StateSpan
from overheard.attacks.spans.window_refinement import Refinement, banded_factor, summed_up
from overheard.attacks.windows import WindowedLayer

CARRIED = 8
"""Positions behind a window for which its part of the memory is followed; an LSTM halves it at each."""
CHORDS = 8
"""Steps at most with one set of derivatives."""
SETTLED = 0.9
"""Part of the sum of squares that a step must leave at most for another one to be worth it."""
HOPELESS = 100.0
"""Residual over that of rounding from which on frames are not near any that fit: a wrong length leaves a thousand."""

Run = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""States and memories (P, H) of rows (R, F) at the first so many positions."""


def refine_states(
    span: StateSpan,
    layer: WindowedLayer,
    run: Run,
    rows: Float[Tensor, "R F"],
    free: tuple[int, int],
    ended: bool,
    steps: int,
) -> Refinement:
    """The free frames, fitted until the residual falls no more or rounding alone is left.

    Args:
        span: of the states.
        layer: window, stride and padding.
        run: the recurrent layer on rows.
        rows: all from the padding ahead of the utterance on.
        free: first free row, and the one behind the last.
        ended: whether rows reach to the end of the padding behind the utterance, the last states of which nobody saw.
        steps: linearisations at most.
    """
    positions = (len(rows) - layer.window) // layer.stride + 1 - (UNSEEN if ended else 0)
    seen = range(layer.first_that_holds(free[0]), positions)
    here, iterations = _Residuals.at(span, run, rows, seen), 0
    while True:
        linear, before, steps = _Linear.at(span, layer, run, rows, free, seen), here.square, steps - 1
        for _ in range(CHORDS):
            moved = rows.clone()
            moved[free[0] : free[1]] -= linear.change(here.residual).to(rows)
            there = _Residuals.at(span, run, moved, seen)
            iterations += 1
            left = there.square / here.square
            if left < 1:
                rows, here = moved, there
            if left > SETTLED:
                break
        over = here.square / here.expected
        if steps <= 0 or here.square > SETTLED * before or not 1 < over < HOPELESS**2:
            break
    smallest = smallest_eigenvalue(linear.factor, linear.size)
    draws = error_draws(linear.factor, free[1] - free[0], layer.num_features)
    equations = len(seen) * span.num_equations - draws[0].numel()
    left = (here.square / here.size) ** 0.5, here.left
    return summed_up(rows, free, left, here.square / max(1, equations), smallest, draws, iterations)


@dataclass(frozen=True)
class _Residuals:
    """What of the states lies outside the span, its norm over that of rounding, and sums of squares: of what lies
    outside, as rounding makes it, and of states."""

    residual: Float[Tensor, "P E"]
    left: Float[Tensor, " P"]
    square: float
    expected: float
    size: float

    @staticmethod
    def at(span: StateSpan, run: Run, rows: Float[Tensor, "R F"], seen: range) -> "_Residuals":
        states = run(rows, seen.stop)[0][seen.start :]
        _, norms, expected = span.outside(states)
        sums = (float(each.square().sum()) for each in (norms, expected, states))
        return _Residuals(states @ span.equations, norms / expected, *sums)


@dataclass(frozen=True)
class _Block:
    """Derivatives of one position's equations by unknowns from `start` on."""

    start: int
    slopes: Float[Tensor, "E U"]


@dataclass(frozen=True)
class _Linear:
    """Equations as they are near some rows: derivatives, and J'J as a factorised band."""

    blocks: list[_Block]
    factor: tuple[np.ndarray, bool]
    num_features: int

    @staticmethod
    def at(
        span: StateSpan, layer: WindowedLayer, run: Run, rows: Float[Tensor, "R F"], free: tuple[int, int], seen: range
    ) -> "_Linear":
        blocks = _derivatives(span, layer, run, rows, free, seen)
        band = _band(blocks, (free[1] - free[0]) * layer.num_features, layer)
        return _Linear(blocks, (banded_factor(band), True), layer.num_features)

    @property
    def size(self) -> int:
        """Unknowns in all."""
        return self.factor[0].shape[1]

    def change(self, residual: Float[Tensor, "P E"]) -> Float[Tensor, "T F"]:
        """What is to be taken from the free rows."""
        gradient = np.zeros(self.size)
        for block, rest in zip(self.blocks, residual, strict=True):
            own = (block.slopes.T @ rest).double().numpy()
            gradient[block.start : block.start + len(own)] += own
        change = cho_solve_banded(self.factor, gradient, check_finite=False)
        return torch.from_numpy(change).view(-1, self.num_features)


def _derivatives(
    span: StateSpan, layer: WindowedLayer, run: Run, rows: Float[Tensor, "R F"], free: tuple[int, int], seen: range
) -> list[_Block]:
    recurrent, features, stride = span.layer, layer.num_features, layer.stride
    windowed = recurrent.stages[0]
    states, memories = run(rows, seen.stop)
    shown, slopes = recurrent.shown(layer.cut(rows)[seen.start : seen.stop] @ windowed.weight.T + windowed.bias)
    inward = shown @ recurrent.inward.T + recurrent.inward_bias
    reach = layer.window + CARRIED * stride
    # By memory: how it moves with the rows of the last windows, the newest last.
    by_memory = torch.zeros(states.shape[1], reach, features)
    blocks = []
    for index, position in enumerate(seen):
        state, memory = (states[position - 1], memories[position - 1]) if position else (recurrent.nothing,) * 2
        onward = recurrent.onward @ state + recurrent.onward_bias
        _, _, step = cell_slopes(recurrent.cell, inward[index], onward, memory)
        carried = torch.nn.functional.pad(by_memory[:, stride:], (0, 0, 0, stride))
        by_state, by_memory = (carried * each[:, None, None] for each in (step.state_memory, step.memory_memory))
        begin = position * stride
        oldest = begin + layer.window - reach
        first, last = max(free[0], begin), min(free[1], begin + layer.window)
        if first < last:
            columns = windowed.weight[:, (first - begin) * features : (last - begin) * features]
            moved = recurrent.moved(columns, [each[index] for each in slopes])
            place = slice(first - oldest, last - oldest)
            by_state[:, place] += recurrent.through(step.state_inward, moved).unflatten(1, (-1, features))
            by_memory[:, place] += recurrent.through(step.memory_inward, moved).unflatten(1, (-1, features))
        first = max(free[0], oldest)
        held = by_state[:, first - oldest : min(free[1], begin + layer.window) - oldest]
        blocks.append(_Block((first - free[0]) * features, span.equations.T @ held.flatten(1)))
    return blocks


def _band(blocks: list[_Block], size: int, layer: WindowedLayer) -> np.ndarray:
    """J'J of all equations, lower form."""
    width = min(size, (layer.window + CARRIED * layer.stride) * layer.num_features)
    band = np.zeros((width, size))
    for block in blocks:
        square = (block.slopes.T @ block.slopes).double().numpy()
        for column in range(len(square)):
            band[: len(square) - column, block.start + column] += square[column:, column]
    return band
