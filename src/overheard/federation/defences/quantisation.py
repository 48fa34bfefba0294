"""Fewer bits for each coordinate. 8-bit and sign values travel as 32-bit floats here: what is measured is what they
say, not what a codec would save."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 127
"""Of either sign in 8 bits."""


@dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


def eight_bit(tensors: dict[str, Tensor], _: NoSettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Each tensor in 255 equal steps of its largest magnitude, rounded up or down at random so that the mean stays
    (QSGD, Alistarh et al. 2017, with the largest magnitude for a scale)."""
    return {name: _stochastic(tensor, generator) for name, tensor in tensors.items()}


def half(tensors: dict[str, Tensor], _: NoSettings, __: torch.Generator) -> dict[str, Tensor]:
    """16-bit floats; what overflows is held at the largest one."""
    limit = torch.finfo(torch.float16).max
    return {name: tensor.clamp(-limit, limit).half() for name, tensor in tensors.items()}


def sign(tensors: dict[str, Tensor], _: NoSettings, __: torch.Generator) -> dict[str, Tensor]:
    """Signs, times the tensor's mean magnitude (scaled sign: Karimireddy et al. 2019, eq. 4)."""
    return {name: tensor.sign() * tensor.abs().mean() for name, tensor in tensors.items()}


def _stochastic(tensor: Tensor, generator: torch.Generator) -> Tensor:
    step = tensor.abs().max() / LEVELS
    if float(step) == 0.0:
        return torch.zeros_like(tensor)
    drawn = torch.rand(tensor.shape, generator=generator).to(tensor)
    return (tensor / step + drawn).floor().clamp(-LEVELS, LEVELS) * step
