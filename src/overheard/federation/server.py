"""The server of a federated run: rounds, measurements, records, and checkpoints that a killed run goes on from."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from lhotse import MonoCut
from rich.console import Console
from torch import nn

from overheard import __version__
from overheard.federation.accounting import sample_level_epsilon, user_level_epsilon
from overheard.federation.capture import keep_model, keep_updates
from overheard.federation.grids import PatientGrid
from overheard.federation.messages import Task, as_values, to_record
from overheard.federation.round_report import RoundReport
from overheard.federation.rounds import Rounds
from overheard.federation.settings import FederationSettings
from overheard.federation.strategies import build_strategy, load_strategy_state, strategy_state
from overheard.recognition.checkpoint import Checkpoint, write_checkpoint
from overheard.recognition.models import spec_of
from overheard.storage import write_text
from overheard.training.evaluation import evaluate_speakers
from overheard.training.tracking import FAULTS, METRICS, read_lines

GRACE = 60.0
"""Seconds for messages to travel, and for a worker whose client hung to start again, beyond what a client may take."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        round: finished.
        utterances: heard by all clients, counted each time.
        seconds: spent, over all sittings.
        steps: of DP-SGD by client.
        rates: sampling rate of DP-SGD by client.
    """

    round: int = 0
    utterances: int = 0
    seconds: float = 0.0
    steps: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


class Server:
    """One federated run.

    Args:
        model: with the weights to start from, on the CPU.
        settings: of the run.
        configuration: JSON object that a checkpoint must agree with to be taken up.
        population: clients that there are.
        dev: utterances that the server measures on; none to measure nothing.
        folder: the run's.
        console: where each round gets a line.
        device: where the server measures.
        checkpoint: to go on from.
        secret: noise comes from the system and not from the seed.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: FederationSettings,
        configuration: dict[str, Any],
        population: int,
        dev: Sequence[MonoCut],
        folder: Path,
        console: Console,
        device: str = "cpu",
        checkpoint: Checkpoint | None = None,
        secret: bool = False,
    ) -> None:
        self.model = model
        self.spec = spec_of(model)
        self.settings = settings
        self.configuration = configuration
        self.population = population
        self.dev = dev
        self.folder = folder
        self.console = console
        self.device = device
        self.progress = Progress()
        self.evaluations: list[dict[str, Any]] = []
        self.written = 0
        self.named = ("", "")
        self.inner = build_strategy(settings.strategy)
        if checkpoint is not None:
            model.load_state_dict(checkpoint.model.state_dict())
            load_strategy_state(self.inner, checkpoint.tensors)
            self.progress = Progress(**checkpoint.state["progress"])
            self.evaluations = checkpoint.state["evaluations"]
            self.written = self.progress.round
        self.rounds = Rounds(
            self.inner, model, settings, self.progress.round, population, self._task, self._report, secret
        )
        self.started = time.perf_counter() - self.progress.seconds
        for name in (METRICS, FAULTS):
            self._drop_later(folder / name)

    def run(self, grid: Grid, stop: threading.Event, waves: int = 1, window: int | None = None) -> None:
        """Carry out the rounds that are left.

        Args:
            grid: to the clients.
            stop: ends the run from another thread.
            waves: how many clients one worker serves in a round.
            window: messages that may be under way at a time; None for all.

        Raises:
            InputError: a round without enough valid replies, or a mean that is not finite.
            Stopped: `stop` was set.
        """
        left = self.settings.rounds - self.progress.round
        if left <= 0:
            return
        self.rounds.start(
            grid=PatientGrid(grid, stop, window),
            initial_arrays=to_record(self.rounds.parameters()),
            num_rounds=left,
            timeout=(self.settings.deadline + GRACE) * waves,
            train_config=ConfigRecord(),
            evaluate_fn=self._finish_round,
        )

    def epsilon(self) -> float | None:
        """Of what has been released so far; None where nothing is guaranteed."""
        summing = self.rounds.summing
        progress, delta = self.progress, self.settings.delta
        if summing is not None and summing.name == "user-dp":
            cohort, multiplier = self.settings.clients_per_round, summing.settings.multiplier
            return user_level_epsilon(self.population, cohort, multiplier, progress.round, delta)
        multiplier = self.rounds.local.noise_multiplier
        if multiplier is None:
            return None
        # The worst-off client counts.
        return max(
            (
                sample_level_epsilon(progress.rates[name], multiplier, steps, delta)
                for name, steps in progress.steps.items()
            ),
            default=0.0,
        )

    def _task(self, number: int, cohort: tuple[str, ...]) -> Task:
        settings = self.settings
        kept = settings.captures(number)
        self.named = keep_model(self.folder, number, self.model) if kept else ("", "")
        return Task(
            number=number,
            seed=settings.seed,
            model=self.spec,
            local=settings.local_in(number),
            defences=tuple(each.text for each in settings.chosen() if each.defence.place == "update"),
            named=self.named[0],
            weights=self.named[1],
            witnesses=self._witnesses(number, cohort),
            augmentation=settings.augmentation,
        )

    def _witnesses(self, number: int, cohort: tuple[str, ...]) -> tuple[str, ...]:
        kept = self.settings.captures(number)
        return cohort if kept and self.rounds.summing is not None else cohort[:kept]

    def _report(self, report: RoundReport) -> None:
        answers, progress, local = report.answers, self.progress, self.settings.local_in(report.number)
        for name, reason in sorted(report.left_out.items()):
            self._append(FAULTS, {"step": report.number, "client": name, "reason": reason})
            self.console.print(f"round {report.number}: left out {name}: {reason}", highlight=False, soft_wrap=True)
        if self.settings.captures(report.number):
            keep_updates(self.folder, report, self.named, local, self._witnesses(report.number, report.cohort))
        steps, rates = dict(progress.steps), dict(progress.rates)
        if local.noise_multiplier is not None:
            for each in answers:
                steps[each.client] = steps.get(each.client, 0) + each.steps
                rates[each.client] = each.rate
        heard = sum(each.utterances for each in answers)
        self.progress = replace(
            progress,
            round=report.number,
            utterances=progress.utterances + heard,
            seconds=time.perf_counter() - self.started,
            steps=steps,
            rates=rates,
        )
        epsilon = self.epsilon()
        self._append(
            METRICS,
            {
                "kind": "step",
                "step": report.number,
                "learning_rate": local.learning_rate,
                "loss": sum(each.loss * each.utterances for each in answers) / max(1, heard),
                "clients": [as_values(each) for each in answers],
                "left_out": report.left_out,
                "utterances": self.progress.utterances,
                "bytes_to_clients": report.received,
                "bytes_from_clients": sum(each.size for each in answers),
                "seconds_round": report.seconds,
                "seconds_clients": sum(each.seconds for each in answers),
                "cpu_clients": sum(each.cpu for each in answers),
                "cpu_process": time.process_time(),
                "utterances_per_second": heard / report.seconds,
                "epsilon": epsilon,
                "delta": None if epsilon is None else self.settings.delta,
                "seconds": self.progress.seconds,
            },
        )

    def _finish_round(self, number: int, _: ArrayRecord) -> MetricRecord | None:
        """Flower calls this before the first round, as number 0, and after every round."""
        number += self.rounds.first
        if number == self.written:
            return None
        every = self.settings.evaluate_every
        wer = self._measure(number) if every and (number % every == 0 or self._is_last(number)) else None
        self.progress = replace(self.progress, seconds=time.perf_counter() - self.started)
        state = {
            "configuration": self.configuration,
            "progress": asdict(self.progress),
            "evaluations": self.evaluations,
            "wer": wer,
            "versions": {"overheard": __version__, "torch": torch.__version__},
        }
        write_checkpoint(self.folder, number, self.model, strategy_state(self.inner), state, self.settings.keep)
        self.written = number
        self._print(number)
        return None

    def _measure(self, number: int) -> float | None:
        if not self.dev:
            return None
        self.model.to(self.device)
        measured, by_speaker = evaluate_speakers(self.model, self.dev, self.settings.evaluate_seconds)
        line = {"step": number, "utterances_heard": self.progress.utterances, **asdict(measured)}
        speakers = {name: asdict(own) for name, own in by_speaker.items()}
        self.model.to("cpu")
        # Every checkpoint holds all evaluations: with the speakers of each they would outgrow it.
        self.evaluations.append({**line, "speakers": speakers} if self._is_last(number) else line)
        seconds = time.perf_counter() - self.started
        self._append(METRICS, {"kind": "evaluation", **line, "speakers": speakers, "seconds": seconds})
        return measured.wer

    def _is_last(self, number: int) -> bool:
        return number == self.settings.rounds

    def _print(self, number: int) -> None:
        line = read_lines(self.folder / METRICS)
        step = next(each for each in reversed(line) if each["kind"] == "step")
        parts = [
            f"round {number}/{self.settings.rounds}",
            f"loss {step['loss']:.3f}",
            f"{len(step['clients'])} clients",
            f"{step['seconds_round']:.1f} s",
        ]
        if self.evaluations and self.evaluations[-1]["step"] == number and self.evaluations[-1]["wer"] is not None:
            parts.append(f"WER {100 * self.evaluations[-1]['wer']:.2f} %")
        if step["epsilon"] is not None:
            parts.append(f"epsilon {step['epsilon']:.2f} at delta {step['delta']:g}")
        self.console.print("  ".join(parts), highlight=False)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _drop_later(self, path: Path) -> None:
        """What a killed run wrote of rounds that are now repeated."""
        if path.is_file():
            kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= self.progress.round]
            write_text(path, "".join(kept))
