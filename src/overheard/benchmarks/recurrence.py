"""Recurrences that can be differentiated twice, against torch's kernels: time of both orders, memory of the second."""

import resource
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import grad

from overheard.benchmarks.measurement import Measurement, best_of_each, thread_count
from overheard.recognition.recurrence import CellName, Engine, Recurrence

LAYERS = 3
INPUT_SIZE = 1312
"""Values per frame that DeepSpeech 2's convolutions hand to its first recurrence: 32 channels of 41 bands."""


def measure(
    threads: int = 1,
    *,
    repeats: int = 3,
    frames: int = 195,
    hidden: int = 256,
    cells: Sequence[CellName] = ("gru", "lstm"),
) -> list[Measurement]:
    """Times and weighs three bidirectional layers on one random utterance, float32, on the CPU.

    Args:
        threads: torch's threads.
        repeats: timed runs of each; torch's second derivatives take seconds and gigabytes.
        frames: recurrent frames, about half of the spectrogram's.
        hidden: hidden size.
        cells: the kinds of cell.

    Returns:
        For each cell: seconds of the weights' gradient against torch's; seconds and megabytes of a matching step (the
        distance of the weights' gradients, differentiated by the input) against the same through torch's kernels; and
        its seconds against torch's ordinary gradient.
    """
    with thread_count(threads):
        return [each for cell in cells for each in _measure_cell(cell, frames, hidden, threads, repeats)]


def _measure_cell(cell: CellName, frames: int, hidden: int, threads: int, repeats: int) -> list[Measurement]:
    inputs = _utterance(frames)
    ours, theirs = _stack(cell, hidden, "analytic"), _stack(cell, hidden, "native")
    our_gradient, their_gradient, our_step, their_step = best_of_each(
        lambda: _gradients(ours, inputs),
        lambda: _gradients(theirs, inputs),
        lambda: _matching_step(ours, inputs),
        lambda: _matching_step(theirs, inputs),
        repeats=repeats,
    )
    our_peak = _peak_in_fresh_process(cell, frames, hidden, "analytic", threads)
    their_peak = _peak_in_fresh_process(cell, frames, hidden, "native", threads)
    name = f"{LAYERS}x{hidden} bidirectional {cell.upper()}, T={frames} N=1"
    # torch hands the LSTM's first order to a fused kernel that a loop over frames does not reach.
    once, matched = (2.0, 5.0) if cell == "lstm" else (1.0, 3.0)
    return [
        Measurement(f"{name}: forward + backward, against torch", our_gradient, their_gradient, "s", once),
        Measurement(f"{name}: matching step, against torch's double backward", our_step, their_step, "s", 1 / 3),
        Measurement(
            f"{name}: matching step, against torch's forward + backward", our_step, their_gradient, "s", matched
        ),
        Measurement(f"{name}: peak memory of a matching step", our_peak, their_peak, "MB", 1 / 7),
    ]


def _utterance(frames: int) -> Tensor:
    return torch.randn(frames, 1, INPUT_SIZE, generator=torch.Generator().manual_seed(0))


def _stack(cell: CellName, hidden: int, engine: Engine) -> list[Recurrence]:
    generator = torch.Generator().manual_seed(1)
    sizes = [INPUT_SIZE, *[hidden] * (LAYERS - 1)]
    layers = [Recurrence(cell, size, hidden, bias=False, generator=generator) for size in sizes]
    for layer in layers:
        layer.engine = engine
    return layers


def _gradients(layers: list[Recurrence], inputs: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradient of a loss by every weight, the directions summed between layers as in DeepSpeech 2."""
    states = inputs
    for layer in layers:
        states = layer(states).sum(2)
    weights = [weight for layer in layers for weight in layer.parameters()]
    return grad(states.square().sum(), weights, create_graph=create_graph)


def _matching_step(layers: list[Recurrence], inputs: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    gradients = _gradients(layers, inputs, create_graph=True)
    distance = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return grad(distance, inputs)[0]


def _peak_in_fresh_process(cell: CellName, frames: int, hidden: int, engine: Engine, threads: int) -> float:
    """Megabytes by which one matching step raises the peak of a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, cell, frames, hidden, engine, threads).result()


def _peak(cell: CellName, frames: int, hidden: int, engine: Engine, threads: int) -> float:
    torch.set_num_threads(threads)
    layers, inputs = _stack(cell, hidden, engine), _utterance(frames)
    # Torch's own buffers and the weights' gradients are not what is compared: one frame brings them in.
    _matching_step(layers, inputs[:1])
    before = _resident_peak()
    _matching_step(layers, inputs)
    return _resident_peak() - before


def _resident_peak() -> float:
    """Megabytes this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage would report the parent's peak if that is higher
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
