"""What a round costs beyond the clients' own computing, by the number of clients: engine, messages, checks, mean, disk.

Every client has one utterance, takes one step, and takes part in every round; a small model leaves little but the
engine to be measured.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from overheard.errors import InputError
from overheard.federation.clients import ClientSplit
from overheard.federation.local_settings import LocalSettings
from overheard.federation.settings import FederationSettings
from overheard.federation.simulation import FederationPlan, carry_out
from overheard.recognition.models import ModelSpec, build_model, model_spec
from overheard.speech.corpus import Selection
from overheard.training.tracking import METRICS, read_lines

LOCAL = LocalSettings(steps=1, batch_size=1, learning_rate=0.01)
FRONT_END = {"kind": "log_mel", "n_fft": 512, "window": 512, "hop": 320, "num_mel": 40, "normalise": "feature"}


@dataclass(frozen=True)
class RoundsLoad:
    """What is measured.

    Attributes:
        corpus: folder or manifest with an utterance for each client.
        clients: how many, one measurement each.
        workers: processes of the simulation engine, one measurement each; 0 for this very process.
        rounds: of each measurement; the first, in which processes start and clients say their names, counts apart.
        units: of the model's layers, which decide the size of a message.
        seed: of everything drawn.

    Raises:
        InputError: fewer than two rounds.
    """

    corpus: Path
    clients: tuple[int, ...] = (8, 64, 512)
    workers: tuple[int, ...] = (0, 1)
    rounds: int = 4
    units: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise InputError("rounds", self.rounds, "give 2 or more: the first one counts apart")

    def model(self) -> ModelSpec:
        """DeepSpeech 1 of so many units."""
        sizes = {"front_end": FRONT_END, "context": 1, "hidden_size": self.units}
        return model_spec("deepspeech1", seed=self.seed, **sizes)


@dataclass(frozen=True)
class RoundsRow:
    """One number of clients in one engine; medians over the rounds behind the first.

    Attributes:
        clients: in every round.
        workers: processes that stand for them; 0 for the command's own.
        first: seconds until the end of the first round.
        seconds: of a round, from the end of the last one.
        computing: seconds of the clients' own, from a message's arrival to the answer, over the number of workers.
        overhead: seconds of a round beyond those.
        clients_cpu: seconds of CPU that the clients' computing took.
        server_cpu: seconds of CPU that the server's process took beyond those; Ray's processes count in neither.
        to_clients: bytes of a round.
        from_clients: the same.
    """

    clients: int
    workers: int
    first: float
    seconds: float
    computing: float
    overhead: float
    clients_cpu: float
    server_cpu: float
    to_clients: int
    from_clients: int


def measure(load: RoundsLoad, out: Path) -> Iterator[RoundsRow]:
    """A row for each engine and number of clients, each from a run in a folder of its own below `out`.

    Raises:
        InputError: fewer utterances than clients, or a folder that holds another run.
    """
    for workers in load.workers:
        for clients in load.clients:
            folder = out / f"{workers}-workers-{clients}-clients"
            if (folder / METRICS).exists():
                raise InputError(
                    str(folder), "an earlier measurement", "give a new folder: a run is timed from its start"
                )
            carry_out(_plan(load, clients, workers), build_model(load.model()), folder, Console(quiet=True))
            yield row_of(read_lines(folder / METRICS), clients, workers)


def row_of(lines: list[dict[str, Any]], clients: int, workers: int) -> RoundsRow:
    """The row of a finished run's records."""
    rounds = [line for line in lines if line["kind"] == "step"]
    short = [line for line in rounds if len(line["clients"]) < clients]
    if short:
        name, reason = next(iter(short[0]["left_out"].items()))
        raise InputError(name, f"left out of round {short[0]['step']}: {reason}", "mend it and measure again")
    seconds = [later["seconds"] - line["seconds"] for line, later in pairwise(rounds)]
    # Clients of several workers compute side by side.
    own = [line["seconds_clients"] / max(1, workers) for line in rounds[1:]]
    clients_cpu = [line["cpu_clients"] for line in rounds[1:]]
    spent = [later["cpu_process"] - line["cpu_process"] for line, later in pairwise(rounds)]
    server_cpu = [whole - (0 if workers else part) for whole, part in zip(spent, clients_cpu, strict=True)]
    return RoundsRow(
        clients=clients,
        workers=workers,
        first=rounds[0]["seconds"],
        seconds=statistics.median(seconds),
        computing=statistics.median(own),
        overhead=statistics.median(whole - part for whole, part in zip(seconds, own, strict=True)),
        clients_cpu=statistics.median(clients_cpu),
        server_cpu=statistics.median(server_cpu),
        to_clients=rounds[-1]["bytes_to_clients"],
        from_clients=rounds[-1]["bytes_from_clients"],
    )


def _plan(load: RoundsLoad, clients: int, workers: int) -> FederationPlan:
    settings = FederationSettings(rounds=load.rounds, clients_per_round=clients, local=LOCAL, keep=1, seed=load.seed)
    split = ClientSplit("iid", clients=clients, seed=load.seed)
    train = Selection(limit=clients, seed=load.seed)
    return FederationPlan(load.corpus, train, load.corpus, None, split, settings, workers)
