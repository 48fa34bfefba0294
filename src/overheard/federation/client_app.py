"""The client as a Flower ClientApp: weights and a task in, a defended update out."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from overheard.federation.clients import client_manifests, client_name, read_client
from overheard.federation.defences.registry import defend, parse_defence
from overheard.federation.local_training import Round, train_locally
from overheard.federation.messages import (
    ARRAYS,
    BUFFERS,
    CLIENT,
    CONFIG,
    WEIGHT,
    answer_record,
    from_record,
    parse_task,
)
from overheard.federation.randomness import noise_generator
from overheard.federation.witness import truth_of
from overheard.recognition.models import build_model
from overheard.storage import read_tensors, write_tensors

KEPT_BUFFERS = 5
"""Rounds of which a client keeps the statistics of its norms."""


@dataclass(frozen=True)
class Node:
    """What a client knows of itself.

    Attributes:
        manifest: of its speech.
        memory: folder where it keeps the statistics of its norms from round to round.
        truth: folder where it writes what it said, if the server asks; None in a deployment.
        device: where it computes.
        threads: for torch.
        deadline: seconds after which its process ends itself; None to wait for ever.
        secret: noise comes from the system, and not from a seed that the server knows.
    """

    manifest: Path
    memory: Path
    truth: Path | None = None
    device: str = "cpu"
    threads: int = 1
    deadline: float | None = None
    secret: bool = False


NodeOf = Callable[[Context], Node]


def simulated_node(run: Path, device: str, threads: int, deadline: float | None, context: Context) -> Node:
    """The node that stands for a client of a simulation: number so-and-so of the run's manifests."""
    manifest = client_manifests(run / "clients")[int(context.node_config["partition-id"])]
    return Node(manifest, run / "memory", run / "truth", device, threads, deadline)


def simulated_client_app(run: Path, device: str, threads: int, deadline: float | None) -> ClientApp:
    """The app of every client of a simulation."""
    return make_client_app(functools.partial(simulated_node, run, device, threads, deadline))


def make_client_app(node_of: NodeOf) -> ClientApp:
    """A ClientApp; `node_of` says from Flower's context where a client's speech is."""
    app = ClientApp()
    # Functions of this module and no closures: workers are sent their names.
    app.query()(functools.partial(say_who, node_of))
    app.train()(functools.partial(train, node_of))
    return app


def say_who(node_of: NodeOf, message: Message, context: Context) -> Message:
    """A client's name."""
    name = client_name(node_of(context).manifest)
    return Message(RecordDict({CONFIG: ConfigRecord({CLIENT: name})}), reply_to=message)


def train(node_of: NodeOf, message: Message, context: Context) -> Message:
    """One round of a client."""
    node = node_of(context)
    torch.set_num_threads(node.threads)
    with ends_itself(node.deadline):
        return Message(answer(message.content, node), reply_to=message)


def answer(content: RecordDict, node: Node) -> RecordDict:
    """What a client sends back.

    Raises:
        InputError: no task, or not one step could be taken; Flower reports it to the server.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    config = content.config_records[CONFIG]
    task = parse_task(config)
    # FedProx says its mu in a message of its own accord.
    local = replace(task.local, proximal=float(config.get("proximal-mu", task.local.proximal)))  # pyright: ignore[reportArgumentType]
    speech = read_client(node.manifest)
    model = build_model(task.model)
    buffers = from_record(content.array_records[BUFFERS]) if BUFFERS in content.array_records else {}
    if task.local.buffers == "local":
        buffers |= _remembered(node, speech.name, task.number)
    model.load_state_dict({**from_record(content.array_records[ARRAYS]), **buffers})
    told = Round(task.number, task.seed, task.named, task.weights, task.augmentation, node.device, node.secret)
    outcome = train_locally(model, speech, local, told)
    generator = noise_generator(task.seed, task.number, f"defences of {speech.name}", node.secret)
    sent = defend(outcome.update, [parse_defence(text) for text in task.defences], generator)
    if task.local.buffers == "local":
        _remember(node, speech.name, task.number, outcome.buffers)
    if node.truth is not None and speech.name in task.witnesses:
        folder = node.truth / f"round-{task.number:06d}"
        truth_of(model, speech, outcome).save(folder / f"{speech.name}.safetensors")
    numbers = {
        WEIGHT: max(1.0, outcome.weight(task.local)),
        "utterances": outcome.utterances,
        "distinct": outcome.update.protocol.num_utterances,
        "frames": outcome.frames,
        "steps": outcome.steps,
        "loss": outcome.loss,
        "rate": outcome.rate or 0.0,
        "seconds": time.perf_counter() - begun,
        "cpu": time.process_time() - cpu,
    }
    return answer_record(sent.tensors, outcome.buffers if task.local.buffers == "average" else {}, numbers)


@contextmanager
def ends_itself(seconds: float | None) -> Iterator[None]:
    """Work that hangs cannot be interrupted from within; its process can end. None waits for ever."""
    timer = None if seconds is None else threading.Timer(seconds, os._exit, (1,))
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _memory(node: Node, client: str) -> list[Path]:
    return sorted((node.memory / client).glob("round-*.safetensors"))


def _remembered(node: Node, client: str, number: int) -> dict[str, Tensor]:
    """Statistics after the last round before this one; none in the first."""
    before = [path for path in _memory(node, client) if path.name < f"round-{number:06d}"]
    return read_tensors(before[-1], "client's statistics")[0] if before else {}


def _remember(node: Node, client: str, number: int, buffers: dict[str, Tensor]) -> None:
    write_tensors(node.memory / client / f"round-{number:06d}.safetensors", buffers, {"round": number})
    for path in _memory(node, client)[:-KEPT_BUFFERS]:
        path.unlink()
