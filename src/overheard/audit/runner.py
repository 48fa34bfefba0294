"""`run_audit`: share, attack and score every utterance of a selection, and keep what came of it.

The output folder holds config.json, results.jsonl, ranks.json and examples/. An utterance that fails is a record with
its reason, never the end of the run. A second start with the same settings does what is missing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut
from rich.console import Console
from rich.progress import Progress
from torch import nn

from overheard import __version__
from overheard.attacks.complete import Until, attack_until
from overheard.attacks.observation import Observation, Prior, Reconstruction
from overheard.attacks.rank import rank_scan
from overheard.attacks.registry import AUTO
from overheard.audit.examples import keep_example
from overheard.audit.folder import begin, provenance
from overheard.audit.grouping import group
from overheard.audit.records import RESULTS, AuditRecord, append_record, drop_partial_line, load_records
from overheard.audit.steps import make_batch, model_name, score, share
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.metering import metered
from overheard.metrics.truth import Truth
from overheard.recognition.weights import resolve_model, weights_fingerprint
from overheard.speech.corpus import Problem, Selection, load_corpus, load_utterance, select
from overheard.storage import write_text

KNOWLEDGE = ("transcript", "length")


@dataclass(frozen=True)
class AuditPlan:
    """What to audit; every field is kept in config.json.

    Attributes:
        corpus: folder or manifest.
        selection: which utterances.
        models: names, files or module:function of those to attack.
        scanned: of those whose updates get a rank scan alone.
        client: how a client trains.
        batch: utterances in each client's batch, drawn by the seed.
        batch_seconds: audio of such a batch at most, s.
        attack: by name, or "auto".
        options: settings of the attack.
        until: how far the attack goes: features, words, certificate.
        known: what the attacker is declared to know beforehand, of `KNOWLEDGE`.
        examples: how many updates keep the signals of an utterance: the first of the run, whatever comes of them.
        seed: of random weights and of attacks.
    """

    corpus: Path
    selection: Selection = Selection()
    models: tuple[str, ...] = ("deepspeech1",)
    scanned: tuple[str, ...] = ()
    client: ClientSettings = ClientSettings()
    batch: int = 1
    batch_seconds: float | None = None
    attack: str = AUTO
    options: dict[str, Any] = field(default_factory=dict)
    until: Until = "words"
    known: tuple[str, ...] = ()
    examples: int = 4
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))

    def fingerprint(self) -> str:
        """Hash of all that a record's value depends on; which utterances are meant is not part of it."""
        chosen = {name: value for name, value in self.settings().items() if name not in ("selection", "examples")}
        return hashlib.sha256(json.dumps([chosen, __version__], sort_keys=True).encode()).hexdigest()[:12]


def run_audit(plan: AuditPlan, out: Path, device: torch.device, console: Console) -> list[AuditRecord]:
    """Carry out a plan; returns every record of the folder that is of this plan, in the order written.

    Raises:
        InputError: the corpus or a model cannot be had, nothing is selected, or the folder holds another plan's run.
    """
    for each in plan.known:
        if each not in KNOWLEDGE:
            raise InputError("known", repr(each), f"choose from {', '.join(KNOWLEDGE)}")
    corpus = load_corpus(plan.corpus)
    selected, problems = select(corpus, plan.selection)
    batches = group(selected, plan.batch, plan.batch_seconds, plan.seed)
    cuts = [cut for batch in batches for cut in batch]
    if len(cuts) < len(selected):
        console.print(f"{len(selected) - len(cuts)} of {len(selected)} utterances left out: they fill no batch")
    begin(out, _config(plan, cuts, device), "a run")
    drop_partial_line(out)
    done = {(record.utterance, record.model) for record in load_records(out)} if (out / RESULTS).exists() else set()
    ranks = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("audit", total=len(plan.models) * (len(batches) + len(problems)) + len(plan.scanned))
        for text in plan.models:
            model = resolve_model(text, plan.seed).to(device)
            audited = _Audited(plan, text, model, model_name(model, text), weights_fingerprint(model), out)
            for problem in problems:
                if (problem.utterance, text) not in done:
                    append_record(out, audited.failed(problem))
                progress.advance(task)
            for index, batch in enumerate(batches):
                missing = {cut.id for cut in batch if (cut.id, text) not in done}
                if missing:
                    for record in audited.audit(batch, keep=index < plan.examples):
                        if record.utterance in missing:
                            append_record(out, record)
                progress.advance(task)
            ranks.append(audited.scan(batches, attacked=True))
        for text in plan.scanned:
            model = resolve_model(text, plan.seed).to(device)
            audited = _Audited(plan, text, model, model_name(model, text), weights_fingerprint(model), out)
            ranks.append(audited.scan(batches, attacked=False))
            progress.advance(task)
    write_text(out / "ranks.json", json.dumps([rank for rank in ranks if rank is not None], indent=1))
    return load_records(out)


@dataclass(frozen=True)
class _Audited:
    """One model of a plan, ready to be audited."""

    plan: AuditPlan
    text: str
    model: nn.Module
    name: str
    weights: str
    out: Path

    def audit(self, batch: Sequence[MonoCut], keep: bool) -> list[AuditRecord]:
        """Records of the utterances of one batch: share, attack, score."""
        try:
            reconstruction, truth = self._attack(batch)
        except InputError as error:
            return self._all_failed(batch, str(error.found) if len(batch) == 1 else str(error), error.remedy)
        except (RuntimeError, ArithmeticError, MemoryError) as error:
            # torch reports failed decompositions and memory that ran out as RuntimeError.
            return self._all_failed(batch, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "")
        records = [self._completed(record) for record in score(reconstruction, truth)]
        if keep:
            name = batch[0].id
            folder = f"examples/{name}" if len(self.plan.models) == 1 else f"examples/{name}-{_slug(self.text)}"
            keep_example(self.out / folder, reconstruction, truth)
            records[0] = replace(records[0], example=folder)
        return records

    def _all_failed(self, batch: Sequence[MonoCut], reason: str, remedy: str) -> list[AuditRecord]:
        return [
            self.failed(Problem(cut.id, str(cut.supervisions[0].speaker), reason, remedy), cut.duration)
            for cut in batch
        ]

    def scan(self, batches: Sequence[Sequence[MonoCut]], attacked: bool) -> dict[str, Any] | None:
        """The rank scan of the first batch that has an update."""
        for batch in batches:
            try:
                observation, truth = self._observe(batch)
            except InputError:
                continue
            with metered(next(self.model.parameters()).device) as meter:
                layers = [asdict(row) for row in rank_scan(observation)]
            note = None if attacked else "this run scans what its update spans and attacks nothing"
            return {
                "model": self.text,
                "attacked": attacked,
                "note": note,
                "layers": layers,
                "frames": sum(len(said.features) for said in truth.utterances),
                "utterance": ", ".join(cut.id for cut in batch),
                "seconds": meter.seconds,
            }
        return None

    def failed(self, problem: Problem, seconds_audio: float | None = None) -> AuditRecord:
        """The record of an utterance that could not be shared or attacked."""
        record = AuditRecord(
            utterance=problem.utterance,
            speaker=problem.speaker,
            seconds_audio=seconds_audio,
            reason=problem.reason,
            kind=self.plan.client.kind,
            mode=self.plan.client.mode,
            batch=self.plan.batch,
            local_steps=self.plan.client.local_steps,
            attack=self.plan.attack,
            prior=", ".join(self.plan.known) or "nothing",
            version=__version__,
        )
        return self._completed(record)

    def _completed(self, record: AuditRecord) -> AuditRecord:
        weights = f"random, seed {self.plan.seed}" if self.name.startswith("{") else "as given"
        return replace(
            record,
            model=self.text,
            weights=weights,
            defence="none",
            seed=self.plan.seed,
            settings=self.plan.fingerprint(),
        )

    def _observe(self, cuts: Sequence[MonoCut]) -> tuple[Observation, Truth]:
        batch, truth = make_batch(self.model, [load_utterance(cut) for cut in cuts])
        update = share(self.model, batch, self.plan.client, self.name, self.weights)
        transcripts = tuple(said.transcript for said in truth.utterances) if "transcript" in self.plan.known else None
        lengths = tuple(batch.num_frames.tolist()) if "length" in self.plan.known else None
        return Observation(self.model, update, Prior(transcripts, lengths)), truth

    def _attack(self, batch: Sequence[MonoCut]) -> tuple[Reconstruction, Truth]:
        observation, truth = self._observe(batch)
        plan = self.plan
        return attack_until(observation, plan.attack, plan.options, plan.seed, plan.until), truth


def _config(plan: AuditPlan, cuts: Sequence[MonoCut], device: torch.device) -> dict[str, Any]:
    prior = [f"each utterance's {what}" for what in plan.known]
    unknown = [f"the {what}" for what in KNOWLEDGE if what not in plan.known]
    update = "gradient" if plan.client.kind == "gradient" else "weights' change after local training"
    said = "one utterance" if plan.batch == 1 else f"a batch of {plan.batch} utterances"
    return {
        **provenance(device),
        "models": [*plan.models, *plan.scanned],
        "threat_model": {
            "given": [
                "the model: its architecture and the weights that the client started from",
                f"the client's update: the {update} of {said}, in {plan.client.mode} mode",
                *prior,
            ],
            "not_given": ["the audio", "the features", *unknown, "who speaks"],
        },
        "settings": plan.settings(),
        "fingerprint": plan.fingerprint(),
        "corpus": {
            "path": str(plan.corpus),
            "utterances": len(cuts),
            "speakers": len({cut.supervisions[0].speaker for cut in cuts}),
        },
    }


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)[-40:]
