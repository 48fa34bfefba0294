"""What one client shares of some utterances, under the defences of a plan, and the truth behind it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from lhotse import MonoCut
from torch import nn

from overheard.audit.plan import AuditPlan
from overheard.audit.steps import make_batch, share
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.federation.defences.registry import Chosen, change_training, defend
from overheard.federation.local_settings import LocalSettings
from overheard.federation.update import ClientUpdate
from overheard.metrics.truth import Truth
from overheard.speech.augmentation import generator_for
from overheard.speech.corpus import load_utterance

UNCLIPPED = 1e30
"""A norm that no step's gradient reaches."""


def share_defended(
    plan: AuditPlan, model: nn.Module, name: str, weights: str, cuts: Sequence[MonoCut]
) -> tuple[ClientUpdate, Truth]:
    """The update of a client that has these utterances and no others.

    Whatever a defence draws depends on the plan's seed and the utterances alone.

    Args:
        plan: how the client trains and what it does against being overheard.
        model: the public model; left as it was.
        name: how the update names it.
        weights: fingerprint of its weights.
        cuts: one batch.

    Raises:
        InputError: an utterance that cannot be used, or settings that a defence does not allow.
    """
    chosen = plan.chosen_defences()
    if any(each.defence.place == "training" for each in chosen):
        update, truth = _trained_otherwise(plan, model, name, weights, cuts, chosen)
    else:
        batch, truth = make_batch(model, [load_utterance(cut) for cut in cuts])
        update = share(model, batch, plan.client, name, weights)
    return defend(update, chosen, generator_for(plan.seed, 1, f"defences of {_client(cuts)}")), truth


def _trained_otherwise(
    plan: AuditPlan, model: nn.Module, name: str, weights: str, cuts: Sequence[MonoCut], chosen: Sequence[Chosen]
) -> tuple[ClientUpdate, Truth]:
    """A round of the client where defences change how it trains."""
    # Lightning takes seconds to import, in every worker of a grid.
    from overheard.federation.clients import ClientSpeech
    from overheard.federation.local_training import Round, train_locally
    from overheard.federation.witness import truth_of

    local = change_training(_local_settings(plan.client, len(cuts)), chosen)
    trained = copy.deepcopy(model)
    speech = ClientSpeech(_client(cuts), tuple(cuts))
    told = Round(1, plan.seed, name, weights, device=str(next(model.parameters()).device))
    outcome = train_locally(trained, speech, local, told)
    if outcome.problems:
        raise outcome.problems[0].error()
    return outcome.update, truth_of(trained, speech, outcome)


def _client(cuts: Sequence[MonoCut]) -> str:
    """A client's name: what it draws depends on nothing but this and the seed."""
    return " ".join(cut.id for cut in cuts)


def _local_settings(client: ClientSettings, batch: int) -> LocalSettings:
    """The same training in the words of federated rounds, which training defences change.

    Raises:
        InputError: a setting that rounds do not have.
    """
    if client.momentum or client.weight_decay:
        found = f"momentum {client.momentum:g}, weight decay {client.weight_decay:g}"
        raise InputError("client", found, "leave them at 0 with a defence that changes local training")
    local = LocalSettings(
        kind=client.kind,
        mode=client.mode,
        steps=client.local_steps,
        batch_size=batch,
        clip_norm=UNCLIPPED if client.clip_norm is None else client.clip_norm,
    )
    return local if client.learning_rate is None else replace(local, learning_rate=client.learning_rate)
