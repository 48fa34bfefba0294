"""overheard train: recipes with changes, one run or one for each speaker."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from overheard.commands.machine import set_up
from overheard.errors import InputError
from overheard.recognition.configuration import config_from_json
from overheard.recognition.models import MODELS, ModelSpec, build_model
from overheard.recognition.weights import resolve_model
from overheard.speech.augmentation import AugmentationConfig
from overheard.speech.corpus import Selection, load_corpus
from overheard.training.curves import draw_curves
from overheard.training.devices import Devices
from overheard.training.plan import TrainingPlan, carry_out
from overheard.training.recipes import recipe
from overheard.training.settings import TrainingSettings, settings_to_json


@dataclass(frozen=True)
class Order:
    """What the command line asks for.

    Attributes:
        recipe: its name.
        corpus: to learn from.
        dev_corpus: to be measured on; None for the same.
        out: the run's folder.
        model: instead of the recipe's: a name, or a model whose weights to start from.
        selection: what replaces the recipe's choice of utterances to learn from.
        hold_out: speakers to learn nothing from and to be measured on.
        augment: whether to change what is heard.
        changes: settings that replace the recipe's.
        devices: where.
        workers: processes that prepare batches.
        threads: of torch.
    """

    recipe: str
    corpus: Path
    dev_corpus: Path | None
    out: Path
    model: str | None
    selection: Selection
    hold_out: tuple[str, ...]
    augment: bool
    changes: dict[str, Any]
    devices: Devices
    workers: int
    threads: int


def train(order: Order) -> None:
    """Train, draw the curves, and say where the run is and how well it hears."""
    set_up(order.devices.device, order.threads)
    console = Console()
    plan = make_plan(order)
    run = carry_out(plan, make_model(order), order.out, console)
    if not run.fabric.is_global_zero:
        return
    draw_curves(order.out)
    progress = run.progress
    console.print(
        f"{order.out}: {progress.step} steps, {progress.skipped} skipped, {progress.utterances} utterances "
        f"in {progress.seconds / 60:.1f} min",
        highlight=False,
        soft_wrap=True,
    )
    if run.evaluations:
        last = run.evaluations[-1]
        console.print(f"greedy WER {_percent(last['wer'])}, CER {_percent(last['cer'])} on {last['utterances']}")
    console.print(f"next: overheard transcribe {shlex.quote(str(order.out))} AUDIO", highlight=False, soft_wrap=True)


def train_each(order: Order) -> None:
    """One run for each speaker, who is held out of it; a table of what each model makes of a voice it never heard."""
    speakers = sorted({str(cut.supervisions[0].speaker) for cut in load_corpus(order.corpus).cuts})
    if len(speakers) < 2:
        raise InputError(str(order.corpus), f"{len(speakers)} speaker", "leave-one-out needs two or more")
    set_up(order.devices.device, order.threads)
    console = Console()
    results: dict[str, dict[str, Any]] = {}
    for speaker in speakers:
        each = replace(order, hold_out=(speaker,), out=order.out / speaker)
        console.print(f"held out: {speaker}", highlight=False)
        run = carry_out(make_plan(each), make_model(each), each.out, console)
        if run.fabric.is_global_zero:
            draw_curves(each.out)
        results[speaker] = run.evaluations[-1]
    table = Table(title="Speakers never heard in training, greedy decoding", title_justify="left", show_footer=True)
    mean = sum(each["wer"] for each in results.values()) / len(results)
    table.add_column("held-out speaker", footer="mean")
    table.add_column("utterances", justify="right", footer=str(sum(each["utterances"] for each in results.values())))
    table.add_column("WER", justify="right", footer=_percent(mean))
    table.add_column("CER", justify="right")
    for speaker, each in results.items():
        table.add_row(speaker, str(each["utterances"]), _percent(each["wer"]), _percent(each["cer"]))
    console.print(table)


def make_plan(order: Order) -> TrainingPlan:
    """The recipe with the order's changes.

    Raises:
        InputError: an unknown recipe, a value out of range, or speakers that the corpus lacks.
    """
    chosen = recipe(order.recipe)
    settings = replace(chosen.settings, seed=order.selection.seed, **_typed(order.changes))
    if not order.augment:
        settings = replace(settings, augmentation=AugmentationConfig())
    asked = {name: value for name, value in asdict(order.selection).items() if value not in (None, ())}
    selection, dev = replace(chosen.train, **asked), chosen.dev
    if order.hold_out:
        speakers = {str(cut.supervisions[0].speaker) for cut in load_corpus(order.corpus).cuts}
        others = tuple(sorted((set(selection.speakers) or speakers) - set(order.hold_out)))
        if not others:
            raise InputError("hold_out", ", ".join(order.hold_out), "leave a speaker to learn from")
        selection, dev = replace(selection, speakers=others), Selection(speakers=order.hold_out)
    dev_corpus = order.dev_corpus or order.corpus
    return TrainingPlan(order.corpus, selection, dev_corpus, dev, settings, order.devices, order.workers)


def make_model(order: Order) -> nn.Module:
    """The recipe's model with weights from the seed, or the one that was asked for."""
    if order.model is None or order.model in MODELS:
        spec = recipe(order.recipe).model if order.model is None else ModelSpec(order.model)
        return build_model(replace(spec, seed=order.selection.seed))
    model = resolve_model(order.model, order.selection.seed)
    if type(model) not in {model_class for model_class, _ in MODELS.values()}:
        remedy = f"train one of {', '.join(MODELS)}; a model of your own can be audited, not trained here"
        raise InputError("model", type(model).__name__, remedy)
    return model


def _typed(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, each checked for its type."""
    parsed = config_from_json(TrainingSettings, {**settings_to_json(TrainingSettings()), **changes}, "settings")
    return {name: getattr(parsed, name) for name in changes}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
