"""The layer behind the one that sees windows, as far as what it was shown is a function of the features alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.layer_fits import NoisyLayer
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import Activation, find_pointwise_layer
from overheard.attacks.windows import WindowedLayer

MIXES = 64
"""Random sums of its units' rows that tell whether inputs span them."""


@dataclass(frozen=True)
class LayerBehind:
    """A layer that is shown phi(W u_p + b).

    Attributes:
        name: of the module.
        activation: phi and its slope.
        weight: W, columns sorted by frame, then feature.
        bias: b; zeros where there is none.
    """

    name: str
    activation: Activation
    weight: Float[Tensor, "H K"]
    bias: Float[Tensor, " H"]


def find_layer_behind(observation: Observation, windowed: WindowedLayer) -> LayerBehind | None:
    """None where dropout hides units, or local steps changed what the layer was shown, or there is no such layer."""
    protocol = observation.update.protocol
    if protocol.mode != "eval" or protocol.local_steps > 1:
        return None
    layer = find_pointwise_layer(observation.model, windowed)
    if layer is None:
        return None
    module = observation.model.get_submodule(windowed.name)
    weight = module.get_parameter("weight").detach().double().flatten(1)[:, windowed.order].cpu()
    bias = module.bias.detach().double().cpu() if isinstance(module.bias, Tensor) else weight.new_zeros(len(weight))
    return LayerBehind(layer.name, layer.activation, weight, bias)


def mixed_rows(observation: Observation, behind: LayerBehind, generator: torch.Generator) -> NoisyLayer | None:
    """A few random sums of the rows of its weight's update, bias left out; None where the update does not hold it."""
    name = f"{behind.name}.weight"
    if name not in observation.update.tensors:
        return None
    matrix = observation.update.gradient_without_decay(name, observation.model.get_parameter(name)).flatten(1).cpu()
    if matrix.shape[1] != len(behind.weight):
        return None
    draw = torch.randn(MIXES, len(matrix), generator=generator, dtype=matrix.dtype)
    scales = torch.ones(len(behind.weight), dtype=matrix.dtype)
    return NoisyLayer(draw @ matrix, MIXES, False, scales, behind.weight, behind.bias, behind.activation)
