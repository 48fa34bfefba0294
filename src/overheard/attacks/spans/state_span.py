"""Equations on speech from a recurrent layer's states: the span that the update of its recurrent weights gives away.

The gradient of W_hh is sum_t g_t h_(t-1)': its rows span the states of all positions but the last of each utterance.
States are dense where a rectifier's outputs are not. Of 2,048 units of DeepSpeech 1 some 190 to 270 are zero in all
windows of a batch, and a layer that is shown them has so many equations less than it seems.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.observation import Observation
from overheard.attacks.spans.input_span import InputSpan, span_of_rows
from overheard.attacks.spans.recurrent_layer import RecurrentLayer, find_recurrent_layer
from overheard.attacks.windows import WindowedLayer

UNSEEN = 1
"""Positions at an utterance's end whose states no weight is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class StateSpan(InputSpan):
    """What is known of the states of one direction, and of how they come about, in float32.

    Attributes:
        layer: the recurrent layer and what leads to it.
        equations: orthonormal columns, all that are outside the basis.
    """

    layer: RecurrentLayer
    equations: Float[Tensor, "A E"]

    def turned(self, windowed: WindowedLayer) -> "StateSpan":
        """The same where frames within windows stand in the opposite order."""
        first, *others = self.layer.stages
        weight = windowed.turned(first.weight)
        return replace(self, layer=replace(self.layer, stages=(replace(first, weight=weight), *others)))


@dataclass(frozen=True)
class StateSpans:
    """The states of both directions.

    Attributes:
        forwards: of the one that reads utterances from their beginning.
        backwards: of the one that reads from the end; None where there is none.
    """

    forwards: StateSpan
    backwards: StateSpan | None

    @property
    def name(self) -> str:
        """Of the recurrent layer."""
        return self.forwards.layer.onward_name.rpartition(".")[0]

    @property
    def margin(self) -> float:
        """Of the rank, the same in both."""
        return max(each.found.margin for each in (self.forwards, self.backwards) if each is not None)

    def num_positions(self, num_utterances: int) -> int:
        """Positions of all utterances together."""
        return self.forwards.found.rank + UNSEEN * num_utterances


def state_spans(observation: Observation, windowed: WindowedLayer, generator: torch.Generator) -> StateSpans | None:
    """What the first recurrent layer behind the windowed one gives away; None where there is none, or not its update.

    Args:
        observation: all that the attacker sees.
        windowed: the one that sees windows.
        generator: of the basis in which equations are stated.
    """
    found = [find_recurrent_layer(observation.model, windowed, reverse) for reverse in (False, True)]
    layers = [layer for layer in found if layer is not None]
    if not layers or any(layer.onward_name not in observation.update.tensors for layer in layers):
        return None
    matrices = [_matrix(observation, layer.onward_name) for layer in layers]
    spans = [span_of_rows(matrix) for matrix in matrices]
    # Both directions have as many states: the clearer spectrum tells the rank of both.
    rank = max(spans, key=lambda span: span.found.margin).found.rank
    spans = [
        span if span.found.rank == rank else span_of_rows(matrix, rank)
        for span, matrix in zip(spans, matrices, strict=True)
    ]
    both = [
        StateSpan(
            **vars(span.single_precision()), layer=layer, equations=span.sketch(span.num_equations, generator).float()
        )
        for span, layer in zip(spans, layers, strict=True)
    ]
    return StateSpans(both[0], both[1] if len(both) > 1 else None)


def _matrix(observation: Observation, name: str) -> Float[Tensor, "K H"]:
    return observation.update.gradient_without_decay(name, observation.model.get_parameter(name)).cpu()
