"""`audit_run`: attack the updates that a federated run kept, from its files alone, and score them against the truth.

The attacker reads RUN/captured; RUN/truth is opened when the attack is over. The output folder is that of every audit.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from overheard import __version__
from overheard.attacks.complete import Until, attack_until
from overheard.attacks.observation import Observation
from overheard.attacks.rank import rank_scan
from overheard.attacks.registry import AUTO
from overheard.audit.examples import keep_example
from overheard.audit.folder import begin, provenance
from overheard.audit.price import Price, price_of, run_configuration
from overheard.audit.records import RESULTS, AuditRecord, append_record, drop_partial_line, load_records
from overheard.audit.steps import public_model, score
from overheard.errors import InputError
from overheard.federation.capture import Captured, captured
from overheard.federation.update import load_update
from overheard.metering import metered
from overheard.metrics.truth import Truth, load_truth
from overheard.storage import write_text

RANKS = "ranks.json"


@dataclass(frozen=True)
class FederatedAudit:
    """What to audit; every field is kept in config.json.

    Attributes:
        run: folder of overheard federate.
        attack: by name, or "auto".
        options: settings of the attack.
        until: how far the attack goes.
        examples: how many updates keep their signals.
        seed: of attacks.
    """

    run: Path
    attack: str = AUTO
    options: dict[str, Any] = field(default_factory=dict)
    until: Until = "words"
    examples: int = 4
    seed: int = 0

    def fingerprint(self) -> str:
        """Hash of all that a record's value depends on."""
        chosen = {name: value for name, value in asdict(self).items() if name != "examples"}
        text = json.dumps([chosen, __version__], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def audit_run(plan: FederatedAudit, out: Path, device: torch.device, console: Console) -> list[AuditRecord]:
    """Attack every update that was kept; returns every record of the folder.

    Started again with the same settings it does what is missing.

    Raises:
        InputError: nothing was captured, or the folder holds another audit.
    """
    updates = list(captured(plan.run))
    run, price = run_configuration(plan.run), price_of(plan.run)
    begin(out, _config(plan, updates, run, price, device), "an audit")
    drop_partial_line(out)
    done = {(each.utterance, each.weights) for each in load_records(out)} if (out / RESULTS).exists() else set()
    with Progress(console=console, transient=True) as progress:
        for index, each in enumerate(progress.track(updates, description="audit")):
            names = [said.id for said in _truth(each).utterances] if _known(each) else [each.client]
            if all((name, _weights(each)) in done for name in names):
                continue
            records, rank = _audit(plan, each, out, device, price, index < plan.examples)
            for record in records:
                if (record.utterance, record.weights) not in done:
                    append_record(out, record)
            # All updates are of one model: the first one's ranks say what its layers span.
            if rank is not None and not (out / RANKS).exists():
                write_text(out / RANKS, json.dumps([rank], indent=1))
    return load_records(out)


def _audit(
    plan: FederatedAudit, each: Captured, out: Path, device: torch.device, price: Price, keep: bool
) -> tuple[list[AuditRecord], dict[str, Any] | None]:
    common = {
        "model": price.model,
        "weights": _weights(each),
        "defence": price.defence,
        "epsilon": price.epsilon,
        "delta": price.delta,
        "utility_wer": price.wer,
        "seed": plan.seed,
        "settings": plan.fingerprint(),
    }
    truth = _truth(each) if _known(each) else None
    rank = None
    try:
        update = load_update(each.update)
        model = public_model(update, str(each.model), plan.seed, str(each.update)).to(device)
        observation = Observation(model, update)
        with metered(device) as meter:
            layers = [asdict(row) for row in rank_scan(observation)]
        frames = None if truth is None else sum(len(said.features) for said in truth.utterances)
        rank = {"model": price.model, "attacked": True, "note": None, "layers": layers, "frames": frames}
        rank["seconds"] = meter.seconds
        found = attack_until(observation, plan.attack, plan.options, plan.seed, plan.until)
    except (InputError, RuntimeError, ArithmeticError, MemoryError) as error:
        # torch reports failed decompositions and memory that ran out as RuntimeError.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        names = [(said.id, said.speaker) for said in truth.utterances] if truth else [(each.client, None)]
        failed = [AuditRecord(name, who, reason=reason, attack=plan.attack, version=__version__) for name, who in names]
        return [replace(record, **common) for record in failed], rank
    if truth is None:
        # A deployment has no truth to score against: what came back is counted and no more.
        frames = sum(len(matrix) for matrix in found.features)
        record = AuditRecord(each.client, reason="no truth was kept", attack=found.attack, version=__version__)
        return [replace(record, frames_recovered=frames, seconds=found.seconds, **common)], rank
    records = [replace(record, **common) for record in score(found, truth)]
    if keep:
        folder = f"examples/{each.client}-round-{each.number}"
        keep_example(out / folder, found, truth)
        records[0] = replace(records[0], example=folder)
    return records, rank


def _weights(each: Captured) -> str:
    return f"before round {each.number}"


def _known(each: Captured) -> bool:
    return bool(each.truths) and all(path.is_file() for path in each.truths)


def _truth(each: Captured) -> Truth:
    parts = [load_truth(path) for path in each.truths]
    return Truth(tuple(said for part in parts for said in part.utterances), parts[0].front_end)


def _config(
    plan: FederatedAudit, updates: Sequence[Captured], run: dict[str, Any], price: Price, device: torch.device
) -> dict[str, Any]:
    local, guarantees = run["settings"]["local"], [each["guarantee"] for each in run.get("defences", [])]
    said = [said for each in updates if _known(each) for said in _truth(each).utterances]
    return {
        **provenance(device),
        "models": [price.model],
        "threat_model": {
            "given": [
                "the model: its architecture and the weights of the round",
                f"what the server saw of each client: a {local['kind']} in {local['mode']} mode",
                f"the defences: {price.defence}",
            ],
            "not_given": ["the audio", "the features", "the transcripts", "the lengths", "who speaks"],
        },
        "settings": {**json.loads(json.dumps(asdict(plan), default=str)), "federation": run["settings"]},
        "guarantees": guarantees,
        # A run that measured nothing and guarantees nothing has no price to state.
        "prices": [] if price.wer is None and price.epsilon is None else [asdict(price)],
        "fingerprint": plan.fingerprint(),
        "corpus": {"path": price.corpus, "utterances": len(said), "speakers": len({each.speaker for each in said})},
    }
