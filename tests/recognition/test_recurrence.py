"""Recurrences against torch's own modules, in value, gradient and second derivative."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from overheard.errors import InputError
from overheard.recognition.recurrence import CellName, Recurrence, set_engine

TORCH = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN}
CELLS = get_args(CellName)

cells = pytest.mark.parametrize("cell", CELLS)
biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def analytic(
    cell: CellName, input_size: int, hidden_size: int, *, bidirectional: bool = True, bias: bool = True
) -> Recurrence:
    generator = torch.Generator().manual_seed(0)
    layer = Recurrence(
        cell, input_size, hidden_size, bidirectional=bidirectional, bias=bias, generator=generator
    ).double()
    set_engine(layer, "analytic")
    return layer


def torch_twin(layer: Recurrence) -> nn.RNNBase:
    twin = TORCH[layer.cell](
        layer.input_size, layer.hidden_size, bias=layer.bias, bidirectional=layer.bidirectional, dtype=torch.float64
    )
    twin.load_state_dict(layer.state_dict())
    return twin


def run_torch(twin: nn.RNNBase, inputs: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        states, _ = twin(inputs)
    else:
        packed, _ = twin(pack_padded_sequence(inputs, lengths, enforce_sorted=False))
        states, _ = pad_packed_sequence(packed, total_length=len(inputs))
    return states.unflatten(2, (-1, twin.hidden_size))


def derivatives(states: Tensor, parameters: list[Tensor], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient of a curved function of the states, and its Hessian times a random direction."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(states.shape, generator=generator, dtype=states.dtype)
    loss = (weights * states).sum() + (weights * states**3).sum()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    directions = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in gradients]
    along = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    assert isinstance(along, Tensor)
    return list(gradients), list(torch.autograd.grad(along, parameters))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Recurrence, Tensor, Tensor | None, int]:
    frames, batch = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    layer = analytic(
        draw(st.sampled_from(CELLS)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
    )
    lengths = draw(st.none() | st.lists(st.integers(1, frames), min_size=batch, max_size=batch).map(torch.tensor))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(frames, batch, layer.input_size, generator=generator, dtype=torch.float64)
    return layer, inputs.requires_grad_(), lengths, seed


@settings(max_examples=40)
@given(problem=problems())
def test_agrees_with_torch_in_value_gradient_and_second_derivative(
    problem: tuple[Recurrence, Tensor, Tensor | None, int],
) -> None:
    layer, inputs, lengths, seed = problem
    twin = torch_twin(layer)
    ours, theirs = layer(inputs, lengths), run_torch(twin, inputs, lengths)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    our_gradients, our_products = derivatives(ours, [inputs, *layer.parameters()], seed)
    their_gradients, their_products = derivatives(theirs, [inputs, *twin.parameters()], seed)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_products, their_products, rtol=1e-11, atol=1e-11)


@given(problem=problems())
def test_engines_agree(problem: tuple[Recurrence, Tensor, Tensor | None, int]) -> None:
    layer, inputs, lengths, _ = problem
    ours = layer(inputs, lengths)
    layer.engine = "native"
    torch.testing.assert_close(ours, layer(inputs, lengths), rtol=1e-12, atol=1e-12)


@cells
@biases
@pytest.mark.parametrize("lengths", [None, [2, 3]], ids=["full", "ragged"])
def test_numerical_derivatives(cell: CellName, bias: bool, lengths: list[int] | None) -> None:
    layer = analytic(cell, 2, 2, bias=bias)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def states(inputs: Tensor, *parameters: Tensor) -> Tensor:
        arguments = (inputs, None if lengths is None else torch.tensor(lengths))
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), arguments)

    assert torch.autograd.gradcheck(states, (inputs, *layer.parameters()))
    assert torch.autograd.gradgradcheck(states, (inputs, *layer.parameters()), fast_mode=True)


@cells
def test_second_derivatives_through_stacked_layers(cell: CellName) -> None:
    """Gradient matching's path: the weights' gradients are matched, the features alone are differentiated."""
    first, second = analytic(cell, 3, 4), analytic(cell, 4, 4, bias=False)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([5, 3])

    def gradient_of_distance(run_first: nn.Module, run_second: nn.Module) -> Tensor:
        def run(layer: nn.Module, sequence: Tensor) -> Tensor:
            if isinstance(layer, Recurrence):
                return layer(sequence, lengths).sum(2)
            assert isinstance(layer, nn.RNNBase)
            return run_torch(layer, sequence, lengths).sum(2)

        loss = run(run_second, run(run_first, inputs)).square().sum()
        weights = [*run_first.parameters(), *run_second.parameters()]
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        distance = torch.stack([(gradient - 1).square().sum() for gradient in gradients]).sum()
        return torch.autograd.grad(distance, inputs)[0]

    ours = gradient_of_distance(first, second)
    theirs = gradient_of_distance(torch_twin(first), torch_twin(second))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@cells
def test_frozen_weights_still_let_second_derivatives_through(cell: CellName) -> None:
    layer = analytic(cell, 3, 4).requires_grad_(False)
    inputs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (inputs,), fast_mode=True)


@cells
def test_a_third_derivative_is_refused(cell: CellName) -> None:
    layer = analytic(cell, 2, 3)
    inputs = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="not three times"):
        torch.autograd.grad(first.square().sum(), inputs, create_graph=True)


@cells
@pytest.mark.parametrize("engine", ["native", "analytic"])
def test_padding_changes_nothing(cell: CellName, engine: str) -> None:
    layer = Recurrence(cell, 3, 8, generator=torch.Generator().manual_seed(5))
    set_engine(layer, engine)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(6)
    long, short = torch.randn(9, 3, generator=generator), torch.randn(4, 3, generator=generator)
    padded = torch.full((9, 2, 3), torch.nan)
    padded[:, 0], padded[:4, 1] = long, short
    padded.requires_grad_()
    states = layer(padded, torch.tensor([9, 4]))
    torch.testing.assert_close(states[:, 0], layer(long[:, None])[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(states[:4, 1], layer(short[:, None])[:, 0], rtol=0, atol=1e-6)
    assert states[4:, 1].count_nonzero() == 0
    states.square().sum().backward()
    assert padded.grad is not None
    assert padded.grad[4:, 1].count_nonzero() == 0
    assert padded.grad[:4, 1].count_nonzero() == 12
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@cells
@biases
def test_parameters_are_those_of_torch(cell: CellName, bias: bool) -> None:
    ours = Recurrence(cell, 5, 4, bias=bias, generator=torch.Generator().manual_seed(7))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = TORCH[cell](5, 4, bias=bias, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    theirs.load_state_dict(Recurrence(cell, 5, 4, bias=bias).state_dict())
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(ours(inputs).flatten(2), theirs(inputs)[0])


def test_a_given_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    Recurrence("gru", 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_set_engine_reaches_every_layer() -> None:
    model = nn.Sequential(Recurrence("gru", 2, 2), nn.Sequential(nn.Linear(2, 2), Recurrence("lstm", 2, 2)))
    set_engine(model, "analytic")
    assert [each.engine for each in model.modules() if isinstance(each, Recurrence)] == ["analytic", "analytic"]


def test_no_weight_gradient_is_kept_per_frame() -> None:
    """What the graph of the gradient holds must not grow by a recurrent matrix with every frame."""
    frames, hidden = 40, 64
    layer = Recurrence("gru", 4, hidden, bias=False)
    layer.engine = "analytic"
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.randn(frames, 1, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        torch.autograd.grad(layer(inputs).square().sum(), list(layer.parameters()), create_graph=True)
    one_matrix = 3 * hidden * hidden * 4
    assert sum(held.values()) < frames * 2 * one_matrix / 5


def test_autocast_leaves_the_analytic_engine_in_full_precision() -> None:
    layer = Recurrence("lstm", 3, 4)
    set_engine(layer, "analytic")
    inputs = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(inputs), layer(inputs.float()))
        assert layer(inputs.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "lengths", "named"),
    [
        ((4, 2, 5), None, "inputs"),
        ((0, 2, 3), None, "inputs"),
        ((4, 2, 3), [4, 0], "lengths"),
        ((4, 2, 3), [5, 4], "lengths"),
    ],
)
def test_wrong_inputs_are_named(shape: tuple[int, int, int], lengths: list[int] | None, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Recurrence("gru", 3, 4)(torch.zeros(shape), None if lengths is None else torch.tensor(lengths))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InputError, match="hidden_size"):
        Recurrence("gru", 3, 0)
