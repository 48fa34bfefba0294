"""The first layer of a model that gives away the span of its inputs, and those inputs as a function of the features.

The rows that a recurrent or linear layer is shown lie in the row space of its input weights' update (see `rank`). For
DeepSpeech 2 the first such layer is the first recurrence, behind the convolutions: too far from the features for a
closed form, near enough to pull the features towards it, and its rank is the number of frames that it was shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from overheard.attacks.gradient_matching.second_order import prepared
from overheard.attacks.observation import Observation
from overheard.attacks.rank import layer_matrix, precision_of, rank_of_spectrum
from overheard.attacks.spans.span_solver import row_space
from overheard.federation.update import Protocol
from overheard.recognition.recogniser import as_recogniser
from overheard.recognition.tiled_convolution import TiledConvolutions

CLEAR_MARGIN = 10.0
"""Fall of the spectrum at the rank from which on the rank is believed; see `rank`."""

LONGEST_SEARCHED = 1 << 14
"""Frames; more than five minutes at 20 ms."""


@dataclass(frozen=True)
class ExposedLayer:
    """A layer whose inputs lie in a known span.

    Attributes:
        name: of the module.
        basis: orthonormal rows of that span, in the model's type; the last column belongs to the bias, if there is one.
        has_bias: whether it does.
        margin: of the rank decision.
    """

    name: str
    basis: Float[Tensor, "R C"]
    has_bias: bool
    margin: float

    @property
    def rank(self) -> int:
        return self.basis.shape[0]

    def residual(self, inputs: Float[Tensor, "P C"]) -> Float[Tensor, ""]:
        """Share of the inputs' energy outside the span; 0 at the true features."""
        if self.has_bias:
            inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        outside = inputs - (inputs @ self.basis.T) @ self.basis
        return outside.square().sum() / inputs.square().sum()


def find_exposed_layer(observation: Observation) -> ExposedLayer | None:
    """The model's first recurrent or linear layer, if its update's rank is clearly below both dimensions."""
    for name, module in observation.model.named_modules():
        if not isinstance(module, nn.RNNBase | nn.Linear):
            continue
        matrix = layer_matrix(observation.update, name, module)
        if matrix is None:
            continue
        vectors, values = row_space(matrix)
        found = rank_of_spectrum(values, precision_of(observation.update, name))
        if not 0 < found.rank < min(matrix.shape) or found.margin < CLEAR_MARGIN:
            return None
        inputs = module.in_features if isinstance(module, nn.Linear) else module.input_size
        parameter = next(module.parameters())
        return ExposedLayer(name, vectors[: found.rank].to(parameter), matrix.shape[1] > inputs, found.margin)
    return None


def layer_inputs(
    model: nn.Module, name: str, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"], protocol: Protocol
) -> Float[Tensor, "P C"]:
    """Every row that a layer is shown, padding left out, differentiable in the features; what follows is not run."""
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(_stop)
    try:
        with prepared(model, protocol, "frozen"), TiledConvolutions():
            model(features, num_frames)
    except _Reached as reached:
        return _valid_rows(model, reached.arguments, features, num_frames)
    finally:
        handle.remove()
    raise RuntimeError(f"the model does not run its layer {name}")


def lengths_of_rank(observation: Observation, layer: ExposedLayer) -> list[int]:
    """Numbers of input frames with which one utterance shows the layer as many rows as its rank says."""
    parameter = next(observation.model.parameters())
    num_features: int = as_recogniser(observation.model).front_end.num_features

    def rows(num_frames: int) -> int:
        features = parameter.new_zeros(num_frames, 1, num_features)
        lengths = torch.tensor([num_frames], device=parameter.device)
        if int(as_recogniser(observation.model).output_lengths(lengths)) < 1:
            return 0
        with torch.no_grad():
            return len(layer_inputs(observation.model, layer.name, features, lengths, observation.update.protocol))

    longest = 1
    while rows(longest) <= layer.rank and longest < LONGEST_SEARCHED:
        longest *= 2
    first, last = _first(rows, layer.rank, longest), _first(rows, layer.rank + 1, longest)
    return list(range(first, last))


def _first(rows: Callable[[int], int], wanted: int, longest: int) -> int:
    """Fewest frames that give at least so many rows, by bisection: more frames never give fewer."""
    low, high = 1, longest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rows(middle) >= wanted else (middle + 1, high)
    return low


class _Reached(Exception):
    """No error: it ends a forward pass that has come far enough."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.arguments = arguments


def _stop(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    raise _Reached(arguments)


def _valid_rows(model: nn.Module, arguments: tuple[Any, ...], features: Tensor, num_frames: Tensor) -> Tensor:
    inputs, *others = arguments
    if isinstance(inputs, PackedSequence):
        return inputs.data
    lengths = next((each for each in others if isinstance(each, Tensor) and each.shape == num_frames.shape), None)
    if lengths is None:
        same = inputs.shape[0] == features.shape[0]
        lengths = num_frames if same else as_recogniser(model).output_lengths(num_frames)
    return torch.cat([inputs[:length, index] for index, length in enumerate(lengths.tolist())])
