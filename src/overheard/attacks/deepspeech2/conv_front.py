"""DeepSpeech 2's two convolutions in evaluation mode, with their norms folded in, and the adjoints of both."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from overheard.attacks.deepspeech2.line_up import LineUp
from overheard.recognition.deepspeech2 import KERNELS, STRIDES, DeepSpeech2
from overheard.recognition.normalisation import MaskedBatchNorm


@dataclass(frozen=True)
class Front:
    """The first convolution with its norm folded in, and the geometry of both.

    Attributes:
        weight: (C, 1, k_f, k_t).
        bias: (C,).
        clip: where rectifiers saturate.
        padding: of each convolution, (frequency, time).
        utterances: where they are on the axis of time, if there are several; nothing is between them.
    """

    weight: Float[Tensor, "C 1 KF KT"]
    bias: Float[Tensor, " C"]
    clip: float
    padding: tuple[tuple[int, int], tuple[int, int]]
    utterances: LineUp | None = None

    def convolve(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "C K U"]:
        """W_1 * x, without the bias."""
        # A transposed view of one channel passes for channels-last and takes a path that is many times slower.
        image = features.T.contiguous()[None, None]
        if self.utterances is not None:
            image = image * self.utterances.features
        values = functional.conv2d(image, self.weight, None, STRIDES[0], self.padding[0])[0]
        return values if self.utterances is None else values * self.utterances.windows

    def convolve_transposed(
        self, values: Float[Tensor, "C K U"], num_frames: int, num_features: int
    ) -> Float[Tensor, "T F"]:
        """The adjoint of `convolve`."""
        if self.utterances is not None:
            values = values * self.utterances.windows
        if values.dtype == torch.float64:
            beyond = _unreached((num_features, num_frames), values.shape[1:], 0, self.padding[0])
            spread = functional.conv_transpose2d(
                values[None], self.weight, None, STRIDES[0], self.padding[0], output_padding=beyond
            )[0, 0].T
        else:
            spread = self._spread(values, num_frames, num_features)
        return spread if self.utterances is None else spread * self.utterances.features[:, None]

    def _spread(self, values: Float[Tensor, "C K U"], num_frames: int, num_features: int) -> Float[Tensor, "T F"]:
        """One convolution for each place within a stride: in float32 that is several times faster."""
        (high, long), (up, later), (low, early) = KERNELS[0], STRIDES[0], self.padding[0]
        wide, deep = -(-high // up), -(-long // later)
        padded = functional.pad(self.weight, (0, deep * later - long, 0, wide * up - high))
        places = padded.view(-1, wide, up, deep, later).permute(2, 4, 0, 1, 3).flip(3, 4).flatten(0, 1)
        # As many windows more as all features need, in front and behind.
        behind = (
            max(0, -(-(size + pad) // step) - count)
            for size, pad, step, count in zip(
                (num_features, num_frames), (low, early), (up, later), values.shape[1:], strict=True
            )
        )
        above, after = behind
        framed = functional.pad(values, (deep - 1, after, wide - 1, above))
        spread = functional.conv2d(framed[None], places)[0].view(up, later, -1, framed.shape[2] - deep + 1)
        spread = spread.permute(2, 0, 3, 1).flatten(0, 1).flatten(1, 2)
        return spread[low : low + num_features, early : early + num_frames].T

    def energy(self, counted: Float[Tensor, "C K U"], num_frames: int, num_features: int) -> Float[Tensor, "T F"]:
        """Sum of the squared weights through which each feature reaches units, times how much each of them counts."""
        squared = replace(self, weight=self.weight.square())
        energy = squared.convolve_transposed(counted, num_frames, num_features)
        return energy.clamp(min=1e-6 * float(energy.max()))

    def pre_activations(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "C K U"]:
        """What the first rectifier is given; zero between utterances."""
        bias = self.bias[:, None, None]
        return self.convolve(features) + (bias if self.utterances is None else bias * self.utterances.windows)


@dataclass(frozen=True)
class Second:
    """The second convolution with its norm folded in.

    Attributes:
        weight: (O, I, k_f, k_t).
        bias: (O,).
        padding: (frequency, time).
    """

    weight: Float[Tensor, "O I KF KT"]
    bias: Float[Tensor, " O"]
    padding: tuple[int, int]

    def convolve(self, activations: Float[Tensor, "I K U"]) -> Float[Tensor, "O J P"]:
        """W_2 * z, without the bias."""
        return functional.conv2d(activations[None], self.weight, None, STRIDES[1], self.padding)[0]

    def mean(self, values: Float[Tensor, "K U"]) -> Float[Tensor, "J P"]:
        """Over each window, the padding counted as zero."""
        window = values.new_full((1, 1, *KERNELS[1]), 1 / math.prod(KERNELS[1]))
        return functional.conv2d(values[None, None], window, None, STRIDES[1], self.padding)[0, 0]

    def convolve_transposed(self, values: Float[Tensor, "O J P"], shape: tuple[int, int]) -> Float[Tensor, "I K U"]:
        """The adjoint of `convolve`, for activations of a (K, U) shape."""
        beyond = _unreached(shape, values.shape[1:], 1, self.padding)
        spread = functional.conv_transpose2d(
            values[None], self.weight, None, STRIDES[1], self.padding, output_padding=beyond
        )
        return spread[0]


def _unreached(
    shape: tuple[int, int], count: tuple[int, ...] | torch.Size, layer: int, padding: tuple[int, int]
) -> list[int]:
    """Rows and columns behind the last window, which a transposed convolution has to be told of."""
    return [
        size + 2 * pad - kernel - (number - 1) * stride
        for size, pad, kernel, number, stride in zip(shape, padding, KERNELS[layer], count, STRIDES[layer], strict=True)
    ]


def folded(model: DeepSpeech2, layer: int) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Scale and shift that a convolution's batch norm applies in evaluation mode, float64."""
    norm = model.convolution_norms[layer]
    assert isinstance(norm, MaskedBatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def make_front(model: DeepSpeech2, utterances: LineUp | None = None) -> Front:
    """The first layer of a model in evaluation mode."""
    scale, shift = folded(model, 0)
    weight, bias = (model.get_parameter(f"convolutions.0.{name}").detach().double() for name in ("weight", "bias"))
    weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return Front(weight, bias, model.config.clip, model.config.padding, utterances)


def make_second(model: DeepSpeech2) -> Second:
    """The second layer of a model in evaluation mode."""
    scale, shift = folded(model, 1)
    weight, bias = (model.get_parameter(f"convolutions.1.{name}").detach().double() for name in ("weight", "bias"))
    return Second(weight * scale[:, None, None, None], bias * scale + shift, model.config.padding[1])
