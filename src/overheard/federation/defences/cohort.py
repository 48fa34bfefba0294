"""What is done to a whole round's updates before anybody but the one who sums them sees the result.

Each function takes the cohort's updates and their weights and returns the mean that the server goes on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from overheard.federation.defences.clipping import ClipSettings, clip_global
from overheard.federation.defences.noise import NoiseSettings, gaussian_noise
from overheard.federation.defences.quantisation import NoSettings
from overheard.recognition.configuration import check_positive

Updates = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class UserDPSettings:
    """`multiplier` of the noise in units of `norm`, to which every client's update is clipped."""

    multiplier: float = 1.0
    norm: float = 1.0

    def __post_init__(self) -> None:
        check_positive("multiplier", self.multiplier)
        check_positive("norm", self.norm)


def weighted_mean(updates: Updates, weights: Sequence[float]) -> dict[str, Tensor]:
    """Summed in float64 in the order given; of the first update's types."""
    total = sum(weights)
    return {
        name: torch.stack(
            [each[name].double() * (weight / total) for each, weight in zip(updates, weights, strict=True)]
        )
        .sum(0)
        .to(first.dtype)
        for name, first in updates[0].items()
    }


def secure_aggregation(
    updates: Updates, weights: Sequence[float], _: NoSettings, __: int, ___: torch.Generator
) -> dict[str, Tensor]:
    """The weighted mean: all that a server learns of a round under secure aggregation (Bonawitz et al. 2017)."""
    return weighted_mean(updates, weights)


def central_noise(
    updates: Updates, weights: Sequence[float], settings: NoiseSettings, _: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The weighted mean with Gaussian noise on each coordinate."""
    return gaussian_noise(weighted_mean(updates, weights), settings, generator)


def user_dp(
    updates: Updates, _: Sequence[float], settings: UserDPSettings, cohort: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Sum of updates clipped to C, plus N(0, (z C)^2), over the cohort's planned size (McMahan et al. 2018, alg. 1).

    Weights are equal and the divisor is fixed whoever answers: otherwise one client would change more than C.
    """
    clipped = [clip_global(each, ClipSettings(settings.norm), generator) for each in updates]
    summed = {name: tensor * len(clipped) for name, tensor in weighted_mean(clipped, [1.0] * len(clipped)).items()}
    noisy = gaussian_noise(summed, NoiseSettings(settings.multiplier * settings.norm), generator)
    return {name: tensor / cohort for name, tensor in noisy.items()}
