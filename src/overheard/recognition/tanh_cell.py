"""The plain recurrent network (Elman, 1990).

    h = tanh(projections + W h_previous + b)

The record is (states,). `recurrent_sweep` has the notation.
"""

import torch
from torch import Tensor

from overheard.recognition.recurrent_sweep import (
    Cell,
    Record,
    Reversed,
    ReversedAgain,
    by_frame,
    by_frame_backwards,
)


def _run(projections: Tensor, weight: Tensor, bias: Tensor | None) -> Record:
    directions, frames, batch, hidden = projections.shape
    into_states = weight.transpose(1, 2).contiguous()
    states = projections.new_zeros(directions, frames + 1, batch, hidden)
    states[:, 1:] = projections if bias is None else projections + bias[:, None, None]
    for previous, state in by_frame(states[:, :-1], states[:, 1:]):
        state.baddbmm_(previous, into_states).tanh_()
    return (states,)


def _reverse(record: Record, weight: Tensor, gradient: Tensor, rest: tuple[Tensor, ...]) -> Reversed:
    # `rest` is always empty: the states are the whole record.
    (states,) = record
    total = gradient.clone(memory_format=torch.contiguous_format)
    slopes = 1 - states[:, 1:] * states[:, 1:]
    products = torch.empty_like(slopes)
    for product, slope, previous, state in by_frame_backwards(products, slopes, total[:, :-1], total[:, 1:]):
        torch.mul(slope, state, out=product)
        previous.baddbmm_(product, weight)
    return Reversed(products, products, (total,))


def _reverse_again(
    record: Record, weight: Tensor, trace: tuple[Tensor, ...], direction: Tensor | None, products: Tensor
) -> ReversedAgain:
    (states,) = record
    (total,) = trace
    slopes = 1 - states[:, 1:] * states[:, 1:]
    into_states = weight.transpose(1, 2).contiguous()
    if direction is not None:
        products += direction
    tangents = torch.zeros_like(states)
    for product, slope, previous, tangent in by_frame(products, slopes, tangents[:, :-1], tangents[:, 1:]):
        product.baddbmm_(previous, into_states)
        torch.mul(slope, product, out=tangent)

    states_derivative = torch.zeros_like(states)
    states_derivative[:, 1:] = -2 * states[:, 1:] * products * total[:, 1:]
    return ReversedAgain(tangents, [states_derivative], slopes * total[:, 1:])


TANH = Cell("RNN_TANH", 1, _run, _reverse, _reverse_again)
