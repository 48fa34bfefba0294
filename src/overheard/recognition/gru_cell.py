"""The gated recurrent unit (Cho et al., 2014) as torch formulates it: the reset gate acts after the recurrent product.

    r, z = sigmoid(x_r + u_r), sigmoid(x_z + u_z)        x = projections, u = W h_previous + b
    n    = tanh(x_n + r u_n)
    h    = (1 - z) n + z h_previous

The record is (states, [r, z, u_n], n). `recurrent_sweep` has the notation.
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
    gates = projections.clone(memory_format=torch.contiguous_format)
    gates[..., 2 * hidden :] = 0
    if bias is not None:
        gates += bias[:, None, None]
    candidates = projections[..., 2 * hidden :].clone(memory_format=torch.contiguous_format)

    sequences = (gates, gates[..., : 2 * hidden], *gates.chunk(3, -1), candidates, states[:, :-1], states[:, 1:])
    for gate, reset_update, r, z, u, n, previous, state in by_frame(*sequences):
        gate.baddbmm_(previous, into_gates)
        reset_update.sigmoid_()
        n.addcmul_(r, u).tanh_()
        torch.lerp(n, previous, z, out=state)
    return states, gates, candidates


def _slopes(record: Record) -> tuple[Tensor, Tensor]:
    """dh/du for r, z and u_n, side by side (D, T, N, K), and dh/dx_n (D, T, N, H)."""
    states, gates, n = record
    r, z, u = gates.chunk(3, -1)
    candidate = (1 - z) * (1 - n * n)
    return torch.cat([candidate * u * r * (1 - r), (states[:, :-1] - n) * z * (1 - z), candidate * r], -1), candidate


def _sources(record: Record, gates_gradient: Tensor, n_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of u and of x_n that reach them through the recorded gates and candidates alone."""
    _, gates, n = record
    r, z, u = gates.chunk(3, -1)
    r_gradient, z_gradient, u_gradient = gates_gradient.chunk(3, -1)
    candidate = n_gradient * (1 - n * n)
    products = torch.cat(
        [(candidate * u + r_gradient) * r * (1 - r), z_gradient * z * (1 - z), candidate * r + u_gradient], -1
    )
    return products, candidate


def _reverse(record: Record, weight: Tensor, gradient: Tensor, rest: tuple[Tensor, ...]) -> Reversed:
    _, gates, _ = record
    hidden = weight.shape[2]
    slopes, candidate_slope = _slopes(record)
    total = gradient.clone(memory_format=torch.contiguous_format)
    products, source = _sources(record, *rest) if rest else (torch.zeros_like(slopes), None)

    update = gates[..., hidden : 2 * hidden]
    sequences = (products, products.unflatten(-1, (3, hidden)), slopes.unflatten(-1, (3, hidden)), update)
    for product, by_gate, slope, z, previous, state in by_frame_backwards(*sequences, total[:, :-1], total[:, 1:]):
        by_gate.addcmul_(slope, state.unsqueeze(2))
        previous.addcmul_(state, z).baddbmm_(product, weight)

    candidate = total[:, 1:] * candidate_slope
    if source is not None:
        candidate += source
    return Reversed(torch.cat([products[..., : 2 * hidden], candidate], -1), products, (total,))


def _reverse_again(
    record: Record, weight: Tensor, trace: tuple[Tensor, ...], direction: Tensor | None, products: Tensor
) -> ReversedAgain:
    states, gates, n = record
    (total,) = trace
    hidden = weight.shape[2]
    r, z, u = gates.chunk(3, -1)
    slopes, candidate_slope = _slopes(record)
    into_gates = weight.transpose(1, 2).contiguous()
    tangents = torch.zeros_like(states)
    if direction is not None:
        products[..., : 2 * hidden] += direction[..., : 2 * hidden]
        torch.mul(candidate_slope, direction[..., 2 * hidden :], out=tangents[:, 1:])

    sequences = (products, *products.chunk(3, -1), *slopes.chunk(3, -1), z, tangents[:, :-1], tangents[:, 1:])
    for product, p_r, p_z, p_u, s_r, s_z, s_u, carried, previous, tangent in by_frame(*sequences):
        product.baddbmm_(previous, into_gates)
        tangent.addcmul_(carried, previous).addcmul_(s_r, p_r).addcmul_(s_z, p_z).addcmul_(s_u, p_u)

    # What the slopes' derivatives are multiplied by, gate by gate, and then the chain rule through `_slopes`.
    reached = total[:, 1:]  # (D, T, N, H)
    by_r, by_z, by_u = (products.unflatten(-1, (3, hidden)) * reached.unsqueeze(3)).unbind(3)
    reset_slope, update_slope = r * (1 - r), z * (1 - z)
    by_candidate = by_r * u * reset_slope + by_u * r
    if direction is not None:
        by_candidate += direction[..., 2 * hidden :] * reached
    gates_derivative = torch.cat(
        [
            candidate_slope * (by_r * u * (1 - 2 * r) + by_u),
            by_z * (states[:, :-1] - n) * (1 - 2 * z) - by_candidate * (1 - n * n) + tangents[:, :-1] * reached,
            by_r * candidate_slope * reset_slope,
        ],
        -1,
    )
    through_update = by_z * update_slope
    states_derivative = torch.zeros_like(states)
    states_derivative[:, :-1] = through_update
    n_derivative = -through_update - 2 * n * (1 - z) * by_candidate
    products_gradient = (slopes.unflatten(-1, (3, hidden)) * reached.unsqueeze(3)).flatten(3)
    return ReversedAgain(tangents, [states_derivative, gates_derivative, n_derivative], products_gradient)


GRU = Cell("GRU", 3, _run, _reverse, _reverse_again)
