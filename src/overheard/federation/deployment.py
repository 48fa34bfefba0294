"""The same apps across machines: a SuperLink with the server, and on each client's machine a SuperNode with its speech.

`write_deployment` makes a run's folder and a Flower app that names the two objects of this module.
"""

import json
import threading
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from torch import nn

from overheard.errors import InputError
from overheard.federation.client_app import Node, make_client_app
from overheard.federation.defences.registry import described
from overheard.federation.server import Server
from overheard.federation.settings import FederationSettings
from overheard.recognition.checkpoint import last_checkpoint
from overheard.recognition.configuration import config_from_json, config_to_json
from overheard.recognition.models import spec_of
from overheard.recognition.weights import load_model, save_model
from overheard.speech.corpus import Selection
from overheard.storage import write_text
from overheard.training.plan import usable_cuts

PLAN, START = "plan.json", "start.safetensors"
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "overheard-federation"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "overheard"

[tool.flwr.app.components]
serverapp = "overheard.federation.deployment:server_app"
clientapp = "overheard.federation.deployment:client_app"

[tool.flwr.app.config]
run = {run}
"""


def write_deployment(
    model: nn.Module, settings: FederationSettings, dev: tuple[Path, Selection] | None, run: Path, app: Path
) -> None:
    """Write what the server needs into RUN, and a Flower app for `flwr run` into APP.

    Args:
        model: a registered one with the weights to start from.
        settings: of the run.
        dev: corpus on the server's machine and the utterances it measures on; None to measure nothing.
        run: the run's folder on the server's machine.
        app: folder of the Flower app.
    """
    plan = {
        "settings": config_to_json(settings),
        "dev": None if dev is None else {"corpus": str(dev[0].absolute()), "selection": asdict(dev[1])},
    }
    write_text(run / PLAN, json.dumps(plan, indent=1))
    save_model(model, run / START)
    # JSON's text is TOML's too.
    write_text(app / "pyproject.toml", PROJECT.format(run=json.dumps(str(run.absolute()))))


def serve(run: Path, grid: Grid, console: Console) -> Server:
    """Carry out the run of a folder, or what is left of it.

    Raises:
        InputError: no such plan; or see `Server.run`.
    """
    try:
        plan = json.loads((run / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(run), f"no {PLAN} ({error})", "write it with overheard federate --deploy") from error
    settings = config_from_json(FederationSettings, plan["settings"], str(run / PLAN))
    model = load_model(run / START)
    dev = []
    if plan["dev"] is not None:
        selection = config_from_json(Selection, plan["dev"]["selection"], "selection")
        dev, _ = usable_cuts(model, Path(plan["dev"]["corpus"]), selection)
    configuration = {"model": config_to_json(spec_of(model)), "settings": config_to_json(settings)}
    write_text(
        run / "config.json",
        json.dumps({**configuration, "defences": described(settings.chosen()), "command": "deployment"}, indent=1),
    )
    population = settings.clients_per_round
    server = Server(
        model, settings, configuration, population, dev, run, console, checkpoint=last_checkpoint(run), secret=True
    )
    server.run(grid, threading.Event())
    return server


def deployed_node(context: Context) -> Node:
    """What a SuperNode was told with --node-config: speech="CLIENT.jsonl.gz" device="cpu" threads=1.

    Raises:
        InputError: it was not told where its speech is.
    """
    config = context.node_config
    speech = config.get("speech")
    if not isinstance(speech, str):
        raise InputError(
            "node-config", "no speech", "start the SuperNode with --node-config 'speech=\"CLIENT.jsonl.gz\"'"
        )
    manifest = Path(speech)
    memory = manifest.with_name(f"{manifest.name}.memory")
    return Node(manifest, memory, None, str(config.get("device", "cpu")), int(config.get("threads", 1)), secret=True)


client_app = make_client_app(deployed_node)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The server of the run that the app names."""
    serve(Path(str(context.run_config["run"])), grid, Console())
