"""Windows read off a `StateSpan`: the newest frames of one, and all frames of many together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.state_refinement import refine_states
from overheard.attacks.decoding.window_fit import Fit, levenberg_marquardt
from overheard.attacks.spans.recurrent_layer import CellSlopes, cell_slopes
from overheard.attacks.spans.state_span import UNSEEN, StateSpan
from overheard.attacks.spans.window_refinement import Refinement
from overheard.attacks.windows import WindowedLayer

POLISHING = 4
"""Linearisations at most where frames are to be as exact as can be."""


class StateReader:
    """Reads utterances from one edge; see `reader.Reader`. Keeps the states of the rows it last heard of."""

    unseen = UNSEEN
    hides_repeats = False
    clear = True  # states of all positions are as large

    def __init__(self, span: StateSpan, layer: WindowedLayer) -> None:
        """Args:
        span: of the direction that reads from this edge.
        layer: windows and padding, as they are read from there.
        """
        self.layer, self._span = layer, span
        self._rows = torch.zeros(0, layer.num_features)
        self._states = self._memories = span.basis[:0]

    @property
    def rank(self) -> int:
        """Directions that all states span."""
        return self._span.found.rank

    def newest(self, rows: Float[Tensor, "R F"], count: int) -> Callable[[Float[Tensor, " U"]], Fit]:
        """Levenberg-Marquardt on Pi h / |h|, of the state h that the next window leads to."""
        span, windowed = self._span, self._span.layer.stages[0]
        known = self.layer.held(rows, count)
        offset = windowed.weight[:, : len(known)] @ known + windowed.bias
        weight = windowed.weight[:, len(known) :].contiguous()
        state, memory = self._before(rows, (len(rows) + count - self.layer.window) // self.layer.stride)
        onward = span.layer.onward @ state + span.layer.onward_bias

        def fit(start: Float[Tensor, " U"]) -> Fit:
            unknowns, point, _ = levenberg_marquardt(
                lambda unknowns: _Point.at(span, offset, weight, unknowns, onward, memory), start
            )
            _, residual, expected = span.outside(point.state)
            return Fit(unknowns, float(residual), float(expected), point.size)

        return fit

    def together(self, rows: Float[Tensor, "R F"], free: tuple[int, int], ended: bool, steps: int) -> Refinement:
        """See `state_refinement`."""
        return refine_states(self._span, self.layer, self._run, rows.float(), free, ended, steps)

    def polished(self, rows: Float[Tensor, "R F"], free: tuple[int, int], ended: bool) -> Refinement:
        """The same until nothing changes: states are not known better than float32 tells."""
        return self.together(rows, free, ended, POLISHING)

    def _before(self, rows: Float[Tensor, "R F"], position: int) -> tuple[Float[Tensor, " H"], Float[Tensor, " H"]]:
        """State and memory ahead of a position."""
        if position == 0:
            return self._span.layer.nothing, self._span.layer.nothing
        states, memories = self._run(rows, position)
        return states[-1], memories[-1]

    def _run(self, rows: Float[Tensor, "R F"], count: int) -> tuple[Float[Tensor, "P H"], Float[Tensor, "P H"]]:
        """States and memories at the first `count` positions; where windows are as they were, none is run again."""
        layer, recurrent = self.layer, self._span.layer
        common = min(len(rows), len(self._rows))
        changed = (rows[:common] != self._rows[:common]).any(dim=1).nonzero()
        same = int(changed[0]) if len(changed) else common
        kept = min(len(self._states), count, max(0, (same - layer.window) // layer.stride + 1))
        states, memories = self._states[:kept], self._memories[:kept]
        if kept < count:
            last = (states[-1], memories[-1]) if kept else (recurrent.nothing, recurrent.nothing)
            more = recurrent.run(layer.cut(rows)[kept:count], *last)
            states, memories = torch.cat([states, more[0]]), torch.cat([memories, more[1]])
        self._rows, self._states, self._memories = rows, states, memories
        return states, memories


@dataclass(frozen=True)
class _Point:
    """Residual Pi h / |h| of one state, and what its Jacobian takes."""

    span: StateSpan
    weight: Float[Tensor, "O U"]
    stage_slopes: list[Tensor]
    slopes: CellSlopes
    state: Float[Tensor, " H"]
    residual: Float[Tensor, " E"]
    size: float

    @staticmethod
    def at(
        span: StateSpan,
        offset: Float[Tensor, " O"],
        weight: Float[Tensor, "O U"],
        unknowns: Float[Tensor, " U"],
        onward: Float[Tensor, " K"],
        memory: Float[Tensor, " H"],
    ) -> "_Point":
        layer = span.layer
        shown, stage_slopes = layer.shown(offset + weight @ unknowns)
        state, _, slopes = cell_slopes(layer.cell, layer.inward @ shown + layer.inward_bias, onward, memory)
        size = max(float(state.norm()), torch.finfo(state.dtype).tiny)
        return _Point(span, weight, stage_slopes, slopes, state, (state @ span.equations) / size, size)

    def jacobian(self) -> Float[Tensor, "E U"]:
        layer = self.span.layer
        moved = layer.through(self.slopes.state_inward, layer.moved(self.weight, self.stage_slopes))
        growth = self.state @ moved / self.size**2
        return (self.span.equations.T @ moved) / self.size - torch.outer(self.residual, growth)
