"""CTC the obvious, slow way: a log-space scan that autograd records. `ctc` is tested and timed against it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Minus infinity would turn into NaN on the way back through logsumexp.
UNREACHABLE = -1e30


def ctc_scan_loss(
    log_probs: Float[Tensor, "T N V"],
    targets: Int[Tensor, "N L"],
    input_lengths: Int[Tensor, " N"],
    target_lengths: Int[Tensor, " N"],
    blank: int = 0,
) -> Float[Tensor, " N"]:
    """Negative log-likelihoods (Graves et al. 2006, eq. 6-8), in the type of log_probs.

    Args:
        log_probs: natural logarithms of the symbols' probabilities, T at least 1, all finite.
        targets: padded labels.
        input_lengths: valid frames, at least 1.
        target_lengths: labels of each utterance.
        blank: index of the blank symbol.

    Returns:
        Losses in nats; about 1e30 where no path fits the transcript.
    """
    frames, count, _ = log_probs.shape
    width = 2 * targets.shape[1] + 1
    rows = torch.arange(count, device=log_probs.device)
    symbols = targets.new_full((count, width), blank)
    symbols[:, 1::2] = targets
    may_skip = torch.zeros_like(symbols, dtype=torch.bool)
    may_skip[:, 2:] = (symbols[:, 2:] != blank) & (symbols[:, 2:] != symbols[:, :-2])

    emissions = log_probs.gather(2, symbols.expand(frames, count, width))
    left = log_probs.new_full((count, 2), UNREACHABLE)
    unreachable = log_probs.new_full((count, width), UNREACHABLE)
    first = torch.arange(width, device=log_probs.device) < 2
    alphas = [torch.where(first, emissions[0], unreachable)]
    for t in range(1, frames):
        padded = torch.cat([left, alphas[-1]], 1)
        skipped = torch.where(may_skip, padded[:, :-2], unreachable)
        alphas.append(torch.logsumexp(torch.stack([padded[:, 2:], padded[:, 1:-1], skipped]), 0) + emissions[t])

    last = torch.stack(alphas)[input_lengths - 1, rows]
    after_blank = last[rows, 2 * target_lengths]
    after_label = torch.where(target_lengths > 0, last[rows, (2 * target_lengths - 1).clamp(min=0)], UNREACHABLE)
    return -torch.logsumexp(torch.stack([after_blank, after_label]), 0)
