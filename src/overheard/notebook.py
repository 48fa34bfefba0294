"""An audit of what is in memory, with a result that shows itself in a notebook."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from numpy.linalg import LinAlgError
from torch import nn

from overheard import __version__
from overheard.attacks.complete import Until, attack_until
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.registry import AUTO
from overheard.audit.examples import keep_example
from overheard.audit.records import AuditRecord, append_record
from overheard.audit.steps import make_batch, model_name, score, share
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.metrics.truth import Truth
from overheard.recognition.weights import resolve_model, weights_fingerprint
from overheard.report.fragment import result_fragment
from overheard.report.html import write_report
from overheard.report.summary import Summary, summarise
from overheard.report.wording import headline
from overheard.speech.corpus import Utterance
from overheard.storage import write_text


@dataclass(frozen=True)
class AuditResult:
    """What came of an audit; the last line of a notebook's cell shows it.

    Attributes:
        records: one for each utterance, in the order given.
        reconstructions: what the attack brought back for each, None where it could not run.
        truths: what was said, for each.
        settings: of the audit.
    """

    records: tuple[AuditRecord, ...]
    reconstructions: tuple[Reconstruction | None, ...] = field(repr=False)
    truths: tuple[Truth | None, ...] = field(repr=False)
    settings: dict[str, Any]

    @property
    def summary(self) -> Summary:
        """Rates and medians with their intervals."""
        return summarise(self.records)

    def __str__(self) -> str:
        return headline(self.summary)

    def _repr_html_(self) -> str:
        return result_fragment(self.records)

    def save(self, folder: Path, examples: int = 4) -> Path:
        """Keep it as a run of `overheard audit` would be kept, with its page, whose path is returned.

        Args:
            folder: new or empty.
            examples: utterances whose features and audio are kept.

        Raises:
            InputError: the folder holds something.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(str(folder), "a folder with other things in it", "choose a new or empty one")
        # Audits hold private speech.
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        write_text(folder / "config.json", json.dumps(self._config(), indent=1))
        for index, (record, found, truth) in enumerate(
            zip(self.records, self.reconstructions, self.truths, strict=True)
        ):
            if index < examples and found is not None and truth is not None:
                name = f"examples/{index:04d}"
                keep_example(folder / name, found, truth)
                record = replace(record, example=name)
            append_record(folder, record)
        return write_report(folder)

    def _config(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")}
        return {
            "command": "overheard.audit(model, utterances)",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"overheard": __version__, "python": platform.python_version(), **versions},
            "models": sorted({record.model or "" for record in self.records}),
            "threat_model": {
                "given": ["the model: its architecture and its weights", "the update of one utterance"],
                "not_given": ["the audio", "the features", "the transcript", "the length", "who speaks"],
            },
            "settings": self.settings,
            "corpus": {
                "path": "in memory",
                "utterances": len(self.records),
                "speakers": len({record.speaker for record in self.records}),
            },
            "threads": torch.get_num_threads(),
            "device": "cpu",
        }


def audit(
    model: nn.Module | str,
    utterances: Sequence[Utterance],
    *,
    attack: str = AUTO,
    options: dict[str, Any] | None = None,
    until: Until = "words",
    client: ClientSettings = ClientSettings(),
    seed: int = 0,
) -> AuditResult:
    """Share, attack and score each utterance: what would a client that trains on it alone give away?

    Args:
        model: a recogniser with `front_end`, `alphabet` and `output_lengths`, or the name of one.
        utterances: at least one.
        attack: by name, or "auto" for each in turn.
        options: settings of the attack.
        until: how far it goes: "features", "words" or "certificate".
        client: how the client trains.
        seed: of the weights of a named model, and of the attack.

    Raises:
        InputError: no utterance, or no such model or attack. An utterance that cannot be used is a record with its
            reason.
    """
    if not utterances:
        raise InputError("utterances", "none", "give at least one")
    named = model if isinstance(model, str) else type(model).__name__
    recogniser = resolve_model(model, seed) if isinstance(model, str) else model
    name, weights = model_name(recogniser, named), weights_fingerprint(recogniser)
    settings = {"attack": attack, "options": options or {}, "until": until, "client": asdict(client), "seed": seed}
    records, reconstructions, truths = [], [], []
    for utterance in utterances:
        found, truth = None, None
        try:
            batch, truth = make_batch(recogniser, [utterance])
            update = share(recogniser, batch, client, name, weights)
            found = attack_until(Observation(recogniser, update), attack, options, seed, until)
            record = score(found, truth)[0]
        except InputError as error:
            if error.argument == "attack":
                raise
            record = _failed(utterance, attack, str(error))
        except (RuntimeError, ArithmeticError, MemoryError, LinAlgError) as error:
            # torch reports failed decompositions and memory that ran out as RuntimeError, scipy the former as this.
            record = _failed(utterance, attack, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        records.append(replace(record, model=named, kind=client.kind, defence="none", seed=seed))
        reconstructions.append(found)
        truths.append(truth)
    return AuditResult(tuple(records), tuple(reconstructions), tuple(truths), settings)


def _failed(utterance: Utterance, attack: str, reason: str) -> AuditRecord:
    return AuditRecord(
        utterance.id, utterance.speaker, utterance.seconds, attack=attack, reason=reason, version=__version__
    )
