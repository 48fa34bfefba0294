"""What a defence costs and what it guarantees: read from the federated run that trained under it, never typed in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overheard.audit.folder import CONFIG
from overheard.audit.records import AuditRecord
from overheard.errors import InputError
from overheard.recognition.models import ModelSpec
from overheard.storage import parse_json, read_text

METRICS = "metrics.jsonl"
NONE = "none"
"""What records call the absence of a defence."""


@dataclass(frozen=True)
class Price:
    """What one federated run says of the defences that it trained under.

    Attributes:
        defence: in the order in which they act, as records name them.
        run: the run's folder.
        model: what was trained.
        corpus: speech of the clients.
        kind: what each of them shared: gradient or delta.
        rounds: done.
        planned: rounds of the whole run.
        wer: word error rate after all of them, on speech that no client had; None where it was not measured.
        utterances: that it was measured on.
        epsilon: of the guarantee over the rounds done; None where nothing is guaranteed.
        delta: of the same.
    """

    defence: str
    run: str
    model: str
    corpus: str
    kind: str
    rounds: int
    planned: int
    wer: float | None
    utterances: int
    epsilon: float | None
    delta: float | None


def run_configuration(run: Path) -> dict[str, Any]:
    """The config.json of a federated run.

    Raises:
        InputError: there is none.
    """
    remedy = "name a folder of overheard federate"
    try:
        read = parse_json(read_text(run / CONFIG, remedy), str(run / CONFIG), remedy)
        if not isinstance(read["settings"]["defences"], list):
            raise TypeError("defences")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(run), f"no {CONFIG} of a federated run", remedy) from error
    return read


def price_of(run: Path) -> Price:
    """What a federated run's own record says.

    Raises:
        InputError: no federated run, or one without a round.
    """
    config = run_configuration(run)
    lines = _lines(run / METRICS)
    steps = [line for line in lines if line.get("kind") == "step"]
    measured = [line for line in lines if line.get("kind") == "evaluation" and line.get("wer") is not None]
    if not steps:
        raise InputError(str(run), "not one round done", "start the same overheard federate again")
    rounds, planned = int(steps[-1]["step"]), int(config["settings"]["rounds"])
    last = next((line for line in measured if line["step"] == planned), {"wer": None, "utterances": 0})
    return Price(
        defence=defence_name(config),
        run=str(run),
        model=ModelSpec.from_values(config["model"]).written(),
        corpus=str(config.get("train", {}).get("path", "not stated")),
        kind=str(config["settings"].get("local", {}).get("kind", "not stated")),
        rounds=rounds,
        planned=planned,
        wer=last["wer"],
        utterances=int(last["utterances"]),
        epsilon=steps[-1].get("epsilon"),
        delta=steps[-1].get("delta"),
    )


def defence_name(config: dict[str, Any]) -> str:
    """What records call the defences of a federated run."""
    return ", ".join(config["settings"]["defences"]) or NONE


def priced(records: Sequence[AuditRecord], prices: Sequence[Price]) -> list[AuditRecord]:
    """The records with word error rate and guarantee of their defence, where one of the runs trained under it.

    Raises:
        InputError: a run that measured no word error rate, two runs under one defence, or one under a defence that no
            record has.
    """
    by_defence: dict[str, Price] = {}
    for price in prices:
        if price.rounds < price.planned:
            found = f"{price.rounds} of {price.planned} rounds done"
            raise InputError(price.run, found, "start the same overheard federate again")
        if price.wer is None:
            raise InputError(price.run, "a run that measured no word error rate", "give it speech to measure on")
        if price.defence in by_defence:
            found = f"{price.run} and {by_defence[price.defence].run} both trained under {price.defence}"
            raise InputError("utility", found, "name one run for each defence")
        by_defence[price.defence] = price
    known = {record.defence for record in records}
    if unused := [price for price in prices if price.defence not in known]:
        found = f"{unused[0].run} trained under {unused[0].defence!r}, which no record has"
        raise InputError("utility", found, f"name runs under {', '.join(sorted(map(str, known)))}")
    return [_with_price(record, by_defence.get(record.defence or "")) for record in records]


def _with_price(record: AuditRecord, price: Price | None) -> AuditRecord:
    if price is None:
        return record
    return replace(record, utility_wer=price.wer, epsilon=price.epsilon, delta=price.delta)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        # A last line may be cut short by a crash.
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), "no readable measurements", "name a folder of overheard federate") from error
    return [line for line in found if isinstance(line, dict)]
