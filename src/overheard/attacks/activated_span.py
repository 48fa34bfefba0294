"""Equations on speech from a layer behind an activation: the span of a_p = [phi(W u_p + b), 1].

The layer behind shares [dW | db] whose row space is the span of the a_p. With Pi the projector on its complement,
Pi a_p = 0 at every position p; the Jacobian of position p is Pi D_p W with D_p the slopes of phi.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.input_span import InputSpan, span_of_rows
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import Activation, PointwiseLayer, at_units
from overheard.attacks.rank import NumericalRank, layer_matrix
from overheard.attacks.sent_entries import SentEntries, all_but_zeros, complete_block, sent_entries
from overheard.attacks.windows import WindowedLayer


@dataclass(frozen=True, kw_only=True)
class ActivatedSpan(InputSpan):
    """What is known of the inputs of the layer behind, and of what they are made of.

    Attributes:
        weight: W of the windowed layer, columns sorted by frame, then feature.
        bias: b; zeros where the layer has none.
        activation: phi and its slope.
        affine: whether the layer behind has a bias, so that the constant is one of its inputs, the last.
    """

    weight: Float[Tensor, "H C"]
    bias: Float[Tensor, " H"]
    activation: Activation
    affine: bool

    def inputs(self, values: Float[Tensor, "*M H"]) -> tuple[Float[Tensor, "*M A"], Float[Tensor, "*M H"]]:
        """(a, slopes) of the windowed layer's outputs."""
        activated, slopes = self.activation(values)
        return (nn.functional.pad(activated, (0, 1), value=1.0) if self.affine else activated), slopes


def activated_span(
    observation: Observation, layer: WindowedLayer, behind: PointwiseLayer, windows: int | None = None
) -> ActivatedSpan | None:
    """The span that the layer behind gives away; None where the update does not hold its weight.

    The rank is the smaller dimension where the update is saturated.

    Args:
        observation: all that the attacker sees.
        layer: the one that sees windows.
        behind: the one that is shown its activated outputs.
        windows: their number, from a first layer whose errors grow with rows, as they then do here. Otherwise the rank
            tells it, and rows are tried over their sizes where it is not clear.
    """
    model, update = observation.model, observation.update
    matrix = layer_matrix(update, behind.name, model.get_submodule(behind.name))
    windowed = model.get_submodule(layer.name)
    weight = windowed.get_parameter("weight").detach().double().flatten(1)[:, layer.order].cpu()
    if matrix is None or matrix.shape[1] - len(weight) not in (0, 1):
        return None
    bias = windowed.bias.detach().double().cpu() if isinstance(windowed.bias, Tensor) else weight.new_zeros(len(weight))
    entries = None if sent_entries(observation, layer) is None else all_but_zeros(observation, behind.name)
    if entries is not None:
        return _completed(entries, weight, bias, behind.activation)
    span = span_of_rows(matrix.cpu(), windows)
    return ActivatedSpan(
        **vars(span),
        weight=weight,
        bias=bias,
        activation=behind.activation,
        affine=matrix.shape[1] > len(weight),
    )


def _completed(
    entries: SentEntries, weight: Float[Tensor, "H C"], bias: Float[Tensor, " H"], activation: Activation
) -> ActivatedSpan | None:
    """The span at those inputs of which most was sent; None where too little was."""
    completed = complete_block(entries, torch.Generator().manual_seed(0), certain=math.inf)
    if completed is None:
        return None
    last = completed.columns == len(weight)
    order = torch.cat([torch.nonzero(~last).flatten(), torch.nonzero(last).flatten()])
    whole = completed.singular_values[:, None] * completed.basis * completed.scales
    _, values, basis = torch.linalg.svd(whole[:, order], full_matrices=False)
    spread = completed.residual * float(completed.scales.square().mean().sqrt()) / values
    units = completed.columns[order][: len(order) - int(last.sum())]
    found = NumericalRank(completed.rank, completed.margin, torch.cat([values, values.new_zeros(1)]))
    return ActivatedSpan(
        basis=basis,
        spread=spread,
        found=found,
        seen=len(order),
        weight=weight[units],
        bias=bias[units],
        activation=at_units(activation, units, len(weight)),
        affine=bool(last.any()),
    )
