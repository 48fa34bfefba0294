"""A recurrent layer's sweep over time that can be differentiated twice, quickly and in little memory.

Automatic differentiation of a step-by-step loop keeps one recurrent weight gradient per frame as soon as the gradient
is itself to be differentiated. Here the sweep and its reverse are two `torch.autograd.Function`s with hand-written
loops:

    run            states and gates from the input projections, frame after frame
    reverse        gradients of the projections; the weights' gradient is one matrix product over all frames
    reverse_again  derivative of `reverse`: Pearlmutter's R-operator ("Fast exact multiplication by the Hessian", 1994)
                   pushes the incoming direction forward in time

What `run` recorded is an output of the first function, so that `reverse_again` hands its derivatives with respect to
the record back to autograd, and the second pass through `reverse` takes them up beside those of the layers above: a
second derivative costs four loops, not five.

Notation, in every cell: D directions, T frames, N batch, H hidden size, K = gates * H. Every direction runs forward in
time here; the caller has turned the backward one round. `states` has T + 1 entries, the first being the zero initial
state. With a_t the pre-activations, every cell reads the previous state through one product only:

    a_t = projections_t (+) (states_t W^T + b),        W (K, H), b (K,)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Record = tuple[Tensor, ...]
"""What a run keeps: the states (D, T + 1, N, H) first, then whatever else the cell's derivatives need."""


@dataclass(frozen=True)
class Reversed:
    """What one reverse sweep yields.

    Attributes:
        projections: gradient of the input projections, (D, T, N, K).
        products: gradient of `states W^T + b`, (D, T, N, K).
        trace: what `reverse_again` needs besides the record.
    """

    projections: Tensor
    products: Tensor
    trace: tuple[Tensor, ...]


@dataclass(frozen=True)
class ReversedAgain:
    """What the derivative of a reverse sweep yields.

    Attributes:
        states: derivative with respect to the states' incoming gradient, (D, T + 1, N, H).
        record: derivatives with respect to each tensor of the record.
        products: `Reversed.products`, computed afresh.
    """

    states: Tensor
    record: list[Tensor]
    products: Tensor


@dataclass(frozen=True)
class Cell:
    """One kind of recurrent cell.

    Attributes:
        mode: torch's name of it.
        gates: how many rows of size H its weights have.
        run: `(projections, weight, bias) -> record`.
        reverse: `(record, weight, gradient of the states, gradients of the rest of the record) -> Reversed`, the last
            being empty in a first pass.
        reverse_again: `(record, weight, trace, direction of the projections' gradient, direction of the products) ->
            ReversedAgain`. It may overwrite the last argument.
    """

    mode: str
    gates: int
    run: Callable[[Tensor, Tensor, Tensor | None], Record]
    reverse: Callable[[Record, Tensor, Tensor, tuple[Tensor, ...]], Reversed]
    reverse_again: Callable[[Record, Tensor, tuple[Tensor, ...], Tensor | None, Tensor], ReversedAgain]


def sweep(
    cell: Cell,
    projections: Float[Tensor, "D T N K"],
    weight: Float[Tensor, "D K H"],
    bias: Float[Tensor, "D K"] | None,
) -> Float[Tensor, "D T N H"]:
    """Run `cell` over all frames from a zero state; differentiable twice in every tensor.

    Args:
        cell: the kind of cell.
        projections: inputs times input weights, plus the input biases.
        weight: recurrent weights, not a leaf (a stack over directions).
        bias: recurrent biases.

    Raises:
        RuntimeError: when a second derivative is taken with create_graph=True, as for a third.
    """
    return _Sweep.apply(cell, projections, weight, bias)[0][:, 1:]


def by_frame(*sequences: Float[Tensor, "D _ N *_"]) -> Iterator[tuple[Tensor, ...]]:
    """Views of all sequences at frame 0, 1, ... T - 1."""
    return zip(*(sequence.unbind(1) for sequence in sequences), strict=True)


def by_frame_backwards(*sequences: Float[Tensor, "D _ N *_"]) -> Iterator[tuple[Tensor, ...]]:
    """Views of all sequences at frame T - 1, T - 2, ... 0."""
    return zip(*(sequence.unbind(1)[::-1] for sequence in sequences), strict=True)


def _wanted(context: Any, index: int) -> bool:
    """Whether this backward pass has to produce the gradient of the input tensor `index`, counting tensors alone.

    `needs_input_grad` is settled when the graph is built: gradient matching would pay for two weight gradients that
    nobody asked for. Autograd's engine knows.
    """
    inputs = context.next_functions
    node = inputs[index][0] if index < len(inputs) else None
    return node is not None and torch._C._will_engine_execute_node(node)


def _rows(sequence: Float[Tensor, "D T N K"]) -> Float[Tensor, "D TN K"]:
    return sequence.flatten(1, 2)


def _weight_gradient(products: Tensor, states: Tensor) -> Tensor:
    """Sum over frames and batch of products_t^T states_t, as one matrix product: (D, K, H)."""
    return torch.bmm(_rows(products).transpose(1, 2), _rows(states[:, :-1]))


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell: Cell, projections: Tensor, weight: Tensor, bias: Tensor | None) -> Record:
        record = cell.run(projections, weight, bias)
        ctx.cell = cell
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *record)
        return record

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return None, None, None, None
        weight, *record = ctx.saved_tensors
        wanted = _wanted(ctx, 1), _wanted(ctx, 2)
        # The rest of the record has gradients only in a second pass, and then all of them.
        given = gradients[:1] if gradients[-1] is None else gradients
        return None, *_Reverse.apply(ctx.cell, wanted, weight, len(record), *record, *given)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cell: Cell, wanted: tuple[bool, bool], weight: Tensor, size: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        record, gradients = tensors[:size], tensors[size:]
        result = cell.reverse(record, weight, gradients[0], gradients[1:])
        ctx.cell, ctx.size, ctx.given = cell, size, len(gradients)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *record, *result.trace)
        return (
            result.projections,
            _weight_gradient(result.products, record[0]) if wanted[0] else None,
            result.products.sum((1, 2)) if wanted[1] else None,
        )

    @staticmethod
    def backward(
        ctx: Any, projections: Tensor | None, weights: Tensor | None, biases: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # `once_differentiable` would not do: autograd.grad leaves its error node out and returns a wrong derivative.
        if torch.is_grad_enabled():
            raise RuntimeError("a recurrent sweep can be differentiated twice, not three times: drop create_graph=True")
        weight, *saved = ctx.saved_tensors
        record, trace = tuple(saved[: ctx.size]), tuple(saved[ctx.size :])
        states = record[0]
        directions, frames, batch, hidden = states[:, 1:].shape

        # The direction of every product states_t W^T + b, as far as it does not come from earlier frames.
        if weights is None:
            products = states.new_zeros(directions, frames, batch, weight.shape[1])
        else:
            products = torch.bmm(_rows(states[:, :-1]), weights.transpose(1, 2)).unflatten(1, (frames, batch))
        if biases is not None:
            products += biases[:, None, None]

        result = ctx.cell.reverse_again(record, weight, trace, projections, products)
        if weights is not None:
            previous = result.record[0][:, :-1].view(directions, frames * batch, hidden)
            previous.baddbmm_(_rows(result.products), weights)
        weight_gradient = _weight_gradient(result.products, result.states) if _wanted(ctx, 0) else None
        return None, None, weight_gradient, None, *result.record, result.states, *[None] * (ctx.given - 1)
