"""Sparsification: a share of the coordinates is sent, the others are zero."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overheard.errors import InputError


@dataclass(frozen=True)
class SparsitySettings:
    """`keep`: share of the coordinates that is sent, above 0 and at most 1."""

    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError("keep", self.keep, "give a share above 0 and at most 1")


def top_k(tensors: dict[str, Tensor], settings: SparsitySettings, _: torch.Generator) -> dict[str, Tensor]:
    """The coordinates that are largest in magnitude over the whole update (Aji and Heafield 2017)."""
    sizes = torch.cat([tensor.abs().flatten() for tensor in tensors.values()])
    threshold = _smallest_kept(sizes, settings.keep)
    return {name: _from(tensor, threshold) for name, tensor in tensors.items()}


def prune(tensors: dict[str, Tensor], settings: SparsitySettings, _: torch.Generator) -> dict[str, Tensor]:
    """The largest coordinates of each tensor by itself (gradient pruning as in Zhu et al. 2019, section 5.2)."""
    return {
        name: _from(tensor, _smallest_kept(tensor.abs().flatten(), settings.keep)) for name, tensor in tensors.items()
    }


def random_k(tensors: dict[str, Tensor], settings: SparsitySettings, generator: torch.Generator) -> dict[str, Tensor]:
    """Coordinates drawn independently with probability `keep`, divided by it: the mean stays (Konecny et al. 2016)."""
    return {
        name: tensor * (torch.rand(tensor.shape, generator=generator) < settings.keep).to(tensor) / settings.keep
        for name, tensor in tensors.items()
    }


def _smallest_kept(sizes: Tensor, keep: float) -> float:
    number = max(1, round(keep * len(sizes)))
    return float(sizes.kthvalue(len(sizes) - number + 1).values)


def _from(tensor: Tensor, threshold: float) -> Tensor:
    return torch.where(tensor.abs() >= threshold, tensor, torch.zeros_like(tensor))
