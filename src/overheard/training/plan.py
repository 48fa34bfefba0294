"""A run from its plan: the corpus read, what cannot be used named, an earlier part of the run taken up."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lhotse
import lightning
import torch
from lhotse import MonoCut
from lightning.fabric import Fabric
from rich.console import Console
from torch import nn

from overheard import __version__
from overheard.errors import InputError
from overheard.recognition.checkpoint import Checkpoint, last_checkpoint
from overheard.recognition.models import spec_of
from overheard.speech.corpus import Problem, Selection, load_corpus, select
from overheard.storage import write_text
from overheard.training.data import usable
from overheard.training.devices import Devices, launch
from overheard.training.loop import Corpora, Run
from overheard.training.settings import TrainingSettings, differences, settings_to_json

CONFIG = "config.json"
MOST_NAMED = 10


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, on what and how.

    Attributes:
        corpus: folder or manifest to learn from.
        train: which of its utterances.
        dev_corpus: folder or manifest to be measured on.
        dev: which of its utterances; None to measure nothing.
        settings: how to train.
        devices: where.
        workers: processes beside each training process that prepare batches.
        extra_corpus: folder or manifest of further speech to learn from; None for none.
        extra: which of its utterances.
    """

    corpus: Path
    train: Selection
    dev_corpus: Path
    dev: Selection | None
    settings: TrainingSettings
    devices: Devices = Devices()
    workers: int = 0
    extra_corpus: Path | None = None
    extra: Selection = Selection()


def carry_out(plan: TrainingPlan, model: nn.Module, folder: Path, console: Console) -> Run:
    """Train to the end; started again with the same plan, it goes on from the last whole checkpoint.

    Args:
        plan: what to do.
        model: a registered one with the weights to start from.
        folder: the run's folder.
        console: for the first process; the others are silent.

    Returns:
        The finished run, in every process.

    Raises:
        InputError: nothing usable in the corpus; the folder's run differs from the plan (names the differences); too
            many steps were skipped.
    """
    fabric = launch(plan.devices, plan.settings.precision)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    train, left_out = _training_cuts(model, plan)
    dev = [] if plan.dev is None else usable_cuts(model, plan.dev_corpus, plan.dev)[0]
    for problem in left_out[:MOST_NAMED]:
        console.print(f"left out {problem.error()}", highlight=False, soft_wrap=True)
    if len(left_out) > MOST_NAMED:
        console.print(f"left out {len(left_out) - MOST_NAMED} more; {folder / 'left_out.jsonl'} names all")
    configuration = _configuration(plan, model, train, fabric)
    checkpoint = to_go_on_from(folder, configuration, console)
    if fabric.is_global_zero:
        _write_configuration(folder, configuration, plan, dev, left_out)
    fabric.barrier()
    run = Run(fabric, model, Corpora(train, dev), plan.settings, configuration, folder, plan.workers, checkpoint)
    run.train(console)
    return run


def _training_cuts(model: nn.Module, plan: TrainingPlan) -> tuple[list[MonoCut], list[Problem]]:
    """What of the corpus and of the further one is usable, and the rest with reasons.

    Raises:
        InputError: nothing usable in one of them, or an id that is in both.
    """
    train, left_out = usable_cuts(model, plan.corpus, plan.train)
    if plan.extra_corpus is None:
        return train, left_out
    extra, problems = usable_cuts(model, plan.extra_corpus, plan.extra)
    known = {cut.id for cut in train}
    for cut in extra:
        if cut.id in known:
            raise InputError(cut.id, f"in {plan.corpus} and in {plan.extra_corpus}", "leave one of them out")
    return [*train, *extra], [*left_out, *problems]


def usable_cuts(model: nn.Module, corpus: Path, selection: Selection) -> tuple[list[MonoCut], list[Problem]]:
    """What of a selection CTC can align, and the rest with reasons.

    Raises:
        InputError: nothing is left; names the first reason.
    """
    cuts, broken = select(load_corpus(corpus), selection)
    fine, infeasible = usable(model, cuts)
    problems = [*broken, *infeasible]
    if not fine:
        raise InputError(str(corpus), f"no usable utterance ({problems[0].reason})", problems[0].remedy)
    return fine, problems


def _configuration(plan: TrainingPlan, model: nn.Module, train: list[MonoCut], fabric: Fabric) -> dict[str, Any]:
    """What a checkpoint must agree with to be taken up."""
    names = "\n".join(f"{cut.id} {cut.duration}" for cut in train)
    return {
        "model": asdict(spec_of(model)),
        "settings": settings_to_json(plan.settings),
        "corpus": {"utterances": len(train), "sha256": hashlib.sha256(names.encode()).hexdigest()},
        "processes": fabric.world_size,
    }


def to_go_on_from(folder: Path, configuration: dict[str, Any], console: Console) -> Checkpoint | None:
    """The checkpoint that a run with this configuration takes up; None where it begins.

    Raises:
        InputError: the folder's run has another configuration; names the differences.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return None
    for damage in checkpoint.damaged:
        console.print(f"passed over a damaged checkpoint: {damage}", highlight=False, soft_wrap=True)
    found = differences(checkpoint.state["configuration"], json.loads(json.dumps(configuration)))
    if found:
        raise InputError(str(folder), f"holds another run: {'; '.join(found)}", "give the same flags, or a new folder")
    console.print(f"going on from {checkpoint.folder.name}", highlight=False)
    return checkpoint


def _write_configuration(
    folder: Path, configuration: dict[str, Any], plan: TrainingPlan, dev: list[MonoCut], left_out: list[Problem]
) -> None:
    versions = {"overheard": __version__, "torch": torch.__version__}
    versions |= {"lightning": lightning.__version__, "lhotse": lhotse.__version__}
    record = {
        **configuration,
        "command": "train",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "train": _stored_selection(plan.corpus, plan.train),
        "dev": {"path": str(plan.dev_corpus), "utterances": len(dev)},
        "extra": None if plan.extra_corpus is None else _stored_selection(plan.extra_corpus, plan.extra),
        "left_out": len(left_out),
        "devices": asdict(plan.devices),
        "threads": torch.get_num_threads(),
        "workers": plan.workers,
    }
    write_text(folder / CONFIG, json.dumps(record, indent=1))
    write_text(folder / "left_out.jsonl", "".join(json.dumps(asdict(each)) + "\n" for each in left_out))


def _stored_selection(corpus: Path, selection: Selection) -> dict[str, Any]:
    return {"path": str(corpus), "selection": asdict(selection)}
