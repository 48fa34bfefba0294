"""By how much a whole update was shrunk: clipping and learning rates that are not told are one unknown factor.

A factor changes no span, so features come back all the same; words and certificates need it. A symbol v that nobody
said has no occupancy, and its row of the output layer's gradient is sum_t p_t(v) [h_t, 1] alone, which features tell:
such rows are a common multiple of what they should be, and no other row is a multiple at all.
"""

from dataclasses import replace

import torch
from torch import Tensor
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
    return 1.0 if gradient is None else _common(*_multiples(gradient, run, gradient.shape[1]))


def output_scales(update: ClientUpdate, run: OutputRun) -> tuple[float, float]:
    """The factors of the output layer's weight and of its bias, where a client shrank every tensor by itself."""
    gradient = output_gradient(update, run.layer)
    width = run.inputs[0].shape[1]
    if gradient is None or gradient.shape[1] != width + 1:
        return 1.0, 1.0
    factors, multiples = _multiples(gradient[:, :width], run, width)
    weight = _common(factors, multiples)
    expected = torch.cat(run.logits).softmax(dim=-1).sum(dim=0)
    return weight, _common(gradient[:, width] / expected, multiples)


def _multiples(gradient: Tensor, run: OutputRun, width: int) -> tuple[Tensor, Tensor]:
    """By symbol: the factor of its row over that of a symbol nobody said, and whether it is a multiple of that."""
    shown = torch.cat(run.inputs)
    if width > shown.shape[1]:
        shown = functional.pad(shown, (0, 1), value=1.0)
    unsaid = torch.cat(run.logits).softmax(dim=-1).T @ shown  # (V, C)
    tiny = torch.finfo(gradient.dtype).tiny
    factors = (gradient * unsaid).sum(dim=1) / unsaid.square().sum(dim=1).clamp(min=tiny)
    left = (gradient - factors[:, None] * unsaid).norm(dim=1) / gradient.norm(dim=1).clamp(min=tiny)
    return factors, (left < AGREES) & (factors > 0)


def _common(factors: Tensor, chosen: Tensor) -> float:
    """One factor that those chosen share, if it is not 1."""
    agreeing = factors[chosen]
    if len(agreeing) < FEWEST:
        return 1.0
    factor = float(agreeing.median())
    one = float((agreeing / factor - 1).abs().max()) < AGREES and abs(factor - 1) > AGREES
    return factor if one else 1.0


def rescaled(update: ClientUpdate, factor: float) -> ClientUpdate:
    """The update without a factor."""
    return replace(update, tensors={name: tensor / factor for name, tensor in update.tensors.items()})
