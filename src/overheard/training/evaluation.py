"""Word and character error rate of a model on utterances it does not learn from, shared among all processes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from lhotse import MonoCut
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional

from overheard.metrics.words import WordErrors, count_errors
from overheard.recognition.beam import BeamDecoder
from overheard.recognition.decoding import greedy
from overheard.training.data import FeatureDataset, alphabet_of, in_order
from overheard.training.devices import total


@dataclass(frozen=True)
class Evaluation:
    """How well a model hears.

    Attributes:
        loss: CTC loss averaged over utterances, nats; None where it is not finite.
        wer: word error rate, by greedy decoding where no other is named; None without words.
        cer: character error rate.
        utterances: how many could be used.
    """

    loss: float | None
    wer: float | None
    cer: float | None
    utterances: int


def evaluate(
    model: nn.Module,
    cuts: Sequence[MonoCut],
    batch_seconds: float,
    fabric: Fabric | None = None,
    search: BeamDecoder | None = None,
) -> Evaluation:
    """Error rates over all the cuts, edits and lengths summed before they are divided.

    Args:
        model: left in the mode it was in.
        cuts: utterances; those that cannot be read are left out.
        batch_seconds: audio in one batch, s.
        fabric: shares the batches among its processes; None for this one alone.
        search: a beam search; None for greedy decoding.
    """
    errors, loss, heard_in_all = WordErrors(), 0.0, 0
    for _, each, own in utterance_errors(model, cuts, batch_seconds, fabric, search):
        loss += each
        errors += own
        heard_in_all += 1
    summed = (loss, heard_in_all, errors.word_edits, errors.words, errors.character_edits, errors.characters)
    if fabric is not None:
        loss, heard_in_all, *counts = total(fabric, *map(float, summed))
        errors = WordErrors(*map(int, counts))
    return _evaluation(loss, errors, int(heard_in_all))


def evaluate_speakers(
    model: nn.Module, cuts: Sequence[MonoCut], batch_seconds: float
) -> tuple[Evaluation, dict[str, Evaluation]]:
    """Of all cuts, and of each speaker's, heard once; arguments as in `evaluate`."""
    speakers = {cut.id: str(cut.supervisions[0].speaker) for cut in cuts}
    heard = [(speakers[name], loss, own) for name, loss, own in utterance_errors(model, cuts, batch_seconds)]

    def of(found: list[tuple[str, float, WordErrors]]) -> Evaluation:
        return _evaluation(sum(loss for _, loss, _ in found), sum((own for *_, own in found), WordErrors()), len(found))

    names = sorted(set(speakers.values()))
    return of(heard), {name: of([each for each in heard if each[0] == name]) for name in names}


def utterance_errors(
    model: nn.Module,
    cuts: Sequence[MonoCut],
    batch_seconds: float,
    fabric: Fabric | None = None,
    search: BeamDecoder | None = None,
) -> Iterator[tuple[str, float, WordErrors]]:
    """Id, CTC loss (nats) and errors of each utterance that can be read; arguments as in `evaluate`."""
    for name, loss, text, truth in recognised(model, cuts, batch_seconds, fabric, search):
        yield name, loss, count_errors(text, truth)


def recognised(
    model: nn.Module,
    cuts: Sequence[MonoCut],
    batch_seconds: float,
    fabric: Fabric | None = None,
    search: BeamDecoder | None = None,
) -> Iterator[tuple[str, float, str, str]]:
    """Id, CTC loss (nats), what was heard and the transcript of each utterance; arguments as in `evaluate`."""
    dataset, alphabet = FeatureDataset(model), alphabet_of(model)
    device = next(model.parameters()).device
    batches = in_order(cuts, batch_seconds)
    if fabric is not None:
        batches = batches[fabric.global_rank :: fabric.world_size]
    precision: AbstractContextManager[object] = nullcontext() if fabric is None else fabric.autocast()
    training = model.training
    model.eval()
    for batch_cuts in batches:
        heard = dataset[batch_cuts]
        if heard.batch is None:
            continue
        batch = heard.batch.to(device)
        with torch.no_grad(), precision:
            logits, lengths = model(batch.features, batch.num_frames)
        log_probs = logits.float().log_softmax(-1)
        losses = functional.ctc_loss(log_probs, batch.targets, lengths, batch.target_lengths, reduction="none")
        for index, hypothesis in enumerate(greedy(logits, lengths, alphabet)):
            found = [hypothesis] if search is None else search(log_probs[: lengths[index], index])
            # A search that runs out of hypotheses has heard nothing.
            text = found[0].text if found else ""
            yield heard.utterances[index], float(losses[index]), text, alphabet.decode(batch.utterance_labels(index))
    model.train(training)


def _evaluation(loss: float, errors: WordErrors, utterances: int) -> Evaluation:
    """From sums over utterances."""
    mean = loss / utterances if utterances and math.isfinite(loss) else None
    return Evaluation(mean, errors.wer, errors.cer, utterances)
