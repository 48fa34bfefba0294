"""Both ends of utterances: each has zero padding of its own, so each can be read from its end to its beginning, too.

Read backwards, windows hold the same numbers in the opposite order: the equations are those of the same span, with
the frames of the windowed layer's weight reversed and the padding ahead and behind exchanged. With a stride the last
window may leave spare rows of padding unseen; how many, nobody knows, and each number is an edge of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.activated_span import ActivatedSpan
from overheard.attacks.frame_decoding import Reader
from overheard.attacks.layer_reader import LayerReader, step_equations
from overheard.attacks.windows import WindowedLayer


@dataclass(frozen=True)
class Edge:
    """One end of every utterance, and what windows are read off from there.

    Attributes:
        reader: what all windows are read off.
        firsts: what the first ones are guessed by.
        backwards: whether time runs from the last frame to the first.
        spare: rows of padding behind the last window, of those utterances that this edge belongs to.
    """

    reader: Reader
    firsts: Reader
    backwards: bool = False
    spare: int = 0

    @property
    def layer(self) -> WindowedLayer:
        """Windows and padding."""
        return self.reader.layer

    @property
    def unknown(self) -> int:
        """Frames of the first window that are no padding."""
        return self.layer.window - self.layer.before

    def turned(self, frames: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
        """Frames in this edge's order of time; what is turned twice is as it was."""
        return frames.flip(0) if self.backwards else frames

    def has(self, num_frames: int) -> bool:
        """Whether an utterance of so many frames begins here."""
        if not self.backwards:
            return True
        layer = self.layer
        whole = num_frames + layer.after + layer.before + self.spare
        return (whole - layer.window) % layer.stride == self.spare

    def first(self, frames: Float[Tensor, "T F"]) -> Float[Tensor, "K F"]:
        """The unknown frames of the first window of an utterance in ordinary order."""
        return self.turned(frames)[: self.unknown]


def edges_of(span: ActivatedSpan, layer: WindowedLayer, generator: torch.Generator) -> list[Edge]:
    """The beginning, then each end that padding marks.

    Args:
        span: of the layer behind.
        layer: the windowed layer; padding ahead of it.
        generator: of the equations that single steps use.
    """
    equations = step_equations(span, layer, generator)
    forwards = LayerReader(span, layer, equations)
    turned = replace(span, weight=_turned(span.weight, layer))
    backwards = [LayerReader(turned, each, equations) for each in _ends(layer)]
    ends = [
        Edge(each, each, True, spare)
        for spare, each in enumerate(backwards)
        if span.num_equations > each.layer.first_unknowns
    ]
    return [Edge(forwards, forwards), *ends]


def _ends(layer: WindowedLayer) -> list[WindowedLayer]:
    """The layer as it sees an utterance that is read from its end, by the rows of padding that it leaves unseen."""
    return [
        replace(layer, before=layer.after - spare, after=layer.before)
        for spare in range(layer.stride)
        if layer.after - spare > 0
    ]


def _turned(weight: Float[Tensor, "H C"], layer: WindowedLayer) -> Float[Tensor, "H C"]:
    return weight.view(len(weight), layer.window, layer.num_features).flip(1).flatten(1).contiguous()


def known_firsts(edge: Edge, utterances: Sequence[Float[Tensor, "_ F"]]) -> list[Float[Tensor, "K F"]]:
    """First windows at an edge of utterances that are known whole."""
    return [edge.first(frames) for frames in utterances if edge.has(len(frames)) and len(frames) >= edge.unknown]
