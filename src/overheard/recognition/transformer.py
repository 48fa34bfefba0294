"""A Transformer with CTC: a strided convolution over time, self-attention, symbols.

The encoder is that of Vaswani et al. (2017, section 3.1) with the layer norms ahead of each block and their sinusoidal
positions; the strided convolution ahead of it, as in the usual speech Transformers, shortens the utterance threefold.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from overheard.errors import InputError
from overheard.recognition.configuration import (
    MOST_LAYERS,
    WIDEST_LAYER,
    check_front_end,
    check_positive,
    check_whole,
)
from overheard.recognition.recogniser import check_inputs, frame_mask, seeded, without_padding
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import LOG_MEL_80, FrontEndConfig


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a Transformer; the defaults are the full one.

    Attributes:
        front_end: what computes the features.
        kernel: frames that the convolution sees at once, odd.
        stride: frames from one window to the next.
        channels: of the convolution.
        hidden_size: width of the encoder, even: sines and cosines come in pairs.
        num_layers: of the encoder.
        num_heads: of its attention, a divisor of `hidden_size`.
        feedforward_size: units between the two linear maps of each layer.
        dropout: share of values left out behind positions and blocks, in training alone.
        characters: the alphabet without its blank.
    """

    front_end: FrontEndConfig = LOG_MEL_80
    kernel: int = 7
    stride: int = 3
    channels: int = 1536
    hidden_size: int = 512
    num_layers: int = 6
    num_heads: int = 8
    feedforward_size: int = 2048
    dropout: float = 0.0
    characters: str = Alphabet().characters

    def __post_init__(self) -> None:
        check_front_end(self.front_end)
        check_whole("kernel", self.kernel, 1, 1001)
        if self.kernel % 2 == 0:
            raise InputError("kernel", self.kernel, "give an odd number of frames, so that a window has a middle")
        check_whole("stride", self.stride, 1, self.kernel)
        for name in ("channels", "hidden_size", "feedforward_size"):
            check_whole(name, getattr(self, name), 1, WIDEST_LAYER)
        check_whole("num_layers", self.num_layers, 1, MOST_LAYERS)
        check_whole("num_heads", self.num_heads, 1, self.hidden_size)
        if self.hidden_size % self.num_heads or self.hidden_size % 2:
            found = f"{self.num_heads} for a width of {self.hidden_size}"
            raise InputError("num_heads", found, "give a divisor of an even hidden_size")
        if self.dropout != 0:
            check_positive("dropout", self.dropout)
        if self.dropout >= 1:
            raise InputError("dropout", self.dropout, "give a share of values from 0 to below 1")
        Alphabet(self.characters)

    def output_length(self, num_frames: int) -> int:
        """Windows that are centred on a frame: ceil(T / stride)."""
        return -(-num_frames // self.stride)


class Transformer(nn.Module):
    """(T, N, F) -> (T_out, N, V), with T_out = ceil(T / stride).

    Layers by name: `front` (an `nn.Conv1d` over windows of frames, half a kernel of zeros at both ends), `projection`,
    `encoder`, `output`.

    Args:
        config: its sizes.
        seed: of the initial weights.
    """

    def __init__(self, config: TransformerConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.front_end = config.front_end
        self.alphabet = Alphabet(config.characters)
        size = config.hidden_size
        with seeded(seed):
            self.front = nn.Conv1d(
                config.front_end.num_features, config.channels, config.kernel, config.stride, config.kernel // 2
            )
            self.projection = nn.Linear(config.channels, size)
            # Built one by one: nn.TransformerEncoder copies the layer it is given, weights and all.
            layers = [
                nn.TransformerEncoderLayer(
                    size, config.num_heads, config.feedforward_size, config.dropout, "gelu", norm_first=True
                )
                for _ in range(config.num_layers)
            ]
            self.encoder = nn.TransformerEncoder(layers[0], 1, nn.LayerNorm(size), enable_nested_tensor=False)
            self.encoder.layers = nn.ModuleList(layers)
            self.encoder.num_layers = config.num_layers
            self.output = nn.Linear(size, self.alphabet.num_symbols)
        for layer in layers:
            # Attention's own weights are left whole, so that all dropout passes through `nn.functional.dropout`.
            layer.self_attn.dropout = 0.0

    def output_lengths(self, num_frames: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Output frames of each utterance."""
        return num_frames.new_tensor([self.config.output_length(length) for length in num_frames.tolist()])

    def forward(
        self, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T_out N V"], Int[Tensor, " N"]]:
        """Logits, zero behind each utterance's own frames, and their lengths.

        Raises:
            InputError: a wrong shape, or a length that the tensor does not hold.
        """
        check_inputs(features, num_frames, self.front_end.num_features, 1)
        lengths = self.output_lengths(num_frames).to(features.device)
        values = without_padding(features, num_frames.to(features.device)).permute(1, 2, 0)  # (N, F, T)
        hidden = functional.gelu(self.front(values)).permute(2, 0, 1)  # (T_out, N, channels)
        hidden = self.projection(hidden)
        hidden = hidden + positions(hidden.shape[0], self.config.hidden_size).to(hidden)[:, None]
        hidden = functional.dropout(hidden, self.config.dropout, self.training)
        padding = ~frame_mask(lengths, hidden.shape[0]).T  # (N, T_out)
        # The other kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            hidden = self.encoder(hidden, src_key_padding_mask=padding)
        return without_padding(self.output(hidden), lengths), lengths


def positions(num_frames: int, size: int) -> Float[Tensor, "T H"]:
    """Sines and cosines of wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10000.0) / size))
    angles = torch.arange(num_frames, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
