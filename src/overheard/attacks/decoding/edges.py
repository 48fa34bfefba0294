"""Both ends of utterances: each has zero padding of its own, so each can be read from its end to its beginning, too.

Read backwards, windows hold the same numbers in the opposite order: the equations are those of the same span, with
the frames of the windowed layer's weight reversed and the padding ahead and behind exchanged. With a stride the last
window may leave spare rows of padding unseen; how many, nobody knows, and each number is an edge of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.layer_reader import LayerReader, step_equations
from overheard.attacks.decoding.reader import Reader
from overheard.attacks.decoding.state_reader import StateReader
from overheard.attacks.spans.activated_span import ActivatedSpan
from overheard.attacks.spans.state_span import StateSpans
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


def edges_of(
    span: ActivatedSpan | None, layer: WindowedLayer, generator: torch.Generator, states: StateSpans | None = None
) -> list[Edge]:
    """The beginning, then each end that padding marks, where there are equations enough for a first window.

    Args:
        span: of the layer behind; None where it gives too few equations even for later windows.
        layer: the windowed layer; padding ahead of it.
        generator: of the equations that single steps use.
        states: of a recurrent layer, by which first windows are guessed then; None where the layer behind will do.
    """
    equations = None if span is None else step_equations(span, layer, generator)
    edges = []
    for backwards, spare, each in [(False, 0, layer), *((True, spare, end) for spare, end in _ends(layer))]:
        readers: list[Reader] = []
        own = None if states is None else states.backwards if backwards else states.forwards
        if own is not None and own.num_moving > each.first_unknowns:
            readers.append(StateReader(own.turned(layer) if backwards else own, each))
        if span is not None and equations is not None and (readers or span.num_moving > each.first_unknowns):
            turned = replace(span, weight=layer.turned(span.weight)) if backwards else span
            readers.append(LayerReader(turned, each, equations))
        if readers:
            edges.append(Edge(readers[-1], readers[0], backwards, spare))
    return edges


def _ends(layer: WindowedLayer) -> Iterator[tuple[int, WindowedLayer]]:
    """Rows of padding that utterances may leave unseen, and the layer as it sees those that are read from their end."""
    for spare in range(layer.stride):
        if layer.after - spare > 0:
            yield spare, replace(layer, before=layer.after - spare, after=layer.before)


def known_firsts(edge: Edge, utterances: Sequence[Float[Tensor, "_ F"]]) -> list[Float[Tensor, "K F"]]:
    """First windows at an edge of utterances that are known whole."""
    return [edge.first(frames) for frames in utterances if edge.has(len(frames)) and len(frames) >= edge.unknown]
