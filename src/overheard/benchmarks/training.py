"""Training one epoch: buckets and the sweep against random batches and torch's recurrences, part by part.

Both learn from the same utterances, in batches of the same number on average, each in a process of its own.
"""

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from lhotse import MonoCut
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from overheard.benchmarks.measurement import Measurement
from overheard.benchmarks.plain_deepspeech2 import PlainDeepSpeech2
from overheard.metering import metered
from overheard.recognition.deepspeech2 import DeepSpeech2, DeepSpeech2Config
from overheard.recognition.recogniser import as_recogniser
from overheard.recognition.recurrence import CellName, set_engine
from overheard.speech.batching import Batch, collate
from overheard.speech.corpus import Selection, load_corpus, load_utterance, select
from overheard.speech.features import FrontEnd
from overheard.training.data import bucketing, usable
from overheard.training.settings import TrainingSettings

PARTS: tuple[str, ...] = ("data", "features", "forward", "CTC", "backward", "optimiser")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_", "convolution", "mkldnn", "gemm")
"""Operators, by a part of their names, that multiply matrices."""


@dataclass(frozen=True)
class TrainingLoad:
    """What is trained, on what.

    Attributes:
        corpus: folder or manifest.
        limit: so many of its utterances, drawn by the seed: its real mix of durations.
        batch_seconds: audio in one batch, s.
        cell: of the recurrences.
        num_layers: recurrences.
        hidden_size: units in each direction.
        threads: of torch.
        seed: of all that is drawn.
    """

    corpus: Path
    limit: int = 48
    batch_seconds: float = 60.0
    cell: CellName = "gru"
    num_layers: int = 5
    hidden_size: int = 800
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    Attributes:
        utterances: learnt from.
        batches: steps taken.
        parts: seconds by part.
        cpu_seconds: of all threads together: what other work on the machine does not lengthen.
        peak_mb: memory at its peak, above that before the model was built.
        products: share of one batch's forward and backward time that operators spend in multiplying matrices.
    """

    utterances: int
    batches: int
    parts: dict[str, float]
    cpu_seconds: float
    peak_mb: float
    products: float

    @property
    def seconds(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


def measure(load: TrainingLoad) -> tuple[Epoch, Epoch]:
    """One epoch of ours and one of the plain way."""
    return _in_fresh_process(load, False), _in_fresh_process(load, True)


def ratios(ours: Epoch, plain: Epoch, name: str) -> list[Measurement]:
    """Time and memory against their targets."""
    return [
        Measurement(f"{name}: seconds", ours.seconds, plain.seconds, "s", 1 / 1.3),
        Measurement(f"{name}: CPU seconds of all threads", ours.cpu_seconds, plain.cpu_seconds, "s", 1 / 1.3),
        Measurement(f"{name}: peak memory", ours.peak_mb, plain.peak_mb, "MB", 1.0),
    ]


def _in_fresh_process(load: TrainingLoad, plain: bool) -> Epoch:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_train, load, plain).result()


def _train(load: TrainingLoad, plain: bool) -> Epoch:
    torch.set_num_threads(load.threads)
    torch.manual_seed(load.seed)
    config = DeepSpeech2Config(cell=load.cell, num_layers=load.num_layers, hidden_size=load.hidden_size)
    timer = _Timer()
    with metered(torch.device("cpu")) as meter:
        model = PlainDeepSpeech2(config) if plain else DeepSpeech2(config, load.seed)
        set_engine(model, "analytic")
        chosen, _ = select(load_corpus(load.corpus), Selection(limit=load.limit, seed=load.seed))
        cuts, _ = usable(model, chosen)
        settings = TrainingSettings(batch_seconds=load.batch_seconds, seed=load.seed)
        batches: list[list[MonoCut]] = [list(batch) for batch in bucketing(cuts, settings, 0)]
        if plain:
            batches = _random_batches(cuts, len(batches), load.seed)
        optimiser = torch.optim.AdamW(model.parameters())
        for batch_cuts in batches:
            batch = _hear(model, batch_cuts, timer)
            _learn(model, optimiser, batch, timer)
    products = _products(model, optimiser, _hear(model, batches[0], _Timer()))
    return Epoch(len(cuts), len(batches), timer.parts, timer.cpu_seconds, meter.peak_mb or 0.0, products)


def _random_batches(cuts: Sequence[MonoCut], count: int, seed: int) -> list[list[MonoCut]]:
    shuffled = random.Random(seed).sample(list(cuts), len(cuts))
    return [shuffled[index * len(cuts) // count : (index + 1) * len(cuts) // count] for index in range(count)]


def _hear(model: nn.Module, cuts: Sequence[MonoCut], timer: "_Timer") -> Batch:
    with timer("data"):
        utterances = [load_utterance(cut) for cut in cuts]
    with timer("features"), torch.no_grad():
        front_end = FrontEnd(as_recogniser(model).front_end)
        features = [front_end(utterance.waveform) for utterance in utterances]
        return collate(features, [as_recogniser(model).alphabet.encode(each.transcript) for each in utterances])


def _learn(model: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, timer: "_Timer") -> None:
    with timer("forward"):
        logits, lengths = model(batch.features, batch.num_frames)
    with timer("CTC"):
        losses = functional.ctc_loss(
            logits.log_softmax(-1), batch.targets, lengths, batch.target_lengths, reduction="sum", zero_infinity=True
        )
    with timer("backward"):
        (losses / batch.size).backward()
    with timer("optimiser"):
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def _products(model: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        _learn(model, optimiser, batch, _Timer())
    times = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    return sum(value for name, value in times.items() if any(each in name for each in PRODUCTS)) / sum(times.values())


class _Timer:
    """Seconds by part, and of all threads."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started, used = time.perf_counter(), time.process_time()
        yield
        self.parts[part] += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - used
