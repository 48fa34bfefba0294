"""Waveforms -> words: front end, recogniser and decoder in one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.recognition.alignment import TimedWord, word_times
from overheard.recognition.beam import BeamDecoder
from overheard.recognition.decoding import Hypothesis, greedy
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import FrontEnd, FrontEndConfig


@dataclass(frozen=True)
class Transcript:
    """What was heard in one utterance.

    Attributes:
        hypotheses: the best first, at least one.
        words: the best one's words with their times; empty where they were not asked for.
    """

    hypotheses: tuple[Hypothesis, ...]
    words: tuple[TimedWord, ...] = ()

    @property
    def text(self) -> str:
        """The best hypothesis."""
        return self.hypotheses[0].text


def transcribe(
    model: nn.Module,
    waveforms: Sequence[Float[Tensor, " _"]],
    beam: BeamDecoder | None = None,
    *,
    times: bool = False,
) -> list[Transcript]:
    """Transcribe utterances together.

    Args:
        model: a recogniser; it is run in evaluation mode and left in the mode it was in.
        waveforms: samples at its front end's rate.
        beam: a beam search; None for greedy decoding.
        times: whether to align words.

    Raises:
        InputError: an utterance too short for the model; names its position.
    """
    front_end, alphabet = model.front_end, model.alphabet
    assert isinstance(front_end, FrontEndConfig)
    assert isinstance(alphabet, Alphabet)
    num_frames = torch.tensor([front_end.num_frames(len(waveform)) for waveform in waveforms])
    for index, length in enumerate(as_recogniser(model).output_lengths(num_frames).tolist()):
        if length < 1:
            found = f"{len(waveforms[index]) / front_end.sample_rate:.3f} s, too short for one output frame"
            raise InputError(f"utterance {index}", found, "leave it out")
    device = next(model.parameters()).device
    analyse = FrontEnd(front_end)
    training = model.training
    model.eval()
    with torch.no_grad():
        features = torch.nn.utils.rnn.pad_sequence([analyse(waveform) for waveform in waveforms])
        logits, lengths = model(features.to(device), num_frames.to(device))
    model.train(training)
    log_probs = logits.float().log_softmax(dim=-1).cpu()
    transcripts = []
    for index, (length, first) in enumerate(zip(lengths.tolist(), greedy(logits, lengths, alphabet), strict=True)):
        own = log_probs[:length, index]
        hypotheses = [first] if beam is None else beam(own)
        seconds = len(waveforms[index]) / front_end.sample_rate
        words = word_times(own, hypotheses[0].text, alphabet, seconds) if times and hypotheses else ()
        transcripts.append(Transcript(tuple(hypotheses or [Hypothesis("", -torch.inf)]), words))
    return transcripts
