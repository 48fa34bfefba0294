"""The layer behind the one that sees windows, as far as what it was shown is a function of the features alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.noise.layer_fits import NoisyLayer
from overheard.attacks.observation import Observation
from overheard.attacks.output_layer import in_mode
from overheard.attacks.pointwise import Activation, find_pointwise_layer
from overheard.attacks.windows import PROBE_FRAMES, WindowedLayer
from overheard.federation.update import Mode

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


def find_layer_behind(
    observation: Observation, windowed: WindowedLayer, known_drift: bool = False
) -> LayerBehind | None:
    """None where dropout hides units, or local steps changed what the layer was shown, or there is no such layer.

    Args:
        observation: all that the attacker sees.
        windowed: the layer ahead of it.
        known_drift: what local steps changed is known and subtracted.
    """
    protocol = observation.update.protocol
    unknown = protocol.local_steps > 1 and not known_drift
    layer = None if unknown else find_pointwise_layer(observation.model, windowed)
    if layer is None or (protocol.mode == "train" and not _shown_alike(observation.model, layer.name, windowed)):
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


def _shown_alike(model: nn.Module, name: str, windowed: WindowedLayer) -> bool:
    """Whether training mode shows a layer what evaluation mode does, found by looking: without dropout ahead of it."""
    seen: list[Tensor] = []
    parameter = next(model.parameters())
    frames = 2 * windowed.window + PROBE_FRAMES[0]
    probe = torch.rand(frames, 1, windowed.num_features, generator=torch.Generator().manual_seed(0))
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    modes: tuple[Mode, ...] = ("eval", "train")
    try:
        for mode in modes:
            with in_mode(model, mode), torch.no_grad():
                model(probe.to(parameter), torch.tensor([frames], device=parameter.device))
    finally:
        hook.remove()
    return len(seen) == 2 and torch.equal(*seen)
