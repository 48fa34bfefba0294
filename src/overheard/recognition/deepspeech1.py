"""DeepSpeech 1 (Hannun et al. 2014, section 2): windows of frames, three layers, a recurrence, a layer, symbols.

Its recurrence is here an LSTM in both directions, as in the public implementations that followed the paper.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from overheard.errors import InputError
from overheard.recognition.configuration import (
    WIDEST_LAYER,
    check_front_end,
    check_positive,
    check_whole,
)
from overheard.recognition.recogniser import check_inputs, seeded, without_padding
from overheard.recognition.recurrence import CellName, Recurrence
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import MFCC_26, FrontEndConfig

NUM_INPUT_LAYERS = 3


@dataclass(frozen=True)
class DeepSpeech1Config:
    """Sizes of DeepSpeech 1; the defaults are the published ones.

    Attributes:
        front_end: what computes the features.
        context: frames on either side of each frame; the paper tries 5, 7 and 9.
        hidden_size: units of every layer, and of the recurrence in each direction.
        cell: of the recurrence.
        clip: where the rectifier saturates.
        dropout: share of units left out after each input layer, in training alone.
        characters: the alphabet without its blank.
    """

    front_end: FrontEndConfig = MFCC_26
    context: int = 6
    hidden_size: int = 2048
    cell: CellName = "lstm"
    clip: float = 20.0
    dropout: float = 0.0
    characters: str = Alphabet().characters

    def __post_init__(self) -> None:
        check_front_end(self.front_end)
        check_whole("context", self.context, 0, 1000)
        check_whole("hidden_size", self.hidden_size, 1, WIDEST_LAYER)
        check_positive("clip", self.clip)
        if self.dropout != 0:
            check_positive("dropout", self.dropout)
        if self.dropout >= 1:
            raise InputError("dropout", self.dropout, "give a share of units from 0 to below 1")
        Alphabet(self.characters)

    @property
    def window(self) -> int:
        """Frames that the first layer sees at once."""
        return 2 * self.context + 1


class DeepSpeech1(nn.Module):
    """(T, N, F) -> (T, N, V), one output frame for each input frame.

    Layers by name: `input_layers.0` (an `nn.Linear` over the spliced windows) to `input_layers.2`, `recurrence`,
    `hidden_layer`, `output`.

    Args:
        config: its sizes.
        seed: of the initial weights.
    """

    def __init__(self, config: DeepSpeech1Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.front_end = config.front_end
        self.alphabet = Alphabet(config.characters)
        size = config.hidden_size
        with seeded(seed):
            widths = [config.window * config.front_end.num_features, *[size] * NUM_INPUT_LAYERS]
            self.input_layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
            self.recurrence = Recurrence(config.cell, size, size, bidirectional=True, bias=True)
            self.hidden_layer = nn.Linear(2 * size, size)
            self.output = nn.Linear(size, self.alphabet.num_symbols)

    def output_lengths(self, num_frames: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """As many output frames as input frames."""
        return num_frames

    def forward(
        self, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T N V"], Int[Tensor, " N"]]:
        """Logits, zero behind each utterance's own frames, and their lengths.

        Raises:
            InputError: a wrong shape, or a length that the tensor does not hold.
        """
        check_inputs(features, num_frames, self.front_end.num_features, 1)
        lengths = num_frames.to(features.device)
        hidden = splice(without_padding(features, lengths), self.config.context)
        for layer in self.input_layers:
            hidden = functional.dropout(self._rectified(layer(hidden)), self.config.dropout, self.training)
        hidden = self.recurrence(hidden, lengths).flatten(2)  # (T, N, directions * H)
        logits = self.output(self._rectified(self.hidden_layer(hidden)))
        return without_padding(logits, lengths), lengths

    def _rectified(self, values: Tensor) -> Tensor:
        return functional.hardtanh(values, 0.0, self.config.clip)  # eq. 1 of the paper: min(max(0, z), 20)


def splice(features: Float[Tensor, "T N F"], context: int) -> Float[Tensor, "T N windowed"]:
    """The window of frames t - context to t + context at every t: (T, N, window * F).

    Oldest frame first; zeros beyond both ends.

    The padding of an utterance in a batch must be zero already: windows near its end reach into it.
    """
    padded = functional.pad(features, (0, 0, 0, 0, context, context))
    windows = padded.unfold(0, 2 * context + 1, 1)  # (T, N, F, window)
    return torch.flatten(windows.transpose(2, 3), start_dim=2)
