"""What windows of one edge are read off: the part of an update that knows of them."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.window_fit import Fit
from overheard.attacks.spans.window_refinement import Refinement
from overheard.attacks.windows import WindowedLayer


@runtime_checkable
class Reader(Protocol):
    """What windows of one edge are read off.

    Attributes:
        layer: windows and padding, as they are read from this edge.
        unseen: positions at an utterance's end of which it knows nothing.
        hides_repeats: whether equal frames that fill a window are one to it, however many there are.
    """

    layer: WindowedLayer
    unseen: int
    hides_repeats: bool

    @property
    def clear(self) -> bool:
        """Whether the rank tells that no window is missing from what it knows."""
        ...

    @property
    def rank(self) -> int:
        """Directions that what it knows of spans."""
        ...

    def newest(self, rows: Float[Tensor, "R F"], count: int) -> Callable[[Float[Tensor, " U"]], Fit]:
        """What fits, from a guess, the `count` frames behind rows that end the next window."""
        ...

    def together(self, rows: Float[Tensor, "R F"], free: tuple[int, int], ended: bool, steps: int) -> Refinement:
        """Some frames fitted to all windows that hold any of them.

        Args:
            rows: all frames from the padding ahead of the utterance on, windows of which start every `stride`.
            free: first free frame, and the one behind the last.
            ended: whether the rows reach to the end of the padding behind the utterance.
            steps: of Gauss-Newton at most.
        """
        ...

    def polished(self, rows: Float[Tensor, "R F"], free: tuple[int, int], ended: bool) -> Refinement:
        """The same down to rounding."""
        ...
