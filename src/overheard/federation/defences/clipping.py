"""Clipping: an update no longer than a given norm."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overheard.recognition.configuration import check_positive


@dataclass(frozen=True)
class ClipSettings:
    """`norm`: largest Euclidean norm that may pass."""

    norm: float = 1.0

    def __post_init__(self) -> None:
        check_positive("norm", self.norm)


def global_norm(tensors: dict[str, Tensor]) -> float:
    """Euclidean norm of all tensors as one vector, summed in float64."""
    return float(sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5)


def clip_global(tensors: dict[str, Tensor], settings: ClipSettings, _: torch.Generator) -> dict[str, Tensor]:
    """u * min(1, C / |u|) over the whole update (McMahan et al. 2018, section 2.2, flat clipping)."""
    scale = min(1.0, settings.norm / max(global_norm(tensors), 1e-30))
    return {name: tensor * scale for name, tensor in tensors.items()}


def clip_layers(tensors: dict[str, Tensor], settings: ClipSettings, _: torch.Generator) -> dict[str, Tensor]:
    """Each tensor clipped to C / sqrt(number of tensors), so that the whole is at most C (the same, per layer)."""
    share = settings.norm / max(1, len(tensors)) ** 0.5
    return {
        name: tensor * min(1.0, share / max(global_norm({name: tensor}), 1e-30)) for name, tensor in tensors.items()
    }
