"""The long short-term memory with a forget gate (Gers et al., 2000), gates in torch's order.

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)        a = projections + W h_previous + b
    g       = tanh(a_g)
    c       = f c_previous + i g
    h       = o tanh(c)

The record is (states, memories, [i, f, g, o]); memories hold c with the zero initial one in front.
`recurrent_sweep` has the notation.
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
    directions, frames, batch, _ = projections.shape
    hidden = weight.shape[2]
    into_gates = weight.transpose(1, 2).contiguous()
    states = projections.new_zeros(directions, frames + 1, batch, hidden)
    memories = torch.zeros_like(states)
    gates = projections.clone(memory_format=torch.contiguous_format)
    if bias is not None:
        gates += bias[:, None, None]

    squashed = projections.new_empty(directions, batch, hidden)
    sequences = (gates, gates[..., : 2 * hidden], *gates.chunk(4, -1))
    sequences += (memories[:, :-1], memories[:, 1:], states[:, :-1], states[:, 1:])
    for gate, input_forget, i, f, g, o, previous_memory, memory, previous, state in by_frame(*sequences):
        gate.baddbmm_(previous, into_gates)
        input_forget.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        torch.mul(f, previous_memory, out=memory)
        memory.addcmul_(i, g)
        torch.tanh(memory, out=squashed)
        torch.mul(o, squashed, out=state)
    return states, memories, gates


def _slopes(record: Record) -> tuple[Tensor, Tensor, Tensor]:
    """dc/da for i, f and g side by side (D, T, N, 3H), dh/da_o and dh/dc (D, T, N, H)."""
    _, memories, gates = record
    i, f, g, o = gates.chunk(4, -1)
    squashed = memories[:, 1:].tanh()
    into_memory = torch.cat([g * i * (1 - i), memories[:, :-1] * f * (1 - f), i * (1 - g * g)], -1)
    return into_memory, squashed * o * (1 - o), o * (1 - squashed * squashed)


def _sources(record: Record, gates_gradient: Tensor) -> Tensor:
    """Gradient of the pre-activations that reaches them through the recorded gates alone."""
    i, f, g, o = record[2].chunk(4, -1)
    slopes = torch.cat([i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)], -1)
    return gates_gradient * slopes


def _reverse(record: Record, weight: Tensor, gradient: Tensor, rest: tuple[Tensor, ...]) -> Reversed:
    states, _, gates = record
    hidden = weight.shape[2]
    into_memory, output_slope, memory_slope = _slopes(record)
    total = gradient.clone(memory_format=torch.contiguous_format)
    if rest:
        memory_total, products = rest[0].clone(memory_format=torch.contiguous_format), _sources(record, rest[1])
    else:
        memory_total, products = torch.zeros_like(states), torch.zeros_like(gates)

    inner_products = products[..., : 3 * hidden].unflatten(-1, (3, hidden))
    sequences = (products, inner_products, products[..., 3 * hidden :])
    sequences += (into_memory.unflatten(-1, (3, hidden)), output_slope, memory_slope, gates[..., hidden : 2 * hidden])
    sequences += (memory_total[:, :-1], memory_total[:, 1:], total[:, :-1], total[:, 1:])
    for product, inner, outer, slope, s_o, s_c, f, previous_memory, memory, previous, state in by_frame_backwards(
        *sequences
    ):
        memory.addcmul_(state, s_c)
        inner.addcmul_(slope, memory.unsqueeze(2))
        outer.addcmul_(state, s_o)
        previous_memory.addcmul_(memory, f)
        previous.baddbmm_(product, weight)
    return Reversed(products, products, (total, memory_total))


def _reverse_again(
    record: Record, weight: Tensor, trace: tuple[Tensor, ...], direction: Tensor | None, products: Tensor
) -> ReversedAgain:
    states, memories, gates = record
    total, memory_total = trace
    hidden = weight.shape[2]
    i, f, g, o = gates.chunk(4, -1)
    into_memory, output_slope, memory_slope = _slopes(record)
    into_gates = weight.transpose(1, 2).contiguous()
    if direction is not None:
        products += direction

    tangents, memory_tangents = torch.zeros_like(states), torch.zeros_like(states)
    memory_steps = by_frame(f, *into_memory.chunk(3, -1), memory_tangents[:, :-1], memory_tangents[:, 1:])
    state_steps = by_frame(memory_slope, output_slope, tangents[:, :-1], tangents[:, 1:])
    product_steps = by_frame(products, *products.chunk(4, -1))
    for into_memory_t, into_state_t, into_gates_t in zip(memory_steps, state_steps, product_steps, strict=True):
        carried, s_i, s_f, s_g, previous_memory, memory = into_memory_t
        s_c, s_o, previous, tangent = into_state_t
        product, p_i, p_f, p_g, p_o = into_gates_t
        product.baddbmm_(previous, into_gates)
        memory.addcmul_(carried, previous_memory).addcmul_(s_i, p_i).addcmul_(s_f, p_f).addcmul_(s_g, p_g)
        tangent.addcmul_(s_c, memory).addcmul_(s_o, p_o)

    # What the slopes' derivatives are multiplied by, and then the chain rule through `_slopes`.
    reached, memory_reached = total[:, 1:], memory_total[:, 1:]
    by_i, by_f, by_g, by_o = products.chunk(4, -1)
    by_i, by_f, by_g, by_o = by_i * memory_reached, by_f * memory_reached, by_g * memory_reached, by_o * reached
    by_memory = memory_tangents[:, 1:] * reached
    squashed = memories[:, 1:].tanh()
    squashed_slope = 1 - squashed * squashed
    before = memories[:, :-1]
    gates_derivative = torch.cat(
        [
            by_i * g * (1 - 2 * i) + by_g * (1 - g * g),
            by_f * before * (1 - 2 * f) + memory_tangents[:, :-1] * memory_reached,
            by_i * i * (1 - i) - 2 * by_g * i * g,
            by_o * squashed * (1 - 2 * o) + by_memory * squashed_slope,
        ],
        -1,
    )
    memories_derivative = torch.zeros_like(memories)
    memories_derivative[:, 1:] = (by_o * o * (1 - o) - 2 * by_memory * o * squashed) * squashed_slope
    memories_derivative[:, :-1] += by_f * f * (1 - f)
    inner = into_memory.unflatten(-1, (3, hidden)) * memory_reached.unsqueeze(3)
    products_gradient = torch.cat([inner.flatten(3), output_slope * reached], -1)
    return ReversedAgain(tangents, [torch.zeros_like(states), memories_derivative, gates_derivative], products_gradient)


LSTM = Cell("LSTM", 4, _run, _reverse, _reverse_again)
