"""`AuditPlan`: what an audit does, and what its folder says of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lhotse import MonoCut

from overheard import __version__
from overheard.attacks.complete import Until, check_attack
from overheard.attacks.registry import AUTO
from overheard.audit.folder import provenance
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.federation.defences.registry import Chosen, parse_defence
from overheard.federation.update import Protocol
from overheard.speech.corpus import Selection

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
        defences: of the client, in their order, as a user writes them.
        batch: utterances in each client's batch, drawn by the seed.
        batch_seconds: audio of such a batch at most, s.
        attack: by name, or "auto".
        options: settings of the attack.
        until: how far the attack goes: features, words, certificate.
        known: what the attacker is declared to know beforehand, of `KNOWLEDGE`.
        examples: how many updates keep the signals of an utterance: the first of the run, whatever comes of them.
        seed: of random weights, of what defences draw, and of attacks.
    """

    corpus: Path
    selection: Selection = Selection()
    models: tuple[str, ...] = ("deepspeech1",)
    scanned: tuple[str, ...] = ()
    client: ClientSettings = ClientSettings()
    defences: tuple[str, ...] = ()
    batch: int = 1
    batch_seconds: float | None = None
    attack: str = AUTO
    options: dict[str, Any] = field(default_factory=dict)
    until: Until = "words"
    known: tuple[str, ...] = ()
    examples: int = 4
    seed: int = 0

    def check(self) -> None:
        """Refuse what can be refused before anything is computed.

        Raises:
            InputError: an attack or a way of training that is none, knowledge that cannot be declared, or a defence
                that no single client can apply.
        """
        check_attack(self.attack, self.options)
        Protocol(**asdict(self.client))
        for each in self.known:
            if each not in KNOWLEDGE:
                raise InputError("known", repr(each), f"choose from {', '.join(KNOWLEDGE)}")
        for chosen in self.chosen_defences():
            if chosen.defence.place == "cohort" or chosen.name == "larger-batch":
                remedy = "audit a larger batch instead; what a cohort's sum gives away is a larger batch"
                raise InputError("defences", chosen.text, remedy)

    def chosen_defences(self) -> list[Chosen]:
        """The defences with their settings.

        Raises:
            InputError: an unknown one, or a wrong setting.
        """
        return [parse_defence(text) for text in self.defences]

    def settings(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return json.loads(json.dumps(asdict(self), default=str))

    def fingerprint(self) -> str:
        """Hash of all that a record's value depends on; which utterances are meant is not part of it."""
        chosen = {name: value for name, value in self.settings().items() if name not in ("selection", "examples")}
        return hashlib.sha256(json.dumps([chosen, __version__], sort_keys=True).encode()).hexdigest()[:12]


def threat_model(plans: Sequence[AuditPlan]) -> dict[str, list[str]]:
    """What the attacker of these plans is given, and what not."""
    known = [what for what in KNOWLEDGE if any(what in plan.known for plan in plans)]
    always = [what for what in KNOWLEDGE if all(what in plan.known for plan in plans)]
    updates = []
    for plan in plans:
        update = "gradient" if plan.client.kind == "gradient" else "weights' change after local training"
        said = "one utterance" if plan.batch == 1 else f"a batch of {plan.batch} utterances"
        under = f", under {' and '.join(plan.defences)}" if plan.defences else ""
        updates.append(f"the client's update: the {update} of {said}, in {plan.client.mode} mode{under}")
    return {
        "given": [
            "the model: its architecture and the weights that the client started from",
            *dict.fromkeys(updates),
            *(f"each utterance's {what}" + ("" if what in always else ", where a record says so") for what in known),
        ],
        "not_given": [
            "the audio",
            "the features",
            *(f"the {what}" for what in KNOWLEDGE if what not in always),
            "who speaks",
        ],
    }


def configuration(plan: AuditPlan, cuts: Sequence[MonoCut], device: torch.device) -> dict[str, Any]:
    """What config.json holds of a plan."""
    return {
        **provenance(device),
        "models": [*plan.models, *plan.scanned],
        "threat_model": threat_model([plan]),
        "settings": plan.settings(),
        "fingerprint": plan.fingerprint(),
        "corpus": corpus_described(plan.corpus, cuts),
    }


def corpus_described(corpus: Path, cuts: Sequence[MonoCut]) -> dict[str, Any]:
    """Path and counts of what is audited."""
    return {
        "path": str(corpus),
        "utterances": len({cut.id for cut in cuts}),
        "speakers": len({cut.supervisions[0].speaker for cut in cuts}),
    }
