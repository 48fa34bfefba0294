"""Federated runs on the corpus of tones, and clients that misbehave; needs Flower."""

import functools
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from tone_corpus import tiny_model
from torch import nn

from overheard.federation import client_app
from overheard.federation.client_app import simulated_node
from overheard.federation.clients import ClientSplit, client_name
from overheard.federation.local_settings import LocalSettings
from overheard.federation.messages import ARRAYS, METRICS
from overheard.federation.server import Server
from overheard.federation.settings import FederationSettings
from overheard.federation.simulation import FederationPlan, carry_out
from overheard.recognition.models import ModelSpec, build_model
from overheard.speech.corpus import Selection

LOCAL = LocalSettings(steps=2, batch_size=3, learning_rate=0.01)


def plan_of(corpus: Path, workers: int = 0, speakers: tuple[str, ...] = (), **changes: object) -> FederationPlan:
    """Two rounds of four clients."""
    settings = FederationSettings(**{"rounds": 2, "clients_per_round": 4, "local": LOCAL, **changes})  # pyright: ignore
    selection = Selection(speakers=speakers)
    return FederationPlan(corpus, selection, corpus, Selection(speakers=("100",)), ClientSplit(), settings, workers)


def run(plan: FederationPlan, folder: Path, spec: ModelSpec | None = None, app: ClientApp | None = None) -> Server:
    """Carry a plan out in silence."""
    return carry_out(plan, build_model(spec or tiny_model()), folder, Console(quiet=True), app)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Bit for bit, buffers too."""
    return all(torch.equal(each, second.state_dict()[name]) for name, each in first.state_dict().items())


@dataclass(frozen=True)
class Fault:
    """What a client does instead of its round: crash, hang, die, nan, shape, lack, nothing."""

    client: str
    kind: str


def faulty_app(folder: Path, faults: tuple[Fault, ...], deadline: float | None = None) -> ClientApp:
    """Clients of which some misbehave in every round."""
    node_of = functools.partial(simulated_node, folder.absolute(), "cpu", 1, deadline)
    app = ClientApp()
    app.query()(functools.partial(client_app.say_who, node_of))
    app.train()(functools.partial(_faulty_train, node_of, {fault.client: fault.kind for fault in faults}))
    return app


def _faulty_train(node_of: client_app.NodeOf, kinds: dict[str, str], message: Message, context: Context) -> Message:
    node = node_of(context)
    kind = kinds.get(client_name(node.manifest))
    if kind == "crash":
        raise RuntimeError("the disk is gone")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "nothing":
        return Message(RecordDict(), reply_to=message)
    if kind == "hang":
        with client_app.ends_itself(node.deadline):
            time.sleep(600)
    reply = client_app.train(node_of, message, context)
    if kind is not None:
        arrays = {name: np.array(each.numpy()) for name, each in reply.content.array_records[ARRAYS].items()}
        _spoil(arrays, kind)
        metrics = reply.content.metric_records[METRICS]
        reply.content = RecordDict(
            {ARRAYS: ArrayRecord({name: Array(each) for name, each in arrays.items()}), METRICS: metrics}
        )
    return reply


def _spoil(arrays: dict[str, np.ndarray], kind: str) -> None:
    if kind == "nan":
        arrays["output.bias"][0] = np.nan
    elif kind == "shape":
        arrays["output.bias"] = arrays["output.bias"][:-1]
    elif kind == "lack":
        del arrays["output.bias"]
