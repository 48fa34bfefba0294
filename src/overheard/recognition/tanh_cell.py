"""The plain recurrent network (Elman, 1990).

    h = tanh(projections + W h_previous + b)

The record is (states,). `recurrent_sweep` has the notation.
"""

import torch
from torch import Tensor

from overheard.recognition.recurrent_sweep import Cell, Record, Reversed, ReversedAgain


def _run(projections: Tensor, weight: Tensor, bias: Tensor | None) -> Record:
    directions, frames, batch, hidden = projections.shape
    into_states = weight.transpose(1, 2).contiguous()
    states = projections.new_zeros(directions, frames + 1, batch, hidden)
    states[:, 1:] = projections if bias is None else projections + bias[:, None, None]
    for previous, state in zip(states[:, :-1].unbind(1), states[:, 1:].unbind(1), strict=True):
        state.baddbmm_(previous, into_states).tanh_()
    return (states,)


def _reverse(record: Record, gradients: tuple[Tensor | None, ...], weight: Tensor) -> Reversed:
    (states,) = record
    total = gradients[0].clone(memory_format=torch.contiguous_format)
    slopes = 1 - states[:, 1:] * states[:, 1:]
    products = torch.empty_like(slopes)
    sequences = (products, slopes, total[:, :-1], total[:, 1:])
    for product, slope, previous, state in zip(*(each.unbind(1)[::-1] for each in sequences), strict=True):
        torch.mul(slope, state, out=product)
        previous.baddbmm_(product, weight)
    return Reversed(products, products, (total,))


def _reverse_again(
    record: Record, trace: tuple[Tensor, ...], weight: Tensor, direction: Tensor | None, products: Tensor
) -> ReversedAgain:
    (states,) = record
    (total,) = trace
    slopes = 1 - states[:, 1:] * states[:, 1:]
    into_states = weight.transpose(1, 2).contiguous()
    if direction is not None:
        products += direction
    tangents = torch.zeros_like(states)
    sequences = (products, slopes, tangents[:, :-1], tangents[:, 1:])
    for product, slope, previous, tangent in zip(*(each.unbind(1) for each in sequences), strict=True):
        product.baddbmm_(previous, into_states)
        torch.mul(slope, product, out=tangent)

    states_derivative = torch.zeros_like(states)
    states_derivative[:, 1:] = -2 * states[:, 1:] * products * total[:, 1:]
    return ReversedAgain(tangents, [states_derivative], slopes * total[:, 1:])


TANH = Cell("RNN_TANH", 1, _run, _reverse, _reverse_again)
