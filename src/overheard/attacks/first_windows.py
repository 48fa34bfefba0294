"""The window at the start of each utterance of a batch: all frames behind its padding are unknown at once.

One utterance draws most guesses to itself, so each guess is tried twice: as it is, then with what was found deflated.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.activated_span import ActivatedSpan
from overheard.attacks.deflation import NOTHING_KNOWN, Deflation
from overheard.attacks.frame_decoding import (
    ABOVE_ROUNDING,
    WRONG,
    Fit,
    StepProblem,
    fit_window,
    same_frames,
    windows_of,
)
from overheard.attacks.window_refinement import mean_hessian, refine
from overheard.attacks.windows import WindowedLayer


def first_windows(
    problem: StepProblem, span: ActivatedSpan, layer: WindowedLayer, starts: list[Float[Tensor, "K F"]], count: int
) -> Iterator[Float[Tensor, "K F"]]:
    """Frames of the window at the start of each utterance, padding left out; up to `count` different ones.

    Args:
        problem: the span.
        span: the same in float64: what a slow start leaves open in float32 would mislead every later window.
        layer: the windowed layer; its padding ahead tells first windows from all others.
        starts: guesses to begin at.
        count: utterances in the update.
    """
    weight = problem.span.weight[:, layer.before * layer.num_features :].contiguous()
    found: list[Tensor] = []
    for start in starts:
        for deflation in (NOTHING_KNOWN, Deflation([frames.flatten() for frames in found])):
            if deflation is not NOTHING_KNOWN and not found:
                continue
            fit = fit_window(problem, problem.span.bias, weight, start.flatten().float(), deflation)
            frames = _polished(span, layer, fit)
            if frames is None or any(same_frames(frames, other) for other in found):
                continue
            found.append(frames)
            yield frames
            if len(found) == count:
                return
            break


def _polished(span: ActivatedSpan, layer: WindowedLayer, fit: Fit) -> Float[Tensor, "K F"] | None:
    """A first window in float64, in float32 again; None where it does not lie in the span."""
    if fit.residual > WRONG * fit.size:
        return None
    rows = torch.nn.functional.pad(fit.unknowns.view(-1, layer.num_features), (0, 0, layer.before, 0))
    block = mean_hessian(span.single_precision(), windows_of(rows, layer))
    polished = refine(span, rows, (layer.before, len(rows)), layer, block)
    return polished.rows[layer.before :].to(rows) if polished.residual <= ABOVE_ROUNDING * polished.expected else None
