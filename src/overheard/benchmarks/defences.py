"""What an attack brings back from clients' updates under each defence: the same speech, weights and draws for all."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lhotse import MonoCut
from torch import nn

from overheard.attacks.complete import attack_until
from overheard.attacks.observation import Observation
from overheard.audit.records import AuditRecord
from overheard.audit.steps import score
from overheard.errors import InputError
from overheard.federation.clients import ClientSpeech, ClientSplit, split_clients
from overheard.federation.defences.registry import Chosen, change_training, defend, parse_defence
from overheard.federation.local_settings import LocalSettings
from overheard.federation.local_training import Round, train_locally
from overheard.federation.witness import truth_of
from overheard.recognition.models import build_model, spec_of
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.augmentation import generator_for

STRENGTHS = (
    "none",
    "clip:norm=1",
    "clip-layers:norm=1",
    "noise:std=0.00001",
    "noise:std=0.001",
    "top-k:keep=0.5",
    "top-k:keep=0.1",
    "random-k:keep=0.5",
    "prune:keep=0.5",
    "prune:keep=0.1",
    "quantise-16",
    "quantise-8",
    "sign",
    "dropout:share=0.1",
    "dropout:share=0.5",
    "local-steps:steps=1",
    "local-steps:steps=4",
    "larger-batch:utterances=2",
    "larger-batch:utterances=4",
    "frozen:layers=input_layers.0",
)
"""Two strengths where a defence has one to set."""


@dataclass(frozen=True)
class DefenceRow:
    """One defence against one attack.

    Attributes:
        defence: as a user writes it.
        utterances: behind the updates.
        recovered: of those, with all frames and a mean absolute error below 0.01.
        snr: median over utterances that came back at all, dB; None where none did.
        mae: median over the same.
        seconds: of all attacks together.
        reason: why the first that was not recovered was not.
    """

    defence: str
    utterances: int
    recovered: int
    snr: float | None
    mae: float | None
    seconds: float
    reason: str | None


def measure(
    model: nn.Module, cuts: Sequence[MonoCut], texts: Sequence[str], attack: str, local: LocalSettings, seed: int
) -> Iterator[DefenceRow]:
    """One row for each defence; every speaker is a client that takes one round.

    Args:
        model: a registered one; its weights are what the server sent.
        cuts: of all clients.
        texts: defences as a user writes them, or "none".
        attack: by name.
        local: what a client does without a defence.
        seed: of draws and attacks.
    """
    for text in texts:
        chosen = [] if text == "none" else [parse_defence(text)]
        if any(each.defence.place == "cohort" for each in chosen):
            raise InputError(
                "defence", text, "name one that a client applies; what a cohort's sum gives is a larger batch"
            )
        found = [
            record
            for client in split_clients(cuts, ClientSplit())
            for record in _attacked(model, client, chosen, attack, local, seed)
        ]
        yield _row(text, found)


def _attacked(
    model: nn.Module,
    speech: ClientSpeech,
    chosen: Sequence[Chosen],
    attack: str,
    local: LocalSettings,
    seed: int,
) -> list[AuditRecord]:
    spec = spec_of(model)
    trained = build_model(spec)
    trained.load_state_dict(model.state_dict())
    told = Round(1, seed, spec.to_json(), weights_fingerprint(model))
    outcome = train_locally(trained, speech, change_training(local, chosen), told)
    update = defend(outcome.update, chosen, generator_for(seed, 1, f"defences of {speech.name}"))
    truth = truth_of(trained, speech, outcome)
    try:
        return score(attack_until(Observation(model, update), attack, seed=seed, until="features"), truth)
    except (InputError, RuntimeError, ArithmeticError) as error:
        # torch reports failed decompositions as RuntimeError.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return [AuditRecord(said.id, said.speaker, reason=reason) for said in truth.utterances]


def _row(text: str, records: Sequence[AuditRecord]) -> DefenceRow:
    came = [each for each in records if each.feature_mae is not None]
    return DefenceRow(
        defence=text,
        utterances=len(records),
        recovered=sum(each.recovered for each in records),
        snr=statistics.median([each.feature_snr_db for each in came if each.feature_snr_db is not None])
        if came
        else None,
        mae=statistics.median([each.feature_mae for each in came if each.feature_mae is not None]) if came else None,
        seconds=sum(each.seconds or 0.0 for each in records),
        reason=next((each.reason for each in records if not each.recovered), None),
    )
