"""Past windows that the span does not hold: several frames at once, from the next window that it holds.

Where a model is sure of what it heard, gradients may be smaller than rounding, and the span lacks those windows. The
next one that it has holds more than the newest frames that are unknown, as an utterance's first window does.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.reader import Reader
from overheard.attacks.decoding.window_fit import WRONG

BACK = (0, 2, 4)
"""Windows that are given up before a leap: the last ones may have been accepted for want of equations."""


def leaps(reader: Reader, rows: Float[Tensor, "R F"]) -> Iterator[Float[Tensor, "S F"]]:
    """Longer rows whose newest window is nearly in the span, the shortest leaps first; none where the rank is clear.

    Args:
        reader: of the span.
        rows: decoded frames and the padding before them, up to the last whole window.
    """
    if reader.clear:
        return
    layer = reader.layer
    most = (layer.window - max(layer.before, layer.stride)) // layer.stride
    for back in BACK:
        kept = rows[: len(rows) - back * layer.stride]
        if len(kept) < layer.window:
            return
        for count in range(back + 2, most + 1):
            frames = count * layer.stride
            fit_from = reader.newest(kept, frames)
            for frame in (kept[-1], kept[layer.before :].mean(dim=0)):
                fit = fit_from(frame.repeat(frames))
                if fit.residual <= WRONG * fit.size:
                    yield torch.cat([kept, fit.unknowns.view(frames, layer.num_features)])
