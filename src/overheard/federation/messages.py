"""What travels between server and clients, as Flower's records; replies are checked before they are used."""

import json
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from overheard.errors import InputError
from overheard.federation.local_settings import LocalSettings
from overheard.federation.round_report import Answer
from overheard.recognition.configuration import config_from_json, config_to_json
from overheard.recognition.models import ModelSpec
from overheard.speech.augmentation import AugmentationConfig

ARRAYS, BUFFERS, CONFIG, METRICS = "arrays", "buffers", "config", "metrics"
TASK, CLIENT = "task", "client"
WEIGHT = "num-examples"
LOSS = "train_loss"
"""Flower's names for a client's weight in a mean, and for its loss."""


@dataclass(frozen=True)
class Task:
    """What the server asks of a client in a round, beside the weights.

    Attributes:
        number: of the round.
        seed: of the run.
        model: how to build the recogniser.
        local: what to do, defences of training included.
        defences: of the update, in their order.
        named: how an update that is kept names the model; "" otherwise.
        weights: fingerprint of the weights, for an update that is kept.
        witnesses: clients whose truth is written down beside the run, in a simulation alone.
        augmentation: what is changed in what the model hears.
    """

    number: int
    seed: int
    model: ModelSpec
    local: LocalSettings
    defences: tuple[str, ...] = ()
    named: str = ""
    weights: str = ""
    witnesses: tuple[str, ...] = ()
    augmentation: AugmentationConfig | None = None

    def record(self) -> str:
        """As JSON."""
        return json.dumps(config_to_json(self))


def parse_task(config: ConfigRecord) -> Task:
    """The task in a message.

    Raises:
        InputError: none, or not one.
    """
    text = config.get(TASK)
    if not isinstance(text, str):
        raise InputError("message", "no task", "run the server with the same version of overheard")
    return config_from_json(Task, json.loads(text), "task")


def to_record(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Named tensors for the wire."""
    return ArrayRecord({name: Array(tensor.detach().cpu().contiguous().numpy()) for name, tensor in tensors.items()})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Named tensors from the wire, with memory of their own."""
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


NUMBERS = (WEIGHT, "utterances", "distinct", "frames", "steps", "loss", "rate", "seconds", "cpu")


def answer_record(tensors: dict[str, Tensor], buffers: dict[str, Tensor], numbers: dict[str, float]) -> RecordDict:
    """A client's reply; `numbers` has every one of `NUMBERS`."""
    record = RecordDict(
        {ARRAYS: to_record(tensors), METRICS: MetricRecord({name: float(numbers[name]) for name in NUMBERS})}
    )
    if buffers:
        record[BUFFERS] = to_record(buffers)
    return record


def read_answer(message: Message, client: str, expected: dict[str, Tensor], buffers: dict[str, Tensor]) -> Answer | str:
    """A reply, or the reason why it is none.

    Args:
        message: from the client.
        client: its name.
        expected: the server's parameters that a client sends.
        buffers: the server's statistics of norms, if clients send theirs.
    """
    if message.has_error():
        return f"failed: {short(message.error.reason or 'no reason given')}"
    arrays, metrics = message.content.array_records.get(ARRAYS), message.content.metric_records.get(METRICS)
    if arrays is None or metrics is None or not arrays:
        return "an empty reply"
    sent = message.content.array_records.get(BUFFERS)
    try:
        tensors = from_record(arrays)
        statistics = {} if sent is None else from_record(sent)
    except (ValueError, TypeError, EOFError) as error:
        return f"arrays that cannot be read ({short(str(error))})"
    for found, wanted, floating in ((tensors, expected, True), (statistics, buffers, False)):
        reason = _difference(found, wanted, floating)
        if reason is not None:
            return reason
    numbers: dict[str, float] = {}
    for name in NUMBERS:
        value = metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value) or (value < 0 and name != "loss"):
            return f"{name} is {value}"
        numbers[name] = float(value)
    whole = {name: int(numbers[name]) for name in ("utterances", "distinct", "frames", "steps")}
    return Answer(
        client=client,
        tensors=tensors,
        buffers=statistics,
        weight=numbers[WEIGHT],
        **whole,
        loss=numbers["loss"],
        rate=numbers["rate"],
        seconds=numbers["seconds"],
        cpu=numbers["cpu"],
        size=arrays.count_bytes() + (0 if sent is None else sent.count_bytes()),
    )


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor], floating: bool) -> str | None:
    if found.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        return f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the model lacks"
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            return f"{name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(wanted[name].shape)}"
        if floating and not tensor.is_floating_point():
            return f"{name!r} has type {tensor.dtype}"
        if not bool(torch.isfinite(tensor).all()):
            return f"{name!r} holds NaN or infinity"
    return None


def short(text: str) -> str:
    """The innermost reason, on one line: engines wrap errors in errors."""
    line = " ".join(text.replace("\\n", " ").split())
    return line if len(line) <= 300 else f"{line[:150]} ... {line[-140:]}"


def as_values(answer: Answer) -> dict[str, Any]:
    """What is recorded of a reply: everything but tensors."""
    return {each.name: getattr(answer, each.name) for each in fields(answer) if each.name not in ("tensors", "buffers")}
