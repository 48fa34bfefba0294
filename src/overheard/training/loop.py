"""The loop: epochs of steps, checkpoints that a killed run goes on from, and a record of what went wrong."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from overheard import __version__
from overheard.errors import InputError
from overheard.recognition.checkpoint import (
    Checkpoint,
    generator_state,
    load_generator_state,
    load_optimiser_state,
    optimiser_state,
    write_checkpoint,
)
from overheard.recognition.recurrence import set_engine
from overheard.training.data import FeatureDataset, Heard, bucketing, training_loader
from overheard.training.evaluation import Evaluation, evaluate
from overheard.training.schedule import build_optimiser, learning_rate, set_learning_rate
from overheard.training.settings import TrainingSettings
from overheard.training.step import Fault, Learnt, take_step
from overheard.training.tracking import Tracker

SHOWN_EVERY = 2.0
"""Seconds between two looks of the table."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch: whole passes over the corpus.
        batch: batches of the current pass that this process has used up.
        step: steps taken.
        skipped: steps skipped, those apart in which 16-bit floats overflowed.
        utterances: learnt from, counted each time.
        seconds: spent, evaluation included, over all sittings.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    utterances: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Corpora:
    """What a run learns from and what it is measured on; the latter may be empty."""

    train: Sequence[MonoCut]
    dev: Sequence[MonoCut]


class Run:
    """One training run in one process.

    Args:
        fabric: launched.
        model: of a registered class, on the CPU.
        corpora: usable cuts.
        settings: how to train.
        configuration: JSON object that a checkpoint must agree with to be taken up.
        folder: the run's folder.
        workers: processes that prepare batches.
        checkpoint: to go on from.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        corpora: Corpora,
        settings: TrainingSettings,
        configuration: dict[str, Any],
        folder: Path,
        workers: int,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.fabric = fabric
        self.corpora = corpora
        self.settings = settings
        self.configuration = configuration
        self.folder = folder
        self.workers = workers
        self.progress = Progress()
        self.evaluations: list[dict[str, Any]] = []
        self.latest: dict[str, float] = {}
        self.dataset = FeatureDataset(model, settings.augmentation, settings.seed)
        self.wrapped, self.optimiser = fabric.setup(model, build_optimiser(model, settings))
        self.model = self.wrapped.module
        # On a CPU, torch's kernel fills a gradient of the whole batch with zeros at each frame of a padded batch:
        # quadratic in time. The sweep is not, and computes the same.
        set_engine(self.model, "analytic" if fabric.device.type == "cpu" and settings.precision == "32" else "native")
        # Dropout differs between processes and repeats with the seed.
        torch.manual_seed(settings.seed + fabric.global_rank)
        if checkpoint is not None:
            self._take_up(checkpoint)
        self.started = time.perf_counter() - self.progress.seconds

    def train(self, console: Console) -> None:
        """Go through all epochs.

        Raises:
            InputError: too many steps were skipped, or not one succeeded.
        """
        with Tracker(self.folder, self.fabric.global_rank, self.progress.step, console) as tracker:
            while self.progress.epoch < self.settings.epochs:
                self._epoch(tracker)

    def _epoch(self, tracker: Tracker) -> None:
        self.wrapped.train()
        epoch = self.progress.epoch
        batches = sum(1 for _ in self._sampler(epoch))
        loader = training_loader(
            self.dataset, self._sampler(epoch), epoch=epoch, skipped=self.progress.batch, workers=self.workers
        )
        group: list[Heard] = []
        waiting = shown = time.perf_counter()
        for heard in loader:
            group.append(heard)
            last = self.progress.batch + len(group) == batches
            if len(group) < self.settings.accumulate and not last:
                continue
            waited = time.perf_counter() - waiting
            taken = self._step(tracker, group, batches, waited)
            group = []
            waiting = time.perf_counter()
            if taken and not last and self.progress.step % self.settings.checkpoint_every == 0:
                self.save(None)
            if time.perf_counter() - shown > SHOWN_EVERY:
                shown = time.perf_counter()
                tracker.row(self._row(None), False)
        self.progress = replace(self.progress, epoch=epoch + 1, batch=0)
        if self.progress.step == 0:
            found = f"not one of {self.progress.skipped} steps in the first epoch succeeded"
            raise InputError("training", found, f"{self.folder} names the utterances and reasons in faults.jsonl")
        self._finish_epoch(tracker)

    def _step(self, tracker: Tracker, group: list[Heard], batches: int, waited: float) -> bool:
        settings, progress = self.settings, self.progress
        rate = learning_rate(settings, (progress.epoch + progress.batch / batches) / settings.epochs)
        set_learning_rate(self.optimiser, rate)
        begun = time.perf_counter()
        outcome = take_step(self.fabric, self.wrapped, self.optimiser, group, settings)
        spent = time.perf_counter() - begun
        for each in group:
            for problem in each.problems:
                tracker.fault(progress.step, "file", (problem.utterance,), problem.reason)
        progress = replace(progress, batch=progress.batch + len(group), seconds=begun + spent - self.started)
        if isinstance(outcome, Fault):
            tracker.fault(progress.step, outcome.kind, outcome.utterances, outcome.reason)
            failed = outcome.kind != "scaling"
            self.progress = replace(progress, skipped=progress.skipped + failed)
            if self.progress.skipped > settings.most_skipped:
                found = f"{self.progress.skipped} steps skipped, the last because {outcome.reason}"
                raise InputError("training", found, f"see faults.jsonl in {self.folder}, or raise most_skipped")
            return False
        self.progress = replace(progress, step=progress.step + 1, utterances=progress.utterances + outcome.utterances)
        self._learnt(tracker, outcome, rate, waited, spent)
        return True

    def _learnt(self, tracker: Tracker, outcome: Learnt, rate: float, waited: float, spent: float) -> None:
        self.latest = {
            "loss": outcome.loss,
            "gradient_norm": outcome.gradient_norm,
            "learning_rate": rate,
            "utterances_per_second": outcome.utterances / (waited + spent),
        }
        progress = self.progress
        tracker.record(
            "step",
            progress.step,
            epoch=progress.epoch,
            **self.latest,
            utterances=progress.utterances,
            skipped=progress.skipped,
            seconds=progress.seconds,
            seconds_waiting=waited,
        )

    def _finish_epoch(self, tracker: Tracker) -> None:
        progress, settings = self.progress, self.settings
        measured: Evaluation | None = None
        due = progress.epoch % settings.evaluate_every == 0 or progress.epoch == settings.epochs
        if due and self.corpora.dev:
            measured = evaluate(self.model, self.corpora.dev, settings.batch_seconds, self.fabric)
            self.progress = progress = replace(progress, seconds=time.perf_counter() - self.started)
            line = {"step": progress.step, "epoch": progress.epoch, **asdict(measured), "seconds": progress.seconds}
            self.evaluations.append(line)
            tracker.record("evaluation", **line)
        self.save(None if measured is None else measured.wer)
        tracker.row(self._row(measured), True)

    def save(self, wer: float | None) -> None:
        """Write a checkpoint; every process must call this together.

        Args:
            wer: the error rate measured at this very step, None without one.
        """
        tensors, values = optimiser_state(self.optimiser.optimizer)
        tensors |= self._generators()
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            state = {
                "configuration": self.configuration,
                "progress": asdict(self.progress),
                "optimiser": values,
                "precision": self.fabric.strategy.precision.state_dict(),
                "evaluations": self.evaluations,
                "wer": wer,
                "versions": {"overheard": __version__, "torch": torch.__version__},
            }
            write_checkpoint(self.folder, self.progress.step, self.model, tensors, state, self.settings.keep)
        self.fabric.barrier()

    def _take_up(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.model.load_state_dict(checkpoint.model.state_dict())
        load_optimiser_state(self.optimiser.optimizer, checkpoint.tensors, state["optimiser"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        rank = f"rank{self.fabric.global_rank}."
        load_generator_state(
            {name.removeprefix(rank): each for name, each in checkpoint.tensors.items() if name.startswith(rank)}
        )
        self.progress = Progress(**state["progress"])
        self.evaluations = state["evaluations"]

    def _generators(self) -> dict[str, Tensor]:
        """State of every process's random generators, by process."""
        gathered: dict[str, Tensor] = {}
        for name, state in generator_state().items():
            together = self.fabric.all_gather(state.to(self.fabric.device))
            assert isinstance(together, Tensor)
            for rank, each in enumerate(together.reshape(self.fabric.world_size, -1)):
                gathered[f"rank{rank}.{name}"] = each.cpu()
        return gathered

    def _sampler(self, epoch: int) -> Any:
        return bucketing(
            self.corpora.train,
            self.settings,
            epoch,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )

    def _row(self, measured: Evaluation | None) -> tuple[str, ...]:
        numbers = [
            self.latest.get(name) for name in ("loss", "gradient_norm", "learning_rate", "utterances_per_second")
        ]
        if measured is None:
            numbers += [None, None, None]
        else:
            numbers += [measured.loss, _percent(measured.cer), _percent(measured.wer)]
        cells = ["-" if value is None else f"{value:.3g}" for value in numbers]
        return (str(self.progress.epoch), str(self.progress.step), *cells, str(self.progress.skipped))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
