"""`LocalSettings`: everything that decides what a client computes in one round; the server sends it along."""

from dataclasses import dataclass
from typing import Literal

from overheard.errors import InputError
from overheard.federation.update import Kind, Mode
from overheard.recognition.configuration import check_choice, check_positive, check_whole

Buffers = Literal["average", "local"]
Weighting = Literal["utterances", "frames", "equal"]


@dataclass(frozen=True)
class LocalSettings:
    """How a client trains.

    Attributes:
        kind: "gradient" of one batch (FedSGD), or "delta" = client - server after local training (FedAvg; McMahan et
            al. 2017).
        epochs: passes over the client's speech in a round.
        steps: steps in a round instead of epochs.
        batch_size: utterances in one step; a client with fewer takes all.
        optimiser: plain SGD, or AdamW without weight decay, whose state lasts for one round.
        learning_rate: of local training.
        clip_norm: largest norm of the gradient of one local step of SGD or AdamW.
        mode: normalisation and dropout as in training or as in evaluation.
        buffers: running statistics of batch norms: "average" over clients, or "local" to each, never sent.
        weighting: of a client's update in the mean.
        proximal: weight of the pull towards the server's weights, mu of FedProx (Li et al. 2020, eq. 2).
        frozen: parameters whose names begin so are neither trained nor sent.
        dropout: replaces the model's own share of units left out.
        noise_multiplier: of DP-SGD; None without it.
        sample_norm: largest norm of one utterance's gradient in DP-SGD.

    Raises:
        InputError: a value out of range, or two that contradict each other.
    """

    kind: Kind = "delta"
    epochs: int = 1
    steps: int | None = None
    batch_size: int = 8
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.05
    clip_norm: float = 100.0
    mode: Mode = "train"
    buffers: Buffers = "average"
    weighting: Weighting = "utterances"
    proximal: float = 0.0
    frozen: tuple[str, ...] = ()
    dropout: float | None = None
    noise_multiplier: float | None = None
    sample_norm: float = 1.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("gradient", "delta"))
        check_choice("mode", self.mode, ("train", "eval"))
        for name in ("epochs", "batch_size"):
            check_whole(name, getattr(self, name), 1, 2**31)
        if self.steps is not None:
            check_whole("steps", self.steps, 1, 2**31)
        for name in ("learning_rate", "clip_norm", "sample_norm"):
            check_positive(name, getattr(self, name))
        if self.noise_multiplier is not None:
            check_positive("noise_multiplier", self.noise_multiplier)
        if self.proximal < 0:
            raise InputError("proximal", self.proximal, "give a weight from 0 up")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError("dropout", self.dropout, "give a share from 0 to below 1")
        if self.kind == "gradient" and self.noise_multiplier is not None:
            raise InputError("kind", "a gradient with DP-SGD", "DP-SGD shares the change of weights: kind delta")
        if self.optimiser != "sgd" and self.noise_multiplier is not None:
            raise InputError("optimiser", f"{self.optimiser} with DP-SGD", "choose sgd")
