"""One client's update, from speech to records: shared, attacked, scored. What fails is a record with its reason."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut
from numpy.linalg import LinAlgError
from torch import nn

from overheard import __version__
from overheard.attacks.complete import attack_until
from overheard.attacks.observation import Observation, Prior
from overheard.attacks.rank import rank_scan
from overheard.audit.defended import share_defended
from overheard.audit.examples import keep_example
from overheard.audit.plan import AuditPlan
from overheard.audit.records import AuditRecord
from overheard.audit.steps import is_registered, model_name, score
from overheard.errors import InputError
from overheard.metering import metered
from overheard.metrics.truth import Truth
from overheard.recognition.weights import resolve_model, weights_fingerprint
from overheard.speech.corpus import Problem


@dataclass(frozen=True)
class AuditedModel:
    """A model, ready to be audited.

    Attributes:
        text: how the user named it.
        model: on the device.
        name: how updates name it.
        weights: its fingerprint.
    """

    text: str
    model: nn.Module
    name: str
    weights: str


def prepare(text: str, seed: int, device: torch.device) -> AuditedModel:
    """The model that a user names; see `resolve_model`."""
    model = resolve_model(text, seed).to(device)
    return AuditedModel(text, model, model_name(model, text), weights_fingerprint(model))


def audit_batch(
    plan: AuditPlan, audited: AuditedModel, batch: Sequence[MonoCut], example: Path | None
) -> list[AuditRecord]:
    """The records of the utterances of one client's batch, in its order.

    Args:
        plan: what to do.
        audited: one of its models.
        batch: the client's utterances.
        example: where the first utterance's signals are kept, RUN/examples/NAME; None to keep none.
    """
    try:
        observation, truth = _observe(plan, audited, batch)
        found = attack_until(observation, plan.attack, plan.options, plan.seed, plan.until)
    except InputError as error:
        return all_failed(plan, audited.text, batch, str(error.found) if len(batch) == 1 else str(error))
    except (RuntimeError, ArithmeticError, MemoryError, LinAlgError) as error:
        # torch reports failed decompositions and memory that ran out as RuntimeError, scipy the former as LinAlgError.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return all_failed(plan, audited.text, batch, reason)
    records = [_completed(plan, audited.text, record) for record in score(found, truth)]
    if example is not None:
        keep_example(example, found, truth)
        records[0] = replace(records[0], example=f"{example.parent.name}/{example.name}")
    return records


def failed(plan: AuditPlan, text: str, problem: Problem, seconds_audio: float | None = None) -> AuditRecord:
    """The record of an utterance that could not be shared or attacked, of the model that a user calls `text`."""
    record = AuditRecord(
        utterance=problem.utterance,
        speaker=problem.speaker,
        seconds_audio=seconds_audio,
        reason=problem.reason,
        kind=plan.client.kind,
        mode=plan.client.mode,
        batch=plan.batch,
        local_steps=plan.client.local_steps,
        attack=plan.attack,
        prior=", ".join(plan.known) or "nothing",
        version=__version__,
    )
    return _completed(plan, text, record)


def scan_first(
    plan: AuditPlan, audited: AuditedModel, batches: Sequence[Sequence[MonoCut]], attacked: bool
) -> dict[str, Any] | None:
    """The rank scan of the first batch that has an update, as ranks.json holds it."""
    for batch in batches:
        try:
            observation, truth = _observe(plan, audited, batch)
        except InputError:
            continue
        with metered(next(audited.model.parameters()).device) as meter:
            layers = [asdict(row) for row in rank_scan(observation)]
        note = None if attacked else "this run scans what its update spans and attacks nothing"
        return {
            "model": audited.text,
            "attacked": attacked,
            "note": note,
            "layers": layers,
            "frames": sum(len(said.features) for said in truth.utterances),
            "utterance": ", ".join(cut.id for cut in batch),
            "seconds": meter.seconds,
        }
    return None


def _observe(plan: AuditPlan, audited: AuditedModel, cuts: Sequence[MonoCut]) -> tuple[Observation, Truth]:
    update, truth = share_defended(plan, audited.model, audited.name, audited.weights, cuts)
    transcripts = tuple(said.transcript for said in truth.utterances) if "transcript" in plan.known else None
    lengths = tuple(len(said.features) for said in truth.utterances) if "length" in plan.known else None
    return Observation(audited.model, update, Prior(transcripts, lengths)), truth


def all_failed(plan: AuditPlan, text: str, batch: Sequence[MonoCut], reason: str) -> list[AuditRecord]:
    """A record for each utterance of a batch that came to nothing."""
    return [
        failed(plan, text, Problem(cut.id, str(cut.supervisions[0].speaker), reason, ""), cut.duration) for cut in batch
    ]


def _completed(plan: AuditPlan, text: str, record: AuditRecord) -> AuditRecord:
    return replace(
        record,
        model=text,
        weights=f"random, seed {plan.seed}" if is_registered(text) else "as given",
        defence=", ".join(plan.defences) or "none",
        seed=plan.seed,
        settings=plan.fingerprint(),
    )
