"""A recogniser so small that matching it takes a second: two layers, frame by frame."""

import torch
from torch import Tensor, nn

from builders import observe, speech_like
from overheard.attacks.observation import Observation, Prior
from overheard.federation.client import ClientSettings
from overheard.speech.alphabet import Alphabet
from overheard.speech.batching import Batch, collate
from overheard.speech.features import FrontEndConfig, standardise

NUM_FEATURES = 12


class Listener(nn.Module):
    """A user's own model; its first layer gives away the span of up to 12 frames."""

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__()
        self.front_end = FrontEndConfig(kind="log_mel", num_mel=NUM_FEATURES, normalise="utterance")
        self.alphabet = Alphabet()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.output = nn.Linear(NUM_FEATURES, hidden_size), nn.Linear(hidden_size, 29)

    def output_lengths(self, num_frames: Tensor) -> Tensor:
        return num_frames

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(torch.tanh(self.first(features))), num_frames


def short_batch(*lengths: int) -> Batch:
    """Normalised speech-like features with three letters each."""
    features = [standardise(speech_like(length, NUM_FEATURES, index), (0, 1)) for index, length in enumerate(lengths)]
    return collate(features, [[3 * index + place + 1 for place in range(3)] for index in range(len(lengths))])


def listened(
    *lengths: int, settings: ClientSettings = ClientSettings(), known: bool = True
) -> tuple[Observation, Batch]:
    """What the server sees of a batch, with transcripts and lengths declared, and the batch."""
    model, batch = Listener().eval(), short_batch(*lengths)
    texts = tuple(model.alphabet.decode(batch.utterance_labels(index)) for index in range(batch.size))
    prior = Prior(texts, tuple(lengths)) if known else Prior()
    return observe(model, batch, settings, prior), batch
