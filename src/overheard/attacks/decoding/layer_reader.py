"""Windows read off an `ActivatedSpan`: the newest frames of one, and all frames of many together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.window_fit import AT_REST, Fit, levenberg_marquardt
from overheard.attacks.spans.activated_span import ActivatedSpan
from overheard.attacks.spans.input_span import CLEAR_MARGIN
from overheard.attacks.spans.window_refinement import ENOUGH, OUTLIER, Refinement, mean_hessian, refine
from overheard.attacks.windows import WindowedLayer

STEP_EQUATIONS = 256
"""For one window at least."""
PER_UNKNOWN = 2
"""Equations for each unknown, at least."""
PER_UNKNOWN_OF_LEAPS = 4
"""The same where several frames behind known ones are sought at once, from far off."""
NEARLY = 1e-3
"""Length of a step, relative to the newest frames, behind which one with all equations is the last."""
ON_THE_WAY = 3.0
"""Squared length of a step that is worth taking while frames are still to come, in units of rounding's error: they
will be fitted again."""
POLISHING = 4
"""Steps of Gauss-Newton at most where frames are to be as exact as can be."""

BRIDGING = 10
"""The same from a rough guess."""
AS_LEFT = 1.0
"""Residual over that of rounding from which on a window is weighed by it where frames are nearly right: hundreds of
equations tell the size of their own error well."""


def step_equations(span: ActivatedSpan, layer: WindowedLayer, generator: torch.Generator) -> Float[Tensor, "A E"]:
    """The part of the equations that single steps use, orthonormal columns in float32, enough for the first window."""
    return span.sketch(max(STEP_EQUATIONS, PER_UNKNOWN * layer.first_unknowns), generator).float().contiguous()


class LayerReader:
    """Reads utterances from one edge; see `reader.Reader`."""

    unseen = 0
    hides_repeats = True

    def __init__(self, span: ActivatedSpan, layer: WindowedLayer, equations: Float[Tensor, "A E"]) -> None:
        """Args:
        span: in float64.
        layer: windows and padding, as they are read from this edge.
        equations: see `step_equations`.
        """
        self.layer = layer
        self._exact, self._low, self._equations = span, span.single_precision(), equations
        self._block: Tensor | None = None
        self._taken = 0

    @property
    def clear(self) -> bool:
        """Whether the rank tells that the span lacks no window."""
        return self._exact.found.margin >= CLEAR_MARGIN

    @property
    def rank(self) -> int:
        """Directions that all windows span."""
        return self._exact.found.rank

    def newest(self, rows: Float[Tensor, "R F"], count: int) -> Callable[[Float[Tensor, " U"]], Fit]:
        """Levenberg-Marquardt on Pi a / |a|, a = [phi(offset + weight x), 1], then one step with all equations.

        Without the division, frames that shrink to nothing come close: they leave only the constant outside the span.
        """
        span = self._low
        known = self.layer.held(rows, count)
        offset = span.weight[:, : len(known)] @ known + span.bias
        weight = span.weight[:, len(known) :].contiguous()

        newest = count == self.layer.stride
        each = PER_UNKNOWN if newest or len(rows) == self.layer.before else PER_UNKNOWN_OF_LEAPS

        def fit(start: Float[Tensor, " U"]) -> Fit:
            equations = self._enough(each * len(start))
            unknowns, point, hessian = levenberg_marquardt(
                lambda unknowns: _Point.at(span, offset, weight, unknowns, equations),
                start,
                NEARLY if newest else AT_REST,
            )
            scale = point.size**2 * span.num_equations / equations.shape[1]
            return _with_all_equations(span, offset, weight, unknowns, scale * hessian)

        return fit

    def _enough(self, count: int) -> Float[Tensor, "A E"]:
        """So many equations for a step, `STEP_EQUATIONS` at least; more are drawn when they are first asked for."""
        if count > self._equations.shape[1] < self._exact.num_equations:
            self._equations = self._exact.sketch(count, torch.Generator().manual_seed(0)).float().contiguous()
        return self._equations[:, : max(STEP_EQUATIONS, count)]

    def together(self, rows: Float[Tensor, "R F"], free: tuple[int, int], ended: bool, steps: int) -> Refinement:
        """In float32, the windows' mean Hessian taken anew whenever their number has doubled."""
        del ended  # windows at the end are in the span like all others
        if self._block is None or not self._taken <= 2 * len(rows) < 4 * self._taken:
            self._block, self._taken = mean_hessian(self._low, self.layer.cut(rows)), len(rows)
        return self._refined(self._low, rows, free, self._block, steps, ON_THE_WAY)

    def polished(self, rows: Float[Tensor, "R F"], free: tuple[int, int], ended: bool) -> Refinement:
        """The same in float64, down to rounding."""
        del ended
        block = mean_hessian(self._low, self.layer.cut(rows).float())
        return self._refined(self._exact, rows, free, block, POLISHING, ENOUGH, AS_LEFT)

    def bridged(
        self, rows: Float[Tensor, "R F"], free: tuple[int, int]
    ) -> tuple[Float[Tensor, "R F"], Float[Tensor, " P"]]:
        """Free frames that windows may tell little of, from a rough guess, and what each window that holds any of them
        leaves, relative to its inputs."""
        span, layer = self._low, self.layer
        block = mean_hessian(span, layer.cut(rows)) if self._block is None else self._block
        start = layer.first_that_holds(free[0]) * layer.stride
        end = min(len(rows), free[1] + layer.window - layer.stride)
        near, inner = rows[start:end], (free[0] - start, free[1] - start)
        for outlier in (OUTLIER, AS_LEFT):
            near = refine(span, near, inner, layer, block, BRIDGING, enough=1.0, outlier=outlier).rows
        inputs, _ = span.inputs(layer.cut(near) @ span.weight.T + span.bias)
        _, norms, _ = span.outside(inputs)
        return torch.cat([rows[:start], near, rows[end:]]), norms / inputs.norm(dim=1)

    def _refined(
        self,
        span: ActivatedSpan,
        rows: Float[Tensor, "R F"],
        free: tuple[int, int],
        block: Float[Tensor, "C C"],
        steps: int,
        enough: float,
        outlier: float = OUTLIER,
    ) -> Refinement:
        start = self.layer.first_that_holds(free[0]) * self.layer.stride
        inner = (free[0] - start, free[1] - start)
        return refine(span, rows[start:], inner, self.layer, block, steps, enough=enough, outlier=outlier).behind(
            rows[:start]
        )


@dataclass(frozen=True)
class _Point:
    """Residual Pi a / |a| in a part of the equations, and what its Jacobian takes."""

    inputs: Float[Tensor, " A"]
    slopes: Float[Tensor, " H"]
    residual: Float[Tensor, " E"]
    size: float
    equations: Float[Tensor, "A E"]
    weight: Float[Tensor, "H U"]

    @staticmethod
    def at(
        span: ActivatedSpan,
        offset: Float[Tensor, " H"],
        weight: Float[Tensor, "H U"],
        unknowns: Float[Tensor, " U"],
        equations: Float[Tensor, "A E"],
    ) -> "_Point":
        inputs, slopes = span.inputs(offset + weight @ unknowns)
        size = max(float(inputs.norm()), torch.finfo(inputs.dtype).tiny)
        return _Point(inputs, slopes, (inputs @ equations) / size, size, equations, weight)

    def jacobian(self) -> Float[Tensor, "E U"]:
        moved = self.weight * self.slopes[:, None]
        growth = self.inputs[: len(moved)] @ moved / self.size**2
        return (self.equations[: len(moved)].T @ moved) / self.size - torch.outer(self.residual, growth)


def _with_all_equations(
    span: ActivatedSpan,
    offset: Float[Tensor, " H"],
    weight: Float[Tensor, "H U"],
    unknowns: Float[Tensor, " U"],
    hessian: Float[Tensor, "U U"],
) -> Fit:
    """One step on the gradient of all equations, with the Hessian that a part of them gave, scaled up."""
    inputs, slopes = span.inputs(offset + weight @ unknowns)
    rest, _, _ = span.outside(inputs)
    gradient = weight.T @ (rest[: len(weight)] * slopes)
    change = torch.linalg.lstsq(hessian, gradient[:, None]).solution[:, 0]
    inputs, _ = span.inputs(offset + weight @ (unknowns - change))
    _, residual, expected = span.outside(inputs)
    return Fit(unknowns - change, float(residual), float(expected), float(inputs.norm()))
