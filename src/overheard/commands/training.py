"""overheard train: recipes with changes, one run or one for each speaker."""

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn

from overheard.commands.machine import set_up
from overheard.errors import InputError
from overheard.recognition.beam import BeamConfig, BeamDecoder, beam_decoder
from overheard.recognition.configuration import config_from_json
from overheard.recognition.models import MODELS, ModelSpec, build_model
from overheard.recognition.weights import resolve_model
from overheard.speech.augmentation import AugmentationConfig
from overheard.speech.corpus import Selection, load_corpus
from overheard.storage import write_text
from overheard.training.adaptation import adapt
from overheard.training.curves import draw_curves
from overheard.training.data import alphabet_of
from overheard.training.devices import Devices
from overheard.training.evaluation import Evaluation, evaluate
from overheard.training.loop import Run
from overheard.training.plan import TrainingPlan, carry_out
from overheard.training.recipes import recipe
from overheard.training.settings import TrainingSettings, settings_to_json

AS_TRAINED = "as trained"
ADAPTED = "adapted"


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
        extra_corpus: further speech to learn from; None for none.
        adapt: rounds of learning from what was heard of the speakers held out.
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
    extra_corpus: Path | None = None
    adapt: int = 0


@dataclass(frozen=True)
class HeldOut:
    """How well a model hears speakers that it did not learn from.

    Attributes:
        greedy: by greedy decoding.
        limited: WER where only words of the training transcripts can be heard; None without a search.
    """

    greedy: Evaluation
    limited: float | None


def train(order: Order) -> None:
    """Train, draw the curves, and say where the run is and how well it hears."""
    set_up(order.devices.device, order.threads)
    console = Console()
    plan = make_plan(order)
    run = carry_out(plan, make_model(order), order.out, console)
    heard = held_out(run, order.adapt, console) if order.hold_out else {}
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
    for stage, found in heard.items():
        console.print(
            f"{stage}: greedy WER {_percent(found.greedy.wer)}, CER {_percent(found.greedy.cer)}; WER "
            f"{_percent(found.limited)} where only words of the training transcripts can be heard",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"next: overheard transcribe {shlex.quote(str(order.out))} AUDIO", highlight=False, soft_wrap=True)


def train_each(order: Order) -> None:
    """One run for each speaker, who is held out of it; a table of what each model makes of a voice it never heard."""
    speakers = sorted({str(cut.supervisions[0].speaker) for cut in load_corpus(order.corpus).cuts})
    if len(speakers) < 2:
        raise InputError(str(order.corpus), f"{len(speakers)} speaker", "leave-one-out needs two or more")
    set_up(order.devices.device, order.threads)
    console = Console()
    results: dict[str, dict[str, HeldOut]] = {}
    for speaker in speakers:
        each = replace(order, hold_out=(speaker,), out=order.out / speaker)
        console.print(f"held out: {speaker}", highlight=False)
        run = carry_out(make_plan(each), make_model(each), each.out, console)
        if run.fabric.is_global_zero:
            draw_curves(each.out)
        results[speaker] = held_out(run, order.adapt, console)
    if not run.fabric.is_global_zero:
        return
    title = "Speakers never heard in training"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("held-out speaker")
    table.add_column("")
    for column in ("utterances", "greedy WER", "greedy CER", "WER with lexicon"):
        table.add_column(column, justify="right")
    for speaker, by_stage in results.items():
        for stage, each in by_stage.items():
            rates = (each.greedy.wer, each.greedy.cer, each.limited)
            table.add_row(speaker, stage, str(each.greedy.utterances), *map(_percent, rates))
    table.add_section()
    for stage in next(iter(results.values())):
        found = [by_stage[stage] for by_stage in results.values()]
        means = (
            _mean(each.greedy.wer for each in found),
            _mean(each.greedy.cer for each in found),
            _mean(each.limited for each in found),
        )
        table.add_row("mean", stage, str(sum(each.greedy.utterances for each in found)), *means)
    console.print(table)


def held_out(run: Run, rounds: int, console: Console) -> dict[str, HeldOut]:
    """What a finished run makes of the speakers held out, as trained and after so many rounds of adaptation."""
    if not run.fabric.is_global_zero:
        console = Console(quiet=True)
    search = lexicon_search(run, console)
    found = {AS_TRAINED: _measured(run, search)}
    if rounds:
        adapt(run, run.corpora.dev, rounds, search, console)
        found[ADAPTED] = _measured(run, search)
    return found


def lexicon_search(run: Run, console: Console) -> BeamDecoder | None:
    """A search limited to the words of a run's training transcripts.

    The words are left in lexicon.txt of the run's folder, for overheard transcribe --lexicon.

    Returns:
        None where it cannot be made, which is said: without overheard[lm], or with an alphabet without a space.
    """
    words = sorted({word for cut in run.corpora.train for word in (cut.supervisions[0].text or "").split()})
    lexicon = run.folder / "lexicon.txt"
    write_text(lexicon, "".join(f"{word}\n" for word in words))
    try:
        return beam_decoder(BeamConfig(lexicon=lexicon), alphabet_of(run.model))
    except InputError as error:
        console.print(f"not decoded with a lexicon: {error}", highlight=False, soft_wrap=True)
        return None


def _measured(run: Run, search: BeamDecoder | None) -> HeldOut:
    dev, seconds = run.corpora.dev, run.settings.batch_seconds
    limited = None if search is None else evaluate(run.model, dev, seconds, search=search).wer
    return HeldOut(evaluate(run.model, dev, seconds), limited)


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
    selection, dev, extra = replace(chosen.train, **asked), chosen.dev, Selection()
    if order.hold_out:
        selection = _without(order.hold_out, order.corpus, selection)
        dev = Selection(speakers=order.hold_out)
        if order.extra_corpus is not None:
            # A speaker who is held out may have spoken there too.
            extra = _without(order.hold_out, order.extra_corpus, extra)
    dev_corpus = order.dev_corpus or order.corpus
    return TrainingPlan(
        order.corpus, selection, dev_corpus, dev, settings, order.devices, order.workers, order.extra_corpus, extra
    )


def _without(held_out: tuple[str, ...], corpus: Path, selection: Selection) -> Selection:
    speakers = {str(cut.supervisions[0].speaker) for cut in load_corpus(corpus).cuts}
    others = tuple(sorted((set(selection.speakers) or speakers) - set(held_out)))
    if not others:
        raise InputError("hold_out", ", ".join(held_out), f"leave a speaker to learn from in {corpus}")
    return replace(selection, speakers=others)


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


def _mean(rates: Iterable[float | None]) -> str:
    """Of all, or nothing where one is missing."""
    found = list(rates)
    known = [rate for rate in found if rate is not None]
    return _percent(sum(known) / len(known) if found and len(known) == len(found) else None)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
