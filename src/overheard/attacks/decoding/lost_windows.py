"""How many frames a run of windows was that the span does not hold.

A decoder that has come past such windows may have counted one too few or too many: those that are held on either side
have hardly a frame in common, and what lies between is told by little. Each count is therefore tried: the frames in
the middle are drawn as a line from one side to the other and fitted together with all windows that hold any of them.
The right count is the one from which most windows come nearest to the span, by the logarithm of what they leave, since
each tells the size of its own error.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.layer_reader import LayerReader
from overheard.attacks.windows import WindowedLayer

LOST = 3.0
"""Residual of a window over that of rounding from which on the span does not hold it."""
UNTOLD = 5e-2
"""Residual, relative to the inputs, that any window leaves that has not to do with the span."""
BETTER = 1.0
"""Difference of logarithms, summed over windows, from which on one count is believed rather than another."""
MOST = 3
"""Windows by which a run may have been miscounted."""


@dataclass(frozen=True)
class Recounted:
    """Frames after their runs were counted again.

    Attributes:
        rows: all frames and the padding about them; as they were where no count was wrong.
        certain: whether no other count fits about as well in any run.
    """

    rows: Float[Tensor, "S F"]
    certain: bool


def recounted(reader: LayerReader, rows: Float[Tensor, "R F"], left: Float[Tensor, " P"]) -> Recounted:
    """Rows with as many frames as fit best in every run of windows that the span does not hold.

    Args:
        reader: of the span.
        rows: all frames and the padding about them, fitted together.
        left: what each of their windows leaves over rounding.
    """
    certain = True
    for first, last in reversed(list(_runs(left > LOST, reader.layer.window // 2))):
        rows, sure = _counted(reader, rows.float(), first, last)
        certain &= sure
    return Recounted(rows, certain)


def _runs(lost: Tensor, shortest: int) -> Iterator[tuple[int, int]]:
    """First and last window of each run that is long enough to have been miscounted."""
    edges = torch.nn.functional.pad(lost.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    for first, behind in zip(edges[::2], edges[1::2], strict=True):
        if behind - first >= shortest:
            yield first, behind - 1


def _counted(
    reader: LayerReader, rows: Float[Tensor, "R F"], first: int, last: int
) -> tuple[Float[Tensor, "S F"], bool]:
    """Rows with the likeliest number of frames in one run of windows, as they are unless another is clearly better; and
    whether it is clear."""
    asis = _bridged(reader, rows, first, last, 0)[1]
    tried = [(asis, rows)]
    for sign in (1, -1):
        before = asis
        for more in range(1, MOST + 1):
            other, score = _bridged(reader, rows, first, last, sign * more)
            tried.append((score, other))
            if score >= before:
                break
            before = score
    tried.sort(key=lambda each: each[0])
    # Windows that are held on either side and have no frame in common say nothing of what lies between.
    shared = reader.layer.window - (last - first + 2) * reader.layer.stride
    clear = tried[1][0] - tried[0][0] >= BETTER and shared > 0
    return (tried[0][1] if tried[0][0] <= asis - BETTER else rows), clear


def _bridged(
    reader: LayerReader, rows: Float[Tensor, "R F"], first: int, last: int, more: int
) -> tuple[Float[Tensor, "S F"], float]:
    """Rows with so many strides of frames more between the windows that are held, and the logarithms of what windows
    about them leave, summed up."""
    layer = reader.layer
    begin, end = _between(layer, first, last)
    count = end - begin + more * layer.stride
    if begin <= layer.before or end >= len(rows) - layer.after or count < 1:
        return rows, 0.0
    shares = torch.linspace(0, 1, count + 2)[1:-1, None]
    line = (1 - shares) * rows[begin - 1] + shares * rows[end]
    longer = torch.cat([rows[:begin], line, rows[end:]])
    side = layer.window // 2
    free = (max(layer.before, begin - side), min(len(longer) - layer.after, begin + count + side))
    longer, residuals = reader.bridged(longer, free)
    return longer, float((residuals / UNTOLD).log().clamp(max=0.0).sum())


def _between(layer: WindowedLayer, first: int, last: int) -> tuple[int, int]:
    """Rows that windows on neither side of a run tell well: those in its middle."""
    middle = ((first + last) * layer.stride + layer.window) // 2
    half = max(layer.stride, (last - first + 1) * layer.stride - layer.window // 2) // 2 + 1
    return middle - half, middle + half
