"""Several utterances on one axis of time, so far apart that no window of either convolution sees two of them.

A batch's updates are sums over its utterances, so what is solved for one utterance is solved for all of them as if they
were one, with gaps that are known to be silent and output frames between them that nobody has seen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from overheard.recognition.deepspeech2 import KERNELS, STRIDES, DeepSpeech2Config


@dataclass(frozen=True)
class LineUp:
    """Where each utterance is.

    Attributes:
        spans: first frame of each utterance's features and the one behind its last.
        features: frames of features that belong to an utterance, (T,).
        windows: frames of the first convolution's output that do, (U,).
        outputs: frames of the second convolution's output that do, (P,).
    """

    spans: tuple[tuple[int, int], ...]
    features: Bool[Tensor, " T"]
    windows: Bool[Tensor, " U"]
    outputs: Bool[Tensor, " P"]


def line_up(config: DeepSpeech2Config, num_frames: tuple[int, ...], device: torch.device) -> LineUp:
    """Place utterances of these numbers of frames one behind the other.

    Args:
        config: of the model, whose windows must not see two utterances.
        num_frames: of each utterance's features, enough for one output frame.
        device: of the masks.
    """
    kernels, strides = ([sizes[1] for sizes in each] for each in (KERNELS, STRIDES))
    paddings = [padding[1] for padding in config.padding]
    # By layer: features, windows, outputs.
    spans: tuple[list[tuple[int, int]], ...] = ([], [], [])
    start = 0
    for frames in num_frames:
        begin, count, free = start, frames, 0
        for layer in range(3):
            spans[layer].append((begin, begin + count))
            if layer == 2:
                break
            kernel, stride, padding = kernels[layer], strides[layer], paddings[layer]
            after = (count + 2 * padding - kernel) // stride + 1
            # Windows of the next utterance reach back by the padding; those of this one reach past its end.
            last = stride * (begin // stride + after - 1) - padding + kernel
            free = max(free, (strides[0] if layer else 1) * max(begin + count + padding, last))
            begin, count = begin // stride, after
        start = -(-free // (strides[0] * strides[1])) * strides[0] * strides[1]
    masks = []
    for layer in spans:
        mask = torch.zeros(layer[-1][1], dtype=torch.bool, device=device)
        for begin, end in layer:
            mask[begin:end] = True
        masks.append(mask)
    return LineUp(tuple(spans[0]), *masks)
