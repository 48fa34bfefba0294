"""Updates kept as the server saw them: RUN/captured/round-000001/NAME.safetensors, beside the model they started from.

What was said lies apart, in RUN/truth under the same names; a simulation writes it, a deployment has none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from overheard.errors import InputError
from overheard.federation.local_settings import LocalSettings
from overheard.federation.round_report import Answer, RoundReport
from overheard.federation.update import ClientUpdate, Protocol
from overheard.recognition.weights import save_model, weights_fingerprint

CAPTURED, TRUTH, MODEL = "captured", "truth", "model.safetensors"
COHORT = "cohort"
"""Name of what the server saw where it saw a sum alone."""


@dataclass(frozen=True)
class Captured:
    """One update that was kept, the model it started from, and the files of what was said."""

    client: str
    number: int
    update: Path
    model: Path
    truths: tuple[Path, ...]


def round_folder(run: Path, part: str, number: int) -> Path:
    """Of one round's updates or truths."""
    return run / part / f"round-{number:06d}"


def keep_model(run: Path, number: int, model: nn.Module) -> tuple[str, str]:
    """Write the weights that a round starts from; returns their path and fingerprint."""
    path = round_folder(run, CAPTURED, number) / MODEL
    save_model(model, path)
    return str(path), weights_fingerprint(model)


def keep_updates(
    run: Path, report: RoundReport, named: tuple[str, str], local: LocalSettings, witnesses: tuple[str, ...]
) -> None:
    """Write the updates of the witnesses, or the cohort's mean where the server saw nothing else.

    The mean counts for an update of all the cohort's utterances together.
    """
    folder = round_folder(run, CAPTURED, report.number)
    if report.mean is not None:
        distinct, steps = sum(each.distinct for each in report.answers), max(each.steps for each in report.answers)
        protocol = _protocol(local, distinct, steps, named)
        ClientUpdate(report.mean, protocol).save(folder / f"{COHORT}.safetensors")
        return
    for answer in report.answers:
        if answer.client in witnesses:
            _of(answer, local, named).save(folder / f"{answer.client}.safetensors")


def captured(run: Path) -> Iterator[Captured]:
    """Every update that was kept, in the order of rounds and names.

    Raises:
        InputError: none was.
    """
    folders = sorted((run / CAPTURED).glob("round-*"))
    if not any(path.name != MODEL for folder in folders for path in folder.glob("*.safetensors")):
        raise InputError(str(run), "no captured update", "name a run of overheard federate --capture N")
    for folder in folders:
        truth = run / TRUTH / folder.name
        for update in sorted(folder.glob("*.safetensors")):
            if update.name == MODEL:
                continue
            together = update.stem == COHORT
            truths = sorted(truth.glob("*.safetensors")) if together else [truth / update.name]
            number = int(folder.name.removeprefix("round-"))
            yield Captured(update.stem, number, update, folder / MODEL, tuple(truths))


def _of(answer: Answer, local: LocalSettings, named: tuple[str, str]) -> ClientUpdate:
    return ClientUpdate(answer.tensors, _protocol(local, answer.distinct, answer.steps, named))


def _protocol(local: LocalSettings, utterances: int, steps: int, named: tuple[str, str]) -> Protocol:
    gradient = local.kind == "gradient"
    rate = None if gradient else local.learning_rate
    return Protocol(local.kind, utterances, local.mode, 1 if gradient else steps, rate, *named)
