"""Defences that change how a client trains, and nothing about what it then sends."""

from dataclasses import dataclass, replace

from overheard.errors import InputError
from overheard.federation.local_settings import LocalSettings
from overheard.recognition.configuration import check_positive, check_whole


@dataclass(frozen=True)
class DropoutSettings:
    """`share` of units left out in training."""

    share: float = 0.2


@dataclass(frozen=True)
class StepsSettings:
    """`steps` of local SGD in a round."""

    steps: int = 4

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1, 2**31)


@dataclass(frozen=True)
class BatchSettings:
    """`utterances` in each step."""

    utterances: int = 16

    def __post_init__(self) -> None:
        check_whole("utterances", self.utterances, 1, 2**31)


@dataclass(frozen=True)
class FrozenSettings:
    """`layers`: parameters whose names begin so stay as they are, such as ["input_layers.0"] or ["conv"]."""

    layers: tuple[str, ...] = ("input_layers.0", "conv")

    def __post_init__(self) -> None:
        if not self.layers or not all(self.layers):
            raise InputError("layers", list(self.layers), "give the beginnings of parameters' names")


@dataclass(frozen=True)
class SampleDPSettings:
    """`multiplier` of the noise, in units of `norm`, to which every utterance's gradient is clipped; `learning_rate` of
    its steps, which are plain descent whatever the client's optimiser, None for the client's own."""

    multiplier: float = 1.0
    norm: float = 1.0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        check_positive("multiplier", self.multiplier)
        check_positive("norm", self.norm)
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)


def dropout(local: LocalSettings, settings: DropoutSettings) -> LocalSettings:
    """Units left out at random hide which of them an utterance touches."""
    return replace(local, dropout=settings.share, mode="train")


def local_steps(local: LocalSettings, settings: StepsSettings) -> LocalSettings:
    """Several steps, of which the server sees the sum."""
    return replace(local, kind="delta", steps=settings.steps)


def larger_batch(local: LocalSettings, settings: BatchSettings) -> LocalSettings:
    """More utterances in one gradient."""
    return replace(local, batch_size=settings.utterances)


def frozen_layers(local: LocalSettings, settings: FrozenSettings) -> LocalSettings:
    """Layers that are not trained have no gradient to send."""
    return replace(local, frozen=(*local.frozen, *settings.layers))


def sample_dp(local: LocalSettings, settings: SampleDPSettings) -> LocalSettings:
    """DP-SGD (Abadi et al. 2016, algorithm 1); `federation.private_sgd` carries it out."""
    return replace(
        local,
        kind="delta",
        optimiser="sgd",
        learning_rate=settings.learning_rate or local.learning_rate,
        noise_multiplier=settings.multiplier,
        sample_norm=settings.norm,
    )
