"""Past windows that the span does not hold: several frames at once, from the next window that it holds.

Where a model is sure of what it heard, gradients may be smaller than rounding, and the span lacks those windows. The
next one that it has holds more than the newest frames that are unknown, as an utterance's first window does. How many
windows are lacking shows by trying: only from the right number of frames does a window come near the span.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.reader import Reader

NEAR = 5e-2
"""Residual, relative to the inputs, up to which a leap may be right: the frames it starts from are not exact either."""
BACK = (0, 2, 4)
"""Windows that are given up before a leap: the last ones may have been accepted for want of equations."""
KEPT = 3
"""One part in so many of a window that a leap has to leave known: with less, few guesses lead anywhere."""
MOST = 3
"""Leaps that are worth fitting together with those frames."""


def leaps(reader: Reader, rows: Float[Tensor, "R F"], back: int) -> list[Float[Tensor, "S F"]]:
    """Longer rows whose newest window is nearly in the span, the nearest first; none where the rank is clear.

    Args:
        reader: of the span.
        rows: decoded frames and the padding before them, up to the last whole window.
        back: windows that are given up before.
    """
    layer = reader.layer
    rows = rows[: len(rows) - back * layer.stride]
    if reader.clear or len(rows) < layer.window:
        return []
    found: list[tuple[float, Tensor]] = []
    kept = max(layer.stride, layer.window // KEPT)
    for count in range(back + 2, (layer.window - kept) // layer.stride + 1):
        frames = count * layer.stride
        fit_from = reader.newest(rows, frames)
        for frame in (rows[-1], rows[layer.before :].mean(dim=0)):
            fit = fit_from(frame.repeat(frames))
            if fit.residual <= NEAR * fit.size:
                longer = torch.cat([rows, fit.unknowns.view(frames, layer.num_features)])
                found.append((fit.residual / fit.size, longer))
                break
    return [longer for _, longer in sorted(found, key=lambda each: each[0])[:MOST]]
