"""overheard federate: recipes learnt by clients, and what came of them."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from overheard.commands import training
from overheard.commands.machine import set_up
from overheard.federation.clients import ClientSplit
from overheard.federation.defences.registry import guarantees
from overheard.federation.local_settings import LocalSettings
from overheard.federation.quiet import quieten
from overheard.federation.settings import FederationSettings
from overheard.speech.augmentation import AugmentationConfig
from overheard.speech.corpus import Selection
from overheard.training.comparison import checkpoint_of, draw_comparison, gap, late_gap
from overheard.training.curves import draw_curves
from overheard.training.devices import Devices

if TYPE_CHECKING:
    from overheard.federation.simulation import FederationPlan


@dataclass(frozen=True)
class Order:
    """What the command line asks for.

    Attributes:
        recipe: its name.
        corpus: whose speakers are clients.
        dev_corpus: to be measured on; None for the same.
        out: the run's folder.
        model: instead of the recipe's: a name, or a model whose weights to start from.
        selection: what replaces the recipe's choice of utterances.
        hold_out: speakers that are no clients and are measured on.
        augment: whether to change what is heard.
        local: what a client does.
        split: into clients.
        settings: the other settings by name.
        workers: processes that stand for clients.
        compare: folder of a run to be held against; None for none.
        deploy: folder for a Flower app; None to simulate.
        device: of the clients.
        threads: of each.
    """

    recipe: str
    corpus: Path
    dev_corpus: Path | None
    out: Path
    model: str | None
    selection: Selection
    hold_out: tuple[str, ...]
    augment: bool
    local: LocalSettings
    split: ClientSplit
    settings: dict[str, Any]
    workers: int
    compare: Path | None
    deploy: Path | None
    device: str
    threads: int


def federate(order: Order) -> None:
    """Carry out the rounds, draw the curves, and say what came of them.

    Raises:
        InputError: Flower is not installed, or the run cannot be made or stopped; says why.
    """
    quieten()
    from overheard.federation.deployment import write_deployment
    from overheard.federation.simulation import carry_out

    plan, model = make_plan(order)
    console = Console()
    for line in guarantees(plan.settings.chosen()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if order.deploy is not None:
        dev = None if plan.dev is None else (plan.dev_corpus, plan.dev)
        write_deployment(model, plan.settings, dev, order.out, order.deploy)
        console.print(f"next: flwr run {shlex.quote(str(order.deploy))}", highlight=False, soft_wrap=True)
        return
    server = carry_out(plan, model, order.out, console)
    draw_curves(order.out)
    if server.evaluations:
        console.print(error_table(server.evaluations[-1]))
    progress, out = server.progress, shlex.quote(str(order.out))
    console.print(
        f"{order.out}: {progress.round} rounds, {progress.utterances} utterances in {progress.seconds / 60:.1f} min",
        highlight=False,
        soft_wrap=True,
    )
    if order.compare is not None:
        start = checkpoint_of(order.model, order.compare)
        draw_comparison(order.out, order.compare, ("federated", "central"), start)
        for line in (gap(order.out, order.compare, start), late_gap(order.out, order.compare, server.dev, start)):
            console.print(line, highlight=False, soft_wrap=True)
    attack, use = f"overheard audit --run {out} --out {out}/audit", f"overheard transcribe {out} AUDIO"
    console.print(f"next: {attack if plan.settings.capture else use}", highlight=False, soft_wrap=True)


def make_plan(order: Order) -> tuple["FederationPlan", nn.Module]:
    """The recipe with the order's changes, and the model to start from; the machine is set up.

    Raises:
        InputError: see `training.make_plan`; or settings that contradict each other.
    """
    quieten()
    from overheard.federation.simulation import FederationPlan

    set_up(order.device, order.threads)
    central = training.Order(
        recipe=order.recipe,
        corpus=order.corpus,
        dev_corpus=order.dev_corpus,
        out=order.out,
        model=order.model,
        selection=order.selection,
        hold_out=order.hold_out,
        augment=order.augment,
        changes={},
        devices=Devices(order.device),
        workers=0,
        threads=order.threads,
    )
    like = training.make_plan(central)
    augmentation = None if like.settings.augmentation == AugmentationConfig() else like.settings.augmentation
    plan = FederationPlan(
        corpus=like.corpus,
        train=like.train,
        dev_corpus=like.dev_corpus,
        dev=like.dev,
        split=order.split,
        settings=FederationSettings(local=order.local, augmentation=augmentation, **order.settings),
        workers=order.workers,
        device=order.device,
        threads=order.threads,
    )
    return plan, training.make_model(central)


def error_table(evaluation: dict[str, Any]) -> Table:
    """Greedy error rates of the last round, of every speaker and of all."""
    table = Table(title=f"Round {evaluation['step']}, greedy decoding", title_justify="left", show_footer=True)
    for name, value in (("speaker", "all"), ("utterances", evaluation["utterances"])):
        table.add_column(name, footer=str(value), justify="left" if name == "speaker" else "right")
    for name in ("wer", "cer"):
        table.add_column(name.upper(), footer=_percent(evaluation[name]), justify="right")
    for speaker, own in evaluation.get("speakers", {}).items():
        table.add_row(speaker, str(own["utterances"]), _percent(own["wer"]), _percent(own["cer"]))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
