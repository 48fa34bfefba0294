"""By how much a whole update was shrunk: clipping and learning rates that are not told are one unknown factor.

A factor changes no span, so features come back all the same; words and certificates need it. A symbol v that nobody
said has no occupancy, and its row of the output layer's gradient is sum_t p_t(v) [h_t, 1] alone, which features tell:
such rows are a common multiple of what they should be, and no other row is a multiple at all.
"""

from dataclasses import replace

import torch
from torch.nn import functional

from overheard.attacks.output_layer import OutputRun, output_gradient
from overheard.federation.update import ClientUpdate

AGREES = 1e-3
"""Relative difference up to which a row is a multiple, factors are one, and a factor is 1."""

FEWEST = 2
"""Rows that must agree: one might do so by chance."""


def update_scale(update: ClientUpdate, run: OutputRun) -> float:
    """The factor that the update carries beyond what its protocol says; 1.0 where none shows.

    Args:
        update: what the client shared.
        run: of the output layer on the features of all its utterances.
    """
    gradient = output_gradient(update, run.layer)
    if gradient is None:
        return 1.0
    shown = torch.cat(run.inputs)
    if gradient.shape[1] > shown.shape[1]:
        shown = functional.pad(shown, (0, 1), value=1.0)
    unsaid = torch.cat(run.logits).softmax(dim=-1).T @ shown  # (V, C)
    tiny = torch.finfo(gradient.dtype).tiny
    factors = (gradient * unsaid).sum(dim=1) / unsaid.square().sum(dim=1).clamp(min=tiny)
    left = (gradient - factors[:, None] * unsaid).norm(dim=1) / gradient.norm(dim=1).clamp(min=tiny)
    agreeing = factors[(left < AGREES) & (factors > 0)]
    if len(agreeing) < FEWEST:
        return 1.0
    factor = float(agreeing.median())
    one = float((agreeing / factor - 1).abs().max()) < AGREES and abs(factor - 1) > AGREES
    return factor if one else 1.0


def rescaled(update: ClientUpdate, factor: float) -> ClientUpdate:
    """The update without a factor."""
    return replace(update, tensors={name: tensor / factor for name, tensor in update.tensors.items()})
