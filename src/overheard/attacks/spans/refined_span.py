"""The closed form's features fitted anew to the layer behind, which has many times as many equations.

Where weights are trained, weak windows make the first layer's span uncertain although its rank is clear. The layer
behind is shown the same windows through an activation; from features that are nearly right its equations are nearly
linear, and a step or two of `window_refinement` go to its own rounding.
"""

from dataclasses import replace

from torch.nn import functional

from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.spans.activated_span import ActivatedSpan, activated_span
from overheard.attacks.spans.span_solver import SpanSolution
from overheard.attacks.spans.window_refinement import mean_hessian, refine
from overheard.attacks.windows import WindowedLayer

LARGEST_REST = 2.0
"""Residual over that of rounding up to which features explain the layer behind."""
UNSURE = 3e-5
"""Likely error from which on the layer behind is asked even where that takes all of its inputs: far longer than the
closed form."""
EQUATIONS = 16
"""Of each position, for every number that it adds to those known from others: more cost more than they tell."""


def refined(observation: Observation, layer: WindowedLayer, solutions: list[SpanSolution]) -> list[SpanSolution]:
    """Each solution, or what the layer behind makes of it where that is explained and more certain.

    Args:
        observation: all that the attacker sees.
        layer: the one that sees windows.
        solutions: of all utterances, by the closed form, of an update whose errors grow with rows.
    """
    positions = sum(layer.num_positions(len(each.features)) for each in solutions)
    equations = EQUATIONS * layer.stride * layer.num_features
    units = len(observation.model.get_submodule(layer.name).get_parameter("weight"))
    if positions + equations > units and max(each.likely_error for each in solutions) <= UNSURE:
        return solutions
    behind = find_pointwise_layer(observation.model, layer)
    span = None if behind is None else activated_span(observation, layer, behind, positions, equations)
    if span is None or span.found.rank != positions or span.num_equations < layer.num_features:
        return solutions
    return [_refined(span, layer, each) for each in solutions]


def _refined(span: ActivatedSpan, layer: WindowedLayer, solution: SpanSolution) -> SpanSolution:
    rows = functional.pad(solution.features, (0, 0, layer.before, layer.after))
    last = layer.before + len(solution.features)
    block = mean_hessian(span.single_precision(), layer.cut(rows).float())
    found = refine(span, rows, (layer.before, last), layer, block, first_layer=solution.equations)
    if found.excess > LARGEST_REST or found.likely_error >= solution.likely_error:
        return solution
    return replace(
        solution,
        features=found.rows[layer.before : last],
        predicted_error=found.predicted_error,
        likely_error=found.likely_error,
        errors=found.errors,
    )
