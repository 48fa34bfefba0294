"""Optimisers by name, and the learning rate as a function of how much of the run is done."""

import math

import torch
from torch import nn
from torch.optim import Optimizer

from overheard.errors import InputError
from overheard.training.settings import TrainingSettings

COSINE_END = 0.01
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 250_000
"""Of the highest rate: the defaults of `torch.optim.lr_scheduler.OneCycleLR`."""


def build_optimiser(model: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The optimiser over the model's parameters; biases and norms are not decayed.

    Raises:
        InputError: novograd without the library that has it.
    """
    groups = [
        {"params": [each for each in model.parameters() if each.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [each for each in model.parameters() if each.ndim < 2], "weight_decay": 0.0},
    ]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True)
    try:
        from pytorch_optimizer import NovoGrad
    except ImportError as error:
        remedy = "install overheard[optimisers], or choose adamw"
        raise InputError("optimiser", "novograd without pytorch-optimizer", remedy) from error
    return NovoGrad(groups, lr=settings.learning_rate)


def learning_rate(settings: TrainingSettings, done: float) -> float:
    """The learning rate when this share of all steps is done, 0 to 1."""
    if done < settings.warmup:
        rising = done / settings.warmup
        if settings.schedule == "one-cycle":
            return settings.learning_rate * _between(ONE_CYCLE_START, 1.0, rising)
        # Not from zero: the first step would be none.
        return settings.learning_rate * max(rising, COSINE_END)
    falling = (done - settings.warmup) / (1 - settings.warmup)
    end = {"cosine": COSINE_END, "one-cycle": ONE_CYCLE_END, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * _between(1.0, end, falling)


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    """The same rate for all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
