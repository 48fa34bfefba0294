"""What a checkpoint holds, and how a run is taken up from the last one that is whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from overheard.errors import InputError
from overheard.recognition.run_folder import (
    MODEL,
    STATE,
    TENSORS,
    checkpoint_folders,
    damage,
    new_checkpoint,
    prune,
    read_state,
)
from overheard.recognition.weights import load_model, save_model
from overheard.storage import read_tensors, write_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A run at one step.

    Attributes:
        folder: where it lies.
        model: the recogniser, on the CPU.
        tensors: of optimiser and random generators, by name.
        state: everything else, JSON values.
        damaged: what is wrong with each later checkpoint that was passed over.
    """

    folder: Path
    model: nn.Module
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    damaged: tuple[str, ...]


def write_checkpoint(
    run: Path, step: int, model: nn.Module, tensors: dict[str, Tensor], state: dict[str, Any], keep: int
) -> None:
    """Write one checkpoint whole or not at all, then delete those that are neither the best nor of the last `keep`.

    Args:
        run: the run's folder.
        step: optimiser steps taken.
        model: of a registered class.
        tensors: of optimiser and random generators.
        state: JSON values; `wer` is the measured word error rate, None without one.
        keep: how many of the last stay.

    Raises:
        InputError: the model's weights are not finite, or the disk cannot be written.
    """
    try:
        with new_checkpoint(run, step) as folder:
            save_model(model, folder / MODEL)
            write_tensors(folder / TENSORS, tensors, {"step": step})
            (folder / STATE).write_text(json.dumps(state, indent=1, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise InputError(str(run), f"cannot write a checkpoint ({error.strerror})", "make room there") from error
    prune(run, keep)


def last_checkpoint(run: Path) -> Checkpoint | None:
    """The last whole checkpoint, damaged ones passed over; None for a run that has none yet.

    Raises:
        InputError: there are checkpoints and not one is whole; names the damage.
    """
    damaged: list[str] = []
    for folder in reversed(checkpoint_folders(run)):
        found = damage(folder)
        if found is not None:
            damaged.append(found)
            continue
        tensors, _ = read_tensors(folder / TENSORS, "checkpoint")
        return Checkpoint(folder, load_model(folder / MODEL), tensors, read_state(folder), tuple(damaged))
    if damaged:
        raise InputError(str(run), f"no whole checkpoint ({damaged[0]})", "start again in a new folder")
    return None


def optimiser_state(optimiser: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and JSON values."""
    stored = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in stored["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                values.setdefault(str(index), {})[name] = value
    return tensors, {"values": values, "groups": stored["param_groups"]}


def load_optimiser_state(optimiser: Optimizer, tensors: dict[str, Tensor], stored: dict[str, Any]) -> None:
    """Put back what `optimiser_state` gave."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in stored["values"].items()}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimiser":
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = tensor
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in stored["groups"]
    ]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def generator_state() -> dict[str, Tensor]:
    """State of torch's generators that dropout draws from."""
    states = {"random.cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def load_generator_state(tensors: dict[str, Tensor]) -> None:
    """Put back what `generator_state` gave; a device that is not here keeps its own."""
    torch.random.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
