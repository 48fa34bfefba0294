"""DeepSpeech 2 the plain way: torch's own layers over padded batches, for comparison in speed and memory.

The sizes are those of `DeepSpeech2`; norms and recurrences run over the padding as if it were speech.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.recognition.deepspeech2 import KERNELS, STRIDES, DeepSpeech2Config
from overheard.speech.alphabet import Alphabet


class PlainDeepSpeech2(nn.Module):
    """(T, N, F) -> (T_out, N, V) and output lengths."""

    def __init__(self, config: DeepSpeech2Config) -> None:
        super().__init__()
        self.config = config
        self.front_end = config.front_end
        self.alphabet = Alphabet(config.characters)
        layers: list[nn.Module] = []
        channels = 1
        for kernel, stride, padding in zip(KERNELS, STRIDES, config.padding, strict=True):
            convolution = nn.Conv2d(channels, config.channels, kernel, stride, padding)
            layers += [convolution, nn.BatchNorm2d(config.channels), nn.Hardtanh(0.0, config.clip)]
            channels = config.channels
        self.convolutions = nn.Sequential(*layers)
        size = config.hidden_size
        widths = [config.channels * config.num_frequencies, *[size] * (config.num_layers - 1)]
        recurrence = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN}[config.cell]
        self.recurrences = nn.ModuleList(recurrence(width, size, bias=False, bidirectional=True) for width in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for _ in widths)
        self.output = nn.Linear(size, self.alphabet.num_symbols, bias=False)

    def output_lengths(self, num_frames: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """As for `DeepSpeech2`."""
        return torch.tensor([self.config.output_length(length) for length in num_frames.tolist()])

    def forward(
        self, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T_out N V"], Int[Tensor, " N"]]:
        """Logits and output lengths."""
        values = self.convolutions(features.permute(1, 2, 0).unsqueeze(1))
        hidden = values.permute(3, 0, 1, 2).flatten(2)
        for recurrence, norm in zip(self.recurrences, self.norms, strict=True):
            hidden = recurrence(hidden)[0].unflatten(2, (2, -1)).sum(2)
            hidden = norm(hidden.permute(1, 2, 0)).permute(2, 0, 1)
        return self.output(hidden), self.output_lengths(num_frames)
