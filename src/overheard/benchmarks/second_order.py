"""One step of gradient matching through DeepSpeech 2: time and memory of the engines, side by side."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from overheard.attacks.gradient_matching.distances import Distance, DistanceConfig, build_distance
from overheard.attacks.gradient_matching.problem import labelled_batch
from overheard.attacks.gradient_matching.second_order import Engine, EngineChoice, MatchingStep, grad_of_distance
from overheard.benchmarks.measurement import Measurement, best_of_each, thread_count
from overheard.federation.update import Protocol
from overheard.metering import metered
from overheard.recognition.loss import recognition_loss
from overheard.recognition.models import ModelSpec, build_model
from overheard.speech.batching import Batch

LABELS_PER_OUTPUT_FRAME = 0.28


@dataclass(frozen=True)
class StepSize:
    """What is stepped through: a recogniser of `num_layers` GRUs of `hidden_size` units, and T frames."""

    num_layers: int = 3
    hidden_size: int = 256
    frames: int = 400

    @property
    def name(self) -> str:
        return f"DeepSpeech 2 {self.num_layers}x{self.hidden_size} GRU, T={self.frames}"


SMALL = StepSize()
LARGE = StepSize(5, 800, 100)


def measure(
    threads: int = 1, *, repeats: int = 3, small: StepSize = SMALL, large: StepSize = LARGE
) -> list[Measurement]:
    """Times and weighs one matching step on random features, float32, on the CPU.

    Memory is what a step adds, at its peak, to a fresh process that holds model and features alone: the observed
    update, the simulated one and every intermediate value.

    Args:
        threads: torch's threads.
        repeats: timed runs of each; the naive step takes seconds and gigabytes.
        small: for the comparison with naive double backward and an ordinary step of training.
        large: for the memory of a recogniser of published size.

    Returns:
        Seconds and megabytes of the exact step against naive double backward; its seconds against an ordinary
        gradient; the frozen step's seconds against naive; megabytes of the exact step through the large recogniser.
    """
    with thread_count(threads):
        model, batch = _recogniser(small), _batch(small)
        distance = _arbitrary(model)
        ours, differences, naive, ordinary = best_of_each(
            lambda: _step(model, batch, distance, "exact"),
            lambda: _step(model, batch, distance, "frozen"),
            lambda: _step(model, batch, distance, "naive"),
            lambda: _gradients(model, batch),
            repeats=repeats,
        )
    our_peak, their_peak = (_peak_in_fresh_process(small, engine, threads) for engine in ("exact", "naive"))
    large_peak = _peak_in_fresh_process(large, "exact", threads)
    name, weight = f"{small.name}: matching step", "peak memory above the model"
    return [
        Measurement(f"{name}, against naive double backward", ours, naive, "s", 1 / 3),
        Measurement(f"{name} with frozen differences, against naive double backward", differences, naive, "s", 1.0),
        Measurement(f"{name}, against an ordinary forward + backward", ours, ordinary, "s", 3.0),
        Measurement(f"{name}, {weight}, against naive", our_peak, their_peak, "MB", 1 / 7),
        Measurement(f"{large.name}: matching step, {weight}, against 1 GB", large_peak, 1024.0, "MB", 1.0),
    ]  # fmt: skip


def _recogniser(size: StepSize) -> nn.Module:
    config = {"num_layers": size.num_layers, "hidden_size": size.hidden_size}
    return build_model(ModelSpec("deepspeech2", config)).eval()


def _batch(size: StepSize) -> Batch:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(size.frames, 1, 257, generator=generator)
    output_frames = (size.frames - 9) // 2
    count = max(1, int(LABELS_PER_OUTPUT_FRAME * output_frames))
    labels = torch.randint(1, 29, (count,), generator=generator).tolist()
    return labelled_batch(features, torch.tensor([size.frames]), [labels])


def _gradients(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    return torch.autograd.grad(recognition_loss(model, batch), list(model.parameters()))


def _arbitrary(model: nn.Module) -> Distance:
    """The distance from an arbitrary update: neither time nor memory depends on its values."""
    generator = torch.Generator().manual_seed(1)
    observed = [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]
    return build_distance(DistanceConfig(), observed)


def _step(model: nn.Module, batch: Batch, distance: Distance, engine: Engine) -> MatchingStep:
    names = [name for name, _ in model.named_parameters()]
    return grad_of_distance(model, batch, names, distance, Protocol(), EngineChoice(engine, "benchmark"))


def _peak_in_fresh_process(size: StepSize, engine: Engine, threads: int) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, size, engine, threads).result()


def _peak(size: StepSize, engine: Engine, threads: int) -> float:
    """MB above the model at the peak of a step, the observed update included."""
    torch.set_num_threads(threads)
    # Torch's own buffers and code are not what is weighed: a step through a tiny recogniser brings them in.
    tiny = StepSize(1, 8, 40)
    model = _recogniser(tiny)
    _step(model, _batch(tiny), _arbitrary(model), engine)
    model, batch = _recogniser(size), _batch(size)
    with metered(torch.device("cpu")) as meter:
        _step(model, batch, _arbitrary(model), engine)
    if meter.peak_mb is None:
        raise RuntimeError("this system does not tell a process's peak memory")
    return meter.peak_mb
