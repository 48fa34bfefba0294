"""`TrainingSettings`: everything that decides what a training run computes; stored with every checkpoint."""

from dataclasses import dataclass
from typing import Any, Literal

from overheard.errors import InputError
from overheard.recognition.configuration import check_positive, check_whole, config_to_json
from overheard.speech.augmentation import AugmentationConfig

OptimiserName = Literal["adamw", "sgd", "novograd"]
ScheduleName = Literal["cosine", "one-cycle", "constant"]
Precision = Literal["32", "bf16", "16"]


@dataclass(frozen=True)
class TrainingSettings:
    """How a recogniser is trained.

    Attributes:
        epochs: passes over the corpus.
        batch_seconds: audio in one batch of one process, s; utterances of like duration come together.
        grown_batch: (share of the epochs, audio, s): behind that share of the epochs, so much audio is in one batch.
            Small batches make many steps, which the beginning needs; but utterances that are often alone in theirs are
            normalised by their own statistics, and not heard later by those of all.
        buckets: into how many classes of duration the corpus falls.
        accumulate: batches whose gradients make one step.
        optimiser: adamw, sgd (Nesterov momentum), or novograd, which needs the extra `optimisers`.
        learning_rate: the highest of the schedule.
        weight_decay: decoupled from the gradient with adamw.
        momentum: of sgd.
        schedule: cosine falls to 1 % of the highest after a linear warm-up; one-cycle (Smith and Topin 2017) rises
            from 4 % to the highest and falls to nearly nothing; constant stays after the warm-up.
        warmup: share of all steps in which the learning rate rises.
        clip_norm: largest norm of the gradient.
        precision: 32-bit floats, or autocast to bf16 or to 16-bit floats with loss scaling.
        augmentation: what is changed in what the model hears.
        evaluate_every: epochs between two measurements of the word error rate; the last epoch is always measured.
        checkpoint_every: steps between two checkpoints; the end of an epoch has one too.
        keep: how many of the last checkpoints stay, beside the best one.
        most_skipped: batches that may be skipped, for whatever reason, before the run ends with an error.
        seed: of the order, the augmentation and the dropout.

    Raises:
        InputError: a value out of range.
    """

    epochs: int = 20
    batch_seconds: float = 120.0
    grown_batch: tuple[float, float] | None = None
    buckets: int = 10
    accumulate: int = 1
    optimiser: OptimiserName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: ScheduleName = "cosine"
    warmup: float = 0.05
    clip_norm: float = 100.0
    precision: Precision = "32"
    augmentation: AugmentationConfig = AugmentationConfig()
    evaluate_every: int = 1
    checkpoint_every: int = 1000
    keep: int = 3
    most_skipped: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "buckets", "accumulate", "evaluate_every", "checkpoint_every", "keep"):
            check_whole(name, getattr(self, name), 1, 2**31)
        check_whole("most_skipped", self.most_skipped, 0, 2**31)
        for name in ("batch_seconds", "learning_rate", "clip_norm"):
            check_positive(name, getattr(self, name))
        if self.grown_batch is not None:
            share, seconds = self.grown_batch
            check_positive("grown_batch", seconds)
            if not 0 < share < 1:
                raise InputError("grown_batch", share, "give a share of the epochs above 0 and below 1")
        for name in ("weight_decay", "momentum", "warmup"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InputError(name, value, "give a number from 0 to below 1")

    def batch_seconds_in(self, epoch: int) -> float:
        """Audio in one batch of an epoch, the first being 0; s."""
        if self.grown_batch is None or epoch < round(self.grown_batch[0] * self.epochs):
            return self.batch_seconds
        return self.grown_batch[1]


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two JSON objects differ, one line each: "settings.epochs: 20 there, 30 now"."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        there, here = before.get(name), now.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += differences(there, here, f"{prefix}{name}.")
        elif there != here:
            lines.append(f"{prefix}{name}: {there} there, {here} now")
    return lines


def settings_to_json(settings: TrainingSettings) -> dict[str, Any]:
    """Every field as JSON values."""
    return config_to_json(settings)
