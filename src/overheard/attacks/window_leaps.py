"""Past windows that the span does not hold: several frames at once, from the next window that it holds.

Where a model is sure of what it heard, gradients may be smaller than rounding, and the span lacks those windows. The
next one that it has holds more than the newest frames that are unknown, as an utterance's first window does.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.activated_span import CLEAR_MARGIN
from overheard.attacks.window_fits import WRONG, StepProblem, fit_window
from overheard.attacks.windows import WindowedLayer

BACK = (0, 2, 4)
"""Windows that are given up before a leap: the last ones may have been accepted for want of equations."""


def leaps(problem: StepProblem, layer: WindowedLayer, rows: Float[Tensor, "R F"]) -> Iterator[Float[Tensor, "S F"]]:
    """Longer rows whose newest window is nearly in the span, the shortest leaps first; none where the rank is clear.

    Args:
        problem: the span.
        layer: the windowed layer.
        rows: decoded frames and the padding before them, up to the last whole window.
    """
    if problem.span.found.margin >= CLEAR_MARGIN:
        return
    stride, features, weight = layer.stride, layer.num_features, problem.span.weight
    most = (layer.window - max(layer.before, stride)) // stride
    for back in BACK:
        kept = rows[: len(rows) - back * stride]
        if len(kept) < layer.window:
            return
        for count in range(back + 2, most + 1):
            known = layer.window - count * stride
            offset = weight[:, : known * features] @ kept[len(kept) - known :].flatten() + problem.span.bias
            newest = weight[:, known * features :].contiguous()
            for frame in (kept[-1], kept[layer.before :].mean(dim=0)):
                fit = fit_window(problem, offset, newest, frame.repeat(count * stride))
                if fit.residual <= WRONG * fit.size:
                    yield torch.cat([kept, fit.unknowns.view(count * stride, features)])
