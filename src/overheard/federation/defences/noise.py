"""Noise that a client adds to its own update."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overheard.recognition.configuration import check_positive


@dataclass(frozen=True)
class NoiseSettings:
    """`std`: standard deviation of the noise on each coordinate, in the update's own unit."""

    std: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("std", self.std)


def gaussian_noise(
    tensors: dict[str, Tensor], settings: NoiseSettings, generator: torch.Generator
) -> dict[str, Tensor]:
    """u + N(0, std^2) on each coordinate."""
    return {name: tensor + settings.std * normal_like(tensor, generator) for name, tensor in tensors.items()}


def normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal draws of a tensor's shape, type and device; the same on every device."""
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
