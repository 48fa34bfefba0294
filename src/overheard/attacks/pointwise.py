"""The layer behind the one that sees windows, where it is shown those outputs one by one through an activation.

Found by running the model's own code: outputs of the windowed layer are put in its place by a hook, and the inputs of
the next affine or recurrent layer are looked at. Where shuffling the numbers put in shuffles those that arrive in the
same way, everything between is one function of one number, whatever it is written as.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.attacks.windows import WindowedLayer

SCALES = (0.1, 1.0, 10.0, 100.0)
"""Sizes of the numbers that an activation is tried on."""

FAR = 1e6
"""A number beyond which an activation is taken to have no further kink."""

Activation = Callable[[Float[Tensor, "*M H"]], tuple[Float[Tensor, "*M H"], Float[Tensor, "*M H"]]]


@dataclass(frozen=True)
class PointwiseLayer:
    """A layer that is shown phi(W u_p + b), phi taken unit by unit, of the windowed layer's outputs.

    Attributes:
        name: the module's name.
        activation: values (..., H) -> (phi, its slope), each (..., H), in the type of the values.
    """

    name: str
    activation: Activation


def find_pointwise_layer(model: nn.Module, layer: WindowedLayer) -> PointwiseLayer | None:
    """The first layer behind the windowed one, or None where it is shown anything but its activated outputs."""
    units = len(model.get_submodule(layer.name).get_parameter("weight"))
    generator = torch.Generator().manual_seed(0)
    positions = 4 * len(SCALES)
    scales = torch.tensor(SCALES).repeat_interleave(4)[:, None]
    probe = torch.randn(positions, units, generator=generator) * scales
    name, arrived = _arrivals(model, layer, probe)
    shuffle = torch.randperm(probe.numel(), generator=generator)
    again = _arrivals(model, layer, probe.flatten()[shuffle].view_as(probe))[1] if name else arrived
    if not name or not torch.equal(arrived.flatten()[shuffle].view_as(probe), again):
        return None
    ends = _arrivals(model, layer, torch.full_like(probe, FAR).index_fill_(0, torch.tensor([0]), -FAR))[1]
    low, high = float(ends[0, 0]), float(ends[1, 0])
    if torch.equal(arrived, probe.clamp(low, high)):
        return PointwiseLayer(name, _clamping(low if low > -FAR else -math.inf, high if high < FAR else math.inf))
    return PointwiseLayer(name, _running(model, layer, units))


def at_units(activation: Activation, units: Int[Tensor, " U"], count: int) -> Activation:
    """The activation of some of a layer's units, however it is computed.

    Args:
        activation: of all of them.
        units: indices.
        count: H, of all.
    """

    def some(values: Tensor) -> tuple[Tensor, Tensor]:
        whole = values.new_zeros(*values.shape[:-1], count)
        whole[..., units] = values
        arrived, slopes = activation(whole)
        return arrived[..., units], slopes[..., units]

    return some


def _clamping(low: float, high: float) -> Activation:
    def activation(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.clamp(low, high), ((values > low) & (values < high)).to(values)

    return activation


def _running(model: nn.Module, layer: WindowedLayer, units: int) -> Activation:
    """An activation that is no clamp, as the model computes it."""
    fewest = layer.num_positions(layer.window)

    def activation(values: Tensor) -> tuple[Tensor, Tensor]:
        rows = values.reshape(-1, units)
        padded = nn.functional.pad(rows, (0, 0, 0, max(0, fewest - len(rows)))).detach().requires_grad_()
        arrived = _arrivals(model, layer, padded)[1]
        slope = torch.autograd.grad(arrived.sum(), padded)[0]
        return arrived[: len(rows)].detach().view_as(values), slope[: len(rows)].view_as(values)

    return activation


class _Reached(Exception):
    """No error: it ends a forward pass that has shown enough."""

    def __init__(self, name: str, rows: Tensor) -> None:
        super().__init__(name)
        self.name, self.rows = name, rows


def _arrivals(model: nn.Module, layer: WindowedLayer, outputs: Float[Tensor, "P H"]) -> tuple[str, Tensor]:
    """Name and inputs (P, H) of the first layer behind the windowed one when that one gives `outputs`.

    The name is "" where the next layer is shown something of another size.
    """
    windowed = model.get_submodule(layer.name)
    replaced = []

    def replace(module: nn.Module, _: object, found: Tensor) -> Tensor:
        replaced.append(True)
        return (outputs.T[None] if isinstance(module, nn.Conv1d) else outputs.view(found.shape)).to(found.device)

    def look(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
            if replaced:
                rows = inputs[0]
                fits = isinstance(rows, Tensor) and rows.shape[-1:] == outputs.shape[-1:]
                if isinstance(rows, Tensor) and fits and rows.numel() == outputs.numel():
                    raise _Reached(name, rows.reshape(outputs.shape).cpu())
                raise _Reached("", outputs)

        return hook

    handles = [windowed.register_forward_hook(replace)]
    handles += [
        module.register_forward_pre_hook(look(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.RNNBase | nn.modules.conv._ConvNd) and module is not windowed
    ]
    parameter = next(model.parameters())
    length = layer.lengths(len(outputs))[0]
    try:
        with _evaluating(model):
            features = torch.zeros(length, 1, layer.num_features, dtype=parameter.dtype, device=parameter.device)
            model(features, torch.tensor([length], device=parameter.device))
    except _Reached as reached:
        return reached.name, reached.rows
    finally:
        for handle in handles:
            handle.remove()
    return "", outputs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
