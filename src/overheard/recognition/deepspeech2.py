"""DeepSpeech 2 (Amodei et al. 2016): convolutions over frequency and time, recurrences in both directions, symbols."""

from dataclasses import dataclass
from itertools import count

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from overheard.errors import InputError
from overheard.recognition.configuration import (
    MOST_LAYERS,
    WIDEST_LAYER,
    check_choice,
    check_front_end,
    check_positive,
    check_whole,
)
from overheard.recognition.normalisation import NORMS
from overheard.recognition.recogniser import check_inputs, seeded, without_padding
from overheard.recognition.recurrence import CellName, Recurrence
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import SPECTROGRAM_257, FrontEndConfig

# (frequency, time) of the two convolutions, as in the paper's 2-D variant for English.
KERNELS = ((41, 11), (21, 11))
STRIDES = ((2, 2), (2, 1))

Padding = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class DeepSpeech2Config:
    """Sizes of DeepSpeech 2.

    Attributes:
        front_end: what computes the features.
        channels: of each convolution.
        padding: zeros on each side of (frequency, time) for each convolution; public implementations with 161 bins
            use ((20, 5), (10, 5)).
        norm: "batch", or "group", which keeps utterances apart.
        cell: of the recurrences.
        num_layers: recurrences.
        hidden_size: units of a recurrence in each direction.
        clip: where the rectifier saturates.
        characters: the alphabet without its blank.
    """

    front_end: FrontEndConfig = SPECTROGRAM_257
    channels: int = 32
    padding: Padding = ((0, 10), (0, 0))
    norm: str = "batch"
    cell: CellName = "gru"
    num_layers: int = 5
    hidden_size: int = 800
    clip: float = 20.0
    characters: str = Alphabet().characters

    def __post_init__(self) -> None:
        check_front_end(self.front_end)
        check_whole("channels", self.channels, 1, 4096)
        for pair, kernel in zip(self.padding, KERNELS, strict=True):
            for value, size in zip(pair, kernel, strict=True):
                check_whole("padding", value, 0, size - 1)
        check_choice("norm", self.norm, tuple(NORMS))
        check_whole("num_layers", self.num_layers, 1, MOST_LAYERS)
        check_whole("hidden_size", self.hidden_size, 1, WIDEST_LAYER)
        check_positive("clip", self.clip)
        Alphabet(self.characters)
        if self.num_frequencies < 1:
            found = f"{self.front_end.num_features} features per frame"
            raise InputError("front_end", found, "raise padding over frequency, or choose a front end with more")

    @property
    def num_frequencies(self) -> int:
        """Frequencies that leave the second convolution."""
        return self._convolved(self.front_end.num_features, 0)

    def output_length(self, num_frames: int) -> int:
        """Output frames of `num_frames` input frames: floor((T - 9) / 2) with the default padding; 0 if too few."""
        return self._convolved(num_frames, 1)

    def _convolved(self, size: int, axis: int) -> int:
        for kernel, stride, padding in zip(KERNELS, STRIDES, self.padding, strict=True):
            size = (size + 2 * padding[axis] - kernel[axis]) // stride[axis] + 1
            if size < 1:
                return 0
        return size

    @property
    def minimum_frames(self) -> int:
        """Input frames of one output frame: 11 with the default padding."""
        return next(frames for frames in count(1) if self.output_length(frames))


class DeepSpeech2(nn.Module):
    """(T, N, F) -> (T_out, N, V), with T_out = floor((T - 9) / 2) for the default padding.

    Layers by name: `convolutions.0`, `.1`; `convolution_norms.0`, `.1`; `recurrences.0` to the last;
    `recurrence_norms.0` before the second recurrence and so on; `output_norm`; `output`. The first recurrence sees
    channels of frequencies: input c * num_frequencies + k is frequency k of channel c.

    Args:
        config: its sizes.
        seed: of the initial weights.
    """

    def __init__(self, config: DeepSpeech2Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.front_end = config.front_end
        self.alphabet = Alphabet(config.characters)
        norm, size = NORMS[config.norm], config.hidden_size
        with seeded(seed):
            self.convolutions = nn.ModuleList(
                nn.Conv2d(channels, config.channels, kernel, stride, padding)
                for channels, kernel, stride, padding in zip(
                    (1, config.channels), KERNELS, STRIDES, config.padding, strict=True
                )
            )
            self.convolution_norms = nn.ModuleList(norm(config.channels) for _ in KERNELS)
            widths = [config.channels * config.num_frequencies, *[size] * (config.num_layers - 1)]
            self.recurrences = nn.ModuleList(
                Recurrence(config.cell, width, size, bidirectional=True, bias=False) for width in widths
            )
            self.recurrence_norms = nn.ModuleList(norm(size) for _ in widths[1:])
            self.output_norm = norm(size)
            self.output = nn.Linear(size, self.alphabet.num_symbols, bias=False)

    def output_lengths(self, num_frames: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Output frames of each utterance; 0 for one that is shorter than the convolutions need."""
        return num_frames.new_tensor([self.config.output_length(length) for length in num_frames.tolist()])

    def forward(
        self, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T_out N V"], Int[Tensor, " N"]]:
        """Logits, zero behind each utterance's own frames, and their lengths.

        Raises:
            InputError: a wrong shape; a length that the tensor does not hold or the convolutions cannot take; one
                output frame in all, from which training cannot estimate a variance.
        """
        check_inputs(features, num_frames, self.front_end.num_features, self.config.minimum_frames)
        lengths = self.output_lengths(num_frames).to(features.device)
        if self.training and self.config.norm == "batch" and int(lengths.sum()) < 2:
            found = f"one output frame from {num_frames.tolist()} input frames"
            raise InputError("num_frames", found, "batch norm in training needs two; give more frames, or use group")
        hidden = self.convolved(features, num_frames.to(features.device))  # (T_out, N, channels * frequencies)
        for index, recurrence in enumerate(self.recurrences):
            if index > 0:
                hidden = _normalised(self.recurrence_norms[index - 1], hidden, lengths)
            hidden = recurrence(hidden, lengths).sum(dim=2)  # (T_out, N, H)
        return self.output(_normalised(self.output_norm, hidden, lengths)), lengths

    def convolved(self, features: Float[Tensor, "T N F"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "T_out N CK"]:
        """What the first recurrence is given, zero behind each utterance's own frames."""
        values = without_padding(features, lengths).permute(1, 2, 0).unsqueeze(1)  # (N, 1, frequencies, T)
        geometry = zip(KERNELS, STRIDES, self.config.padding, strict=True)
        layers = zip(self.convolutions, self.convolution_norms, geometry, strict=True)
        for convolution, norm, (kernel, stride, padding) in layers:
            lengths = (lengths + 2 * padding[1] - kernel[1]) // stride[1] + 1
            # The norm returns zeros behind each utterance, so the next convolution sees there what it pads with.
            values = self.activated(norm(convolution(values), lengths))
        return values.permute(3, 0, 1, 2).flatten(2)

    def activated(self, values: Tensor) -> Tensor:
        """Behind each convolution; a subclass may have another activation, with nothing for zero."""
        return functional.hardtanh(values, 0.0, self.config.clip)


def _normalised(norm: nn.Module, hidden: Float[Tensor, "T N H"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "T N H"]:
    return norm(hidden.permute(1, 2, 0).unsqueeze(2), lengths).squeeze(2).permute(2, 0, 1)
