"""The command line of federated training; see `cli`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from overheard.options import Choice, Machine, RecipeName, selection_of

if TYPE_CHECKING:
    from overheard.federation.local_settings import LocalSettings


@dataclass(frozen=True)
class Local:
    """What a client does in a round.

    Attributes:
        kind: share the gradient of one batch (FedSGD), or the weights' change (delta) after local training (FedAvg)
        epochs: passes over the client's speech
        steps: steps instead of epochs
        batch_size: utterances in one step
        optimiser: of the client: sgd or adamw
        learning_rate: of the client; with gradients, of the server's step
        mode: normalisation and dropout as in training or as in evaluation
        buffers: statistics of batch norms: averaged, or local to each client
        weighting: of a client in the mean: by utterances, by frames, or equal
    """

    kind: Literal["gradient", "delta"] = "delta"
    epochs: int = 1
    steps: int | None = None
    batch_size: int = 8
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.05
    mode: Literal["train", "eval"] = "train"
    buffers: Literal["average", "local"] = "average"
    weighting: Literal["utterances", "frames", "equal"] = "utterances"


@dataclass(frozen=True)
class Split:
    """How the corpus falls into clients.

    Attributes:
        split: a client has the speech of its speakers, or utterances at random (iid) for contrast
        speakers_per_client: of a split by speaker
        clients: of a random split; as many as speakers unless given
    """

    split: Literal["speaker", "iid"] = "speaker"
    speakers_per_client: int = 1
    clients: int | None = None


def federate(
    *,
    corpus: Path,
    out: Path,
    rounds: int = 10,
    clients_per_round: int = 5,
    recipe: RecipeName = "digits",
    dev_corpus: Path | None = None,
    model: str | None = None,
    hold_out: tuple[str, ...] = (),
    augment: bool = True,
    schedule: Literal["constant", "cosine"] = "constant",
    strategy: str = "FedAvg",
    defence: tuple[str, ...] = (),
    capture: int = 0,
    capture_rounds: tuple[int, ...] = (),
    evaluate_every: int = 1,
    deadline: float = 600.0,
    least_replies: int = 1,
    delta: float = 1e-5,
    workers: int = 1,
    compare: Path | None = None,
    deploy: Path | None = None,
    local: OmitArgPrefixes[Local] = Local(),
    split: OmitArgPrefixes[Split] = Split(),
    choice: OmitArgPrefixes[Choice] = Choice(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Train with clients that keep their speech, on Flower. Writes checkpoints, metrics.jsonl and curves to OUT.

    Started again with the same flags it goes on from the last round. With --capture, what the server saw of some
    clients is kept: overheard audit --run OUT attacks it.

    Example: overheard federate --corpus corpora/digits --rounds 24 --clients-per-round 5 --optimiser adamw
    --learning-rate 0.002 --out runs/federated

    Example: overheard federate --corpus corpora/digits --model deepspeech1 --kind gradient --batch-size 1 --rounds 1
    --capture 2 --defence clip:norm=1 noise:std=0.001 --out runs/captured

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        out: the run's folder; give it to --model of any command
        rounds: of the whole run
        clients_per_round: drawn for each round
        recipe: model and choice of utterances
        dev_corpus: where the server measures the word error rate, if not in the same corpus
        model: instead of the recipe's: a name, or a file or run whose weights to start from
        hold_out: speakers that are no clients; the word error rate is measured on them
        augment: change what the models hear as the recipe says
        schedule: of the clients' learning rate over the rounds; cosine falls as in training, with no warm-up
        strategy: of the server, NAME:KEY=VALUE,...: FedAvg, FedProx:proximal_mu=0.1, FedAvgM, FedAdam:eta=0.01,
            FedYogi, FedAdagrad, QFedAvg:client_learning_rate=0.05, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan
        defence: in the order in which they act, NAME:KEY=VALUE,...: clip, clip-layers, noise, top-k, random-k, prune,
            quantise-8, quantise-16, sign, dropout, local-steps, larger-batch, frozen, sample-dp, central-noise,
            user-dp, secure-aggregation
        capture: so many clients of a round have their updates kept
        capture_rounds: rounds whose updates are kept; all unless given
        evaluate_every: rounds between two measurements of the word error rate; 0 to measure nothing
        deadline: seconds that a client may take for a round
        least_replies: valid updates without which the run stops
        delta: of the (epsilon, delta) that is stated
        workers: processes that stand for clients side by side; 0 for this process, one client after another
        compare: folder of another run, such as a central one: its word error rates beside this one's in comparison.png
        deploy: write a Flower app into this folder for flwr run, and into OUT what its server needs; run nothing
    """
    from overheard.commands import federation
    from overheard.federation.clients import ClientSplit

    federation.federate(
        federation.Order(
            recipe=recipe,
            corpus=corpus,
            dev_corpus=dev_corpus,
            out=out,
            model=model,
            selection=selection_of(choice, machine),
            hold_out=hold_out,
            augment=augment,
            local=_local_settings(local),
            split=ClientSplit(split.split, split.speakers_per_client, split.clients, machine.seed),
            settings={
                "rounds": rounds,
                "clients_per_round": clients_per_round,
                "schedule": schedule,
                "strategy": strategy,
                "defences": defence,
                "capture": capture,
                "capture_rounds": capture_rounds,
                "evaluate_every": evaluate_every,
                "deadline": deadline,
                "least_replies": least_replies,
                "delta": delta,
                "seed": machine.seed,
            },
            workers=workers,
            compare=compare,
            deploy=deploy,
            device=machine.device,
            threads=machine.threads,
        )
    )


def _local_settings(local: Local) -> "LocalSettings":
    """The flags as the client understands them."""
    from overheard.federation.local_settings import LocalSettings

    return LocalSettings(**vars(local))


def bench_utility(
    *,
    corpus: Path,
    out: Path = Path("bench-utility"),
    rounds: int = 3,
    clients_per_round: int = 5,
    recipe: RecipeName = "digits",
    dev_corpus: Path | None = None,
    model: str | None = None,
    hold_out: tuple[str, ...] = (),
    augment: bool = True,
    defences: tuple[str, ...] = (),
    delta: float = 1e-5,
    workers: int = 0,
    local: OmitArgPrefixes[Local] = Local(),
    split: OmitArgPrefixes[Split] = Split(),
    choice: OmitArgPrefixes[Choice] = Choice(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Train the same rounds from the same weights under one defence after another: word error rates and epsilon.

    Every row is a run of overheard federate in a folder of its own; started again it does what is missing.

    Example: overheard bench utility --corpus corpora/digits --model runs/digits --rounds 3 --optimiser adamw
    --learning-rate 0.001 --steps 8 --out runs/utility

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        out: folder for the runs
        rounds: of every run
        clients_per_round: drawn for each round
        recipe: model and choice of utterances
        dev_corpus: where the server measures the word error rate, if not in the same corpus
        model: instead of the recipe's: a name, or a file or run whose weights to start from
        hold_out: speakers that are no clients; the word error rate is measured on them
        augment: change what the models hear as the recipe says
        defences: only these, as overheard federate takes them, several of one row in quotes: none "clip:norm=1
            noise:std=0.01"
        delta: of the (epsilon, delta) that is stated
        workers: processes that stand for clients side by side; 0 for this process, one client after another
    """
    from overheard.commands.federation import Order
    from overheard.commands.utility_benchmark import utility_table
    from overheard.federation.clients import ClientSplit

    order = Order(
        recipe=recipe,
        corpus=corpus,
        dev_corpus=dev_corpus,
        out=out,
        model=model,
        selection=selection_of(choice, machine),
        hold_out=hold_out,
        augment=augment,
        local=_local_settings(local),
        split=ClientSplit(split.split, split.speakers_per_client, split.clients, machine.seed),
        settings={
            "rounds": rounds,
            "clients_per_round": clients_per_round,
            "evaluate_every": rounds,
            "keep": 1,
            "delta": delta,
            "seed": machine.seed,
        },
        workers=workers,
        compare=None,
        deploy=None,
        device=machine.device,
        threads=machine.threads,
    )
    utility_table(order, defences)


def bench_rounds(
    *,
    corpus: Path,
    out: Path = Path("bench-rounds"),
    clients: tuple[int, ...] = (8, 64, 512),
    workers: tuple[int, ...] = (0, 1),
    rounds: int = 4,
    units: int = 24,
    seed: int = 0,
) -> None:
    """Time rounds of many clients with little to compute: seconds beyond the clients' own, and bytes.

    Example: overheard bench rounds --corpus corpora/digits --clients 8 64 512

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest, with an utterance for each client
        out: folder for the runs
        clients: how many, one measurement each
        workers: processes of the simulation engine, one measurement each; 0 for this process
        rounds: of each measurement; the first counts apart
        units: of the model's layers, which decide the size of a message
        seed: of weights, utterances and order
    """
    from overheard.commands.rounds_benchmark import rounds_table

    rounds_table(corpus, out, clients, workers, rounds, units, seed)
