"""The closed form's features fitted anew to the layer behind, which has many times as many equations.

Where weights are trained, weak windows make the first layer's span uncertain although its rank is clear. The layer
behind is shown the same windows through an activation; from features that are nearly right its equations are nearly
linear, and a step or two of `window_refinement` go to its own rounding.
"""

from dataclasses import replace

from torch.nn import functional

from overheard.attacks.activated_span import activated_span
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.span_solver import SpanSolution
from overheard.attacks.window_refinement import mean_hessian, refine
from overheard.attacks.windows import WindowedLayer

LARGEST_REST = 2.0
"""Residual over that of rounding up to which features explain the layer behind."""


def refined(observation: Observation, layer: WindowedLayer, solutions: list[SpanSolution]) -> list[SpanSolution]:
    """Each solution, or what the layer behind makes of it where that is explained and more certain.

    Args:
        observation: all that the attacker sees.
        layer: the one that sees windows.
        solutions: of all utterances, by the closed form, of an update whose errors grow with rows.
    """
    behind = find_pointwise_layer(observation.model, layer)
    positions = sum(layer.num_positions(len(each.features)) for each in solutions)
    span = None if behind is None else activated_span(observation, layer, behind, positions)
    if span is None or span.found.rank != positions or span.num_equations < layer.num_features:
        return solutions
    found = []
    for each in solutions:
        rows = functional.pad(each.features, (0, 0, layer.before, layer.after))
        last = layer.before + len(each.features)
        block = mean_hessian(span.single_precision(), layer.cut(rows).float())
        other = refine(span, rows, (layer.before, last), layer, block)
        explained = other.residual <= LARGEST_REST * other.expected
        better = replace(
            each,
            features=other.rows[layer.before : last],
            predicted_error=other.predicted_error,
            likely_error=other.likely_error,
            errors=other.errors,
        )
        found.append(better if explained and other.likely_error < each.likely_error else each)
    return found
