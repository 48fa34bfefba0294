"""A whole federated run on one machine: the corpus split, clients simulated, an earlier part of the run taken up."""

import hashlib
import json
import math
import shlex
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flwr
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from lhotse import MonoCut
from rich.console import Console
from torch import nn

from overheard import __version__
from overheard.errors import InputError
from overheard.federation.client_app import simulated_client_app
from overheard.federation.clients import ClientSpeech, ClientSplit, split_clients, write_clients
from overheard.federation.defences.registry import described
from overheard.federation.grids import LocalGrid
from overheard.federation.server import Server
from overheard.federation.settings import FederationSettings
from overheard.recognition.configuration import config_to_json
from overheard.recognition.models import spec_of
from overheard.speech.corpus import Problem, Selection
from overheard.storage import write_text
from overheard.training.plan import CONFIG, to_go_on_from, usable_cuts

FREE = ("rounds", "keep", "deadline", "evaluate_every")
"""Settings that a run may be gone on with changed: they alter no round, if the learning rate is constant."""
WINDOW = 8
"""Messages under way for each worker: enough to keep it busy until the next are fetched."""
OBJECT_STORE = 200 * 2**20
"""Bytes that Ray reserves for messages."""


@dataclass(frozen=True)
class FederationPlan:
    """What is learnt, by whom and how.

    Attributes:
        corpus: folder or manifest that falls into clients.
        train: which of its utterances.
        dev_corpus: folder or manifest that the server measures on.
        dev: which of its utterances; None to measure nothing.
        split: into clients.
        settings: how they learn together.
        workers: processes that stand for clients side by side; 0 for this process, one client after another.
        device: of the clients.
        threads: of each.
    """

    corpus: Path
    train: Selection
    dev_corpus: Path
    dev: Selection | None
    split: ClientSplit
    settings: FederationSettings
    workers: int = 1
    device: str = "cpu"
    threads: int = 1


def carry_out(
    plan: FederationPlan, model: nn.Module, folder: Path, console: Console, app: ClientApp | None = None
) -> Server:
    """Run all rounds; started again with the same plan, it goes on from the last whole checkpoint.

    Args:
        plan: what to do.
        model: a registered one with the weights to start from.
        folder: the run's.
        console: where each round gets a line.
        app: of the clients, instead of the one that trains.

    Raises:
        InputError: nothing usable in the corpus; the folder's run differs from the plan (names the differences); a
            round without enough valid replies.
    """
    if plan.workers < 0:
        raise InputError("workers", plan.workers, "give 0 for this process, or how many others")
    cuts, left_out = usable_cuts(model, plan.corpus, plan.train)
    dev = [] if plan.dev is None else usable_cuts(model, plan.dev_corpus, plan.dev)[0]
    clients = split_clients(cuts, plan.split)
    if plan.settings.clients_per_round > len(clients):
        found = f"{plan.settings.clients_per_round} of {len(clients)} clients"
        raise InputError("clients-per-round", found, f"ask for {len(clients)} at most")
    configuration = _configuration(plan, model, clients)
    checkpoint = to_go_on_from(folder, configuration, console)
    folder.mkdir(parents=True, exist_ok=True)
    # Runs hold private speech.
    folder.chmod(0o700)
    write_clients(clients, folder / "clients")
    _write_configuration(folder, configuration, plan, clients, dev, left_out)
    server = Server(model, plan.settings, configuration, len(clients), dev, folder, console, plan.device, checkpoint)
    deadline = plan.settings.deadline if plan.workers else None
    app = app or simulated_client_app(folder.absolute(), plan.device, plan.threads, deadline)
    stop = threading.Event()
    if plan.workers == 0:
        server.run(LocalGrid(app, len(clients)), stop)
    else:
        waves = math.ceil(plan.settings.clients_per_round / plan.workers)
        _run_on_engine(server, app, len(clients), plan, stop, waves)
    return server


def _run_on_engine(
    server: Server, app: ClientApp, clients: int, plan: FederationPlan, stop: threading.Event, waves: int
) -> None:
    """Flower's simulation engine: the server in a thread, clients in Ray's processes, which end with this one."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        server.run(grid, stop, waves, WINDOW * plan.workers)

    gpus = torch.cuda.device_count() / plan.workers if plan.device.startswith("cuda") else 0.0
    backend = {
        "init_args": {
            # Ray would join whatever cluster it finds on this machine.
            "address": "local",
            "num_cpus": plan.workers,
            "num_gpus": torch.cuda.device_count() if gpus else 0,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "CRITICAL",
            "object_store_memory": OBJECT_STORE,
        },
        # A worker whose client hung or was killed is started again; a dead one would fail every client after it.
        "client_resources": {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1},
    }
    try:
        run_simulation(server_app, app, num_supernodes=clients, backend_config=backend)
    finally:
        stop.set()


def _configuration(plan: FederationPlan, model: nn.Module, clients: tuple[ClientSpeech, ...]) -> dict[str, Any]:
    """What a checkpoint must agree with to be taken up."""
    names = "\n".join(f"{client.name} {cut.id} {cut.duration}" for client in clients for cut in client.cuts)
    free = [name for name in FREE if name != "rounds" or plan.settings.schedule == "constant"]
    settings = {name: value for name, value in config_to_json(plan.settings).items() if name not in free}
    return {
        "model": config_to_json(spec_of(model)),
        "settings": settings,
        "clients": {"number": len(clients), "sha256": hashlib.sha256(names.encode()).hexdigest()},
    }


def _write_configuration(
    folder: Path,
    configuration: dict[str, Any],
    plan: FederationPlan,
    clients: tuple[ClientSpeech, ...],
    dev: list[MonoCut],
    left_out: list[Problem],
) -> None:
    record = {
        **configuration,
        "settings": config_to_json(plan.settings),
        "defences": described(plan.settings.chosen()),
        "command": shlex.join(["overheard", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"overheard": __version__, "torch": torch.__version__, "flwr": flwr.__version__},
        "split": asdict(plan.split),
        "clients": {**configuration["clients"], "utterances": {each.name: len(each.cuts) for each in clients}},
        "train": {"path": str(plan.corpus), "selection": asdict(plan.train)},
        "dev": {"path": str(plan.dev_corpus), "utterances": len(dev)},
        "left_out": [asdict(each) for each in left_out],
        "workers": plan.workers,
        "device": plan.device,
        "threads": plan.threads,
    }
    write_text(folder / CONFIG, json.dumps(record, indent=1))
