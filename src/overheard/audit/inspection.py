"""What a corpus is, seen through a model: shapes and lengths of every utterance, all the way to CTC."""

from dataclasses import dataclass

import torch
from lhotse import MonoCut
from torch import nn

from overheard.errors import InputError
from overheard.recognition.loss import infeasible_reason
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.alphabet import adjacent_repeats, minimum_frames
from overheard.speech.batching import Batch, collate
from overheard.speech.corpus import load_utterance
from overheard.speech.features import FrontEnd

BIN_SECONDS = 2.0


@dataclass(frozen=True)
class UtteranceShapes:
    """One utterance on its way to CTC.

    Attributes:
        utterance: its id.
        speaker: its speaker.
        seconds: its duration, s.
        waveform: (S,).
        features: (T, N, F) with N = 1.
        output_length: T' that CTC is given.
        labels: L, the characters of its transcript.
        repeats: labels that follow themselves.
        minimum_frames: the least T' that can spell the labels.
        problem: why it is infeasible; None when it is feasible.
    """

    utterance: str
    speaker: str
    seconds: float | None = None
    waveform: tuple[int, ...] | None = None
    features: tuple[int, int, int] | None = None
    output_length: int | None = None
    labels: int | None = None
    repeats: int | None = None
    minimum_frames: int | None = None
    problem: str | None = None


def inspect_utterance(model: nn.Module, cut: MonoCut) -> UtteranceShapes:
    """Read one utterance and follow its shapes; anything against it becomes its problem."""
    recogniser = as_recogniser(model)
    speaker = str(cut.supervisions[0].speaker)
    try:
        utterance = load_utterance(cut)
        labels = recogniser.alphabet.encode(utterance.transcript, cut.id)
    except InputError as error:
        return UtteranceShapes(cut.id, speaker, cut.duration, problem=f"{error.found}; {error.remedy}")
    front_end = recogniser.front_end
    num_frames = front_end.num_frames(len(utterance.waveform))
    output_length = int(recogniser.output_lengths(torch.tensor([num_frames]))[0])
    return UtteranceShapes(
        utterance=cut.id,
        speaker=speaker,
        seconds=utterance.seconds,
        waveform=tuple(utterance.waveform.shape),
        features=(num_frames, 1, front_end.num_features),
        output_length=output_length,
        labels=len(labels),
        repeats=adjacent_repeats(labels),
        minimum_frames=minimum_frames(labels),
        problem=infeasible_reason(num_frames, output_length, labels),
    )


def histogram(seconds: list[float]) -> list[tuple[float, float, int]]:
    """Utterances per bin of durations: from, to (s), count; every bin up to the longest."""
    if not seconds:
        return []
    counts = torch.histc(
        torch.tensor(seconds), bins=int(max(seconds) // BIN_SECONDS) + 1, min=0.0, max=_upper_edge(max(seconds))
    )
    return [(index * BIN_SECONDS, (index + 1) * BIN_SECONDS, int(count)) for index, count in enumerate(counts)]


def _upper_edge(longest: float) -> float:
    return (longest // BIN_SECONDS + 1) * BIN_SECONDS


def first_batch(model: nn.Module, cuts: list[MonoCut]) -> Batch:
    """The utterances of these cuts as one batch."""
    recogniser = as_recogniser(model)
    front_end = FrontEnd(recogniser.front_end)
    utterances = [load_utterance(cut) for cut in cuts]
    with torch.no_grad():
        features = [front_end(utterance.waveform) for utterance in utterances]
    return collate(features, [recogniser.alphabet.encode(each.transcript, each.id) for each in utterances])


def ctc_shapes(model: nn.Module, batch: Batch) -> list[tuple[str, str, str]]:
    """Name, shape or values, and meaning of every tensor on the way of one batch to the loss."""
    with torch.no_grad():
        logits, output_lengths = model.eval()(batch.features, batch.num_frames)
        loss = torch.nn.functional.ctc_loss(
            logits.log_softmax(-1), batch.targets, output_lengths, batch.target_lengths, reduction="none"
        )
    return [
        ("features", str(tuple(batch.features.shape)), "(T, N, F), zeros behind each utterance"),
        ("num_frames", str(batch.num_frames.tolist()), "input frames of each utterance; CTC never sees these"),
        ("logits", str(tuple(logits.shape)), "(T', N, V), what the model returns"),
        ("output_lengths", str(output_lengths.tolist()), "frames of each utterance that CTC is given"),
        ("targets", str(tuple(batch.targets.shape)), "(N, L) labels, 2-D, padded with blanks"),
        ("target_lengths", str(batch.target_lengths.tolist()), "labels of each utterance"),
        ("loss", str([round(float(value), 2) for value in loss]), "CTC negative log-likelihood of each utterance"),
    ]
