"""What each defence costs in words: the same rounds from the same weights under one after another."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lhotse import MonoCut
from rich.console import Console
from torch import nn

from overheard.audit.price import price_of
from overheard.errors import InputError
from overheard.federation.simulation import FederationPlan, carry_out
from overheard.metrics.intervals import Estimate, ratio_estimate
from overheard.recognition.models import build_model, spec_of
from overheard.training.evaluation import utterance_errors

NONE = "none"
STRENGTHS = (
    NONE,
    "clip:norm=1",
    "clip:norm=0.25",
    "clip-layers:norm=1",
    "clip-layers:norm=0.25",
    "noise:std=0.01",
    "noise:std=0.1",
    "top-k:keep=0.1",
    "top-k:keep=0.01",
    "random-k:keep=0.5",
    "random-k:keep=0.1",
    "prune:keep=0.1",
    "prune:keep=0.01",
    "quantise-16",
    "quantise-8",
    "sign",
    "local-steps:steps=2",
    "local-steps:steps=16",
    "larger-batch:utterances=8",
    "larger-batch:utterances=16",
    "frozen:layers=convolutions",
    "frozen:layers=convolutions+recurrences.0",
    "sample-dp:multiplier=0.1,norm=10,learning_rate=0.05",
    "sample-dp:multiplier=1,norm=10,learning_rate=0.05",
    "central-noise:std=0.01",
    "central-noise:std=0.1",
    "user-dp:multiplier=0.1,norm=1",
    "user-dp:multiplier=1,norm=1",
    "secure-aggregation",
)
"""Two strengths where a defence has one to set."""


@dataclass(frozen=True)
class UtilityRow:
    """A model after all rounds under one defence.

    Attributes:
        defence: as a user writes it; several are separated by spaces.
        wer: word error rate by greedy decoding with its interval over utterances; None where the run stopped.
        utterances: heard by all clients, counted each time.
        epsilon: of the guarantee; None where nothing is guaranteed.
        delta: of the same.
        seconds: of the run.
        reason: why it stopped.
    """

    defence: str
    wer: Estimate | None
    utterances: int
    epsilon: float | None
    delta: float | None
    seconds: float
    reason: str | None = None


def measure(plan: FederationPlan, start: nn.Module, texts: Sequence[str], out: Path) -> Iterator[UtilityRow]:
    """A row for each of the texts, each from a run in a folder of its own below `out`; what is done is not done again.

    Args:
        plan: of every run, its defences excepted.
        start: a registered model with the weights to start from.
        texts: defences as a user writes them, several separated by spaces, or "none".
        out: folder for the runs.
    """
    for text in texts:
        settings = replace(plan.settings, defences=() if text == NONE else tuple(text.split()))
        model = build_model(spec_of(start))
        model.load_state_dict(start.state_dict())
        folder = out / folder_of(text)
        begun = time.perf_counter()
        try:
            server = carry_out(replace(plan, settings=settings), model, folder, Console(quiet=True))
        except InputError as error:
            # A model may lack what a defence changes, and noise may leave nothing finite.
            yield UtilityRow(text, None, 0, None, None, time.perf_counter() - begun, str(error))
            continue
        price, wer = price_of(folder), word_error_rate(server.model, server.dev)
        heard, seconds = server.progress.utterances, server.progress.seconds
        yield UtilityRow(text, wer, heard, price.epsilon, price.delta, seconds)


def word_error_rate(model: nn.Module, cuts: Sequence[MonoCut], batch_seconds: float = 60.0) -> Estimate | None:
    """Greedy word error rate with its interval over the utterances."""
    errors = [own for *_, own in utterance_errors(model, cuts, batch_seconds)]
    return ratio_estimate([each.word_edits for each in errors], [each.words for each in errors])


def folder_of(text: str) -> str:
    """A defence's text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", text)
