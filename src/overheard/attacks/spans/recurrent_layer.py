"""A recurrent layer behind the one that sees windows, and how its states come about, position after position.

Between the two are affine layers, each shown the outputs of the one before through an activation alone; they are
found by running the model's own code (`pointwise`). What is shown to the recurrent layer at a position is then a
function of one window, and a state one of the windows so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.attacks.pointwise import Activation, find_pointwise_layer
from overheard.attacks.windows import WindowedLayer

CellStep = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(W_ih x + b_ih, W_hh h + b_hh, memory) -> (state, memory): of any unit, what that unit's own numbers make of it."""


@dataclass(frozen=True)
class Stage:
    """phi(W u + b).

    Attributes:
        weight: W.
        bias: b; zeros where there is none.
        activation: phi and its slope.
    """

    weight: Float[Tensor, "H C"]
    bias: Float[Tensor, " H"]
    activation: Activation


@dataclass(frozen=True)
class Moved:
    """How numbers move with the unknowns; rows that do not are left out.

    Attributes:
        rows: those that do.
        slopes: their derivatives.
    """

    rows: Int[Tensor, " M"]
    slopes: Float[Tensor, "M U"]


@dataclass(frozen=True)
class RecurrentLayer:
    """One direction of a recurrent layer and what leads to it, in float32.

    Attributes:
        onward_name: of the parameter W_hh.
        stages: from a window, sorted by frame, then feature, to what the recurrent layer is shown.
        inward: W_ih.
        onward: W_hh.
        inward_bias: b_ih; zeros where there is none.
        onward_bias: b_hh.
        cell: one step.
    """

    onward_name: str
    stages: tuple[Stage, ...]
    inward: Float[Tensor, "K I"]
    onward: Float[Tensor, "K H"]
    inward_bias: Float[Tensor, " K"]
    onward_bias: Float[Tensor, " K"]
    cell: CellStep

    def shown(self, outputs: Float[Tensor, "*M O"]) -> tuple[Float[Tensor, "*M I"], list[Tensor]]:
        """What the recurrent layer is shown where the windowed layer gives `outputs`; and the slopes of each stage."""
        shown, slope = self.stages[0].activation(outputs)
        slopes = [slope]
        for stage in self.stages[1:]:
            shown, slope = stage.activation(shown @ stage.weight.T + stage.bias)
            slopes.append(slope)
        return shown, slopes

    def moved(self, weight: Float[Tensor, "O U"], slopes: Sequence[Float[Tensor, " _"]]) -> Moved:
        """How what it is shown at one position moves with unknowns that `weight` maps to the windowed layer."""
        rows = slopes[0].nonzero()[:, 0]
        moved = weight[rows] * slopes[0][rows, None]
        for stage, slope in zip(self.stages[1:], slopes[1:], strict=True):
            further = slope.nonzero()[:, 0]
            moved = (stage.weight.index_select(0, further).index_select(1, rows) @ moved) * slope[further, None]
            rows = further
        return Moved(rows, moved)

    def through(self, slopes: Float[Tensor, "G H"], moved: Moved) -> Float[Tensor, "H U"]:
        """Derivatives of states or memories by unknowns, from those by each gate's inward part."""
        gates = self.inward.view(*slopes.shape, -1)
        together = torch.zeros_like(gates[0])
        for slope, gate in zip(slopes, gates, strict=True):
            together.addcmul_(slope[:, None], gate)
        return together.index_select(1, moved.rows) @ moved.slopes

    def run(
        self, windows: Float[Tensor, "P C"], state: Float[Tensor, " H"], memory: Float[Tensor, " H"]
    ) -> tuple[Float[Tensor, "P H"], Float[Tensor, "P H"]]:
        """States and memories at every position, from those before the first."""
        first = self.stages[0]
        inward = self.shown(windows @ first.weight.T + first.bias)[0] @ self.inward.T + self.inward_bias
        states, memories = [], []
        for each in inward:
            state, memory = self.cell(each, self.onward @ state + self.onward_bias, memory)
            states.append(state)
            memories.append(memory)
        return torch.stack(states), torch.stack(memories)

    @property
    def nothing(self) -> Float[Tensor, " H"]:
        """State, and memory, before the first position."""
        return self.onward.new_zeros(self.onward.shape[1])


@dataclass(frozen=True)
class CellSlopes:
    """Derivatives of one step, unit by unit; what goes through W_hh is not among them.

    Attributes:
        state_inward: of the state by each gate's inward part.
        memory_inward: of the memory.
        state_memory: of the state by the memory before.
        memory_memory: of the memory.
    """

    state_inward: Float[Tensor, "G H"]
    memory_inward: Float[Tensor, "G H"]
    state_memory: Float[Tensor, " H"]
    memory_memory: Float[Tensor, " H"]


def cell_slopes(
    cell: CellStep, inward: Float[Tensor, " K"], onward: Float[Tensor, " K"], memory: Float[Tensor, " H"]
) -> tuple[Float[Tensor, " H"], Float[Tensor, " H"], CellSlopes]:
    """State, memory, and the derivatives of a step."""
    inward, memory = inward.detach().requires_grad_(), memory.detach().requires_grad_()
    state, further = cell(inward, onward, memory)
    by_state = torch.autograd.grad(state.sum(), (inward, memory), retain_graph=True, materialize_grads=True)
    by_memory = torch.autograd.grad(further.sum(), (inward, memory), materialize_grads=True)
    gates = (-1, len(memory))
    slopes = CellSlopes(by_state[0].view(gates), by_memory[0].view(gates), by_state[1], by_memory[1])
    return state.detach(), further.detach(), slopes


def find_recurrent_layer(model: nn.Module, layer: WindowedLayer, reverse: bool) -> RecurrentLayer | None:
    """The first recurrent layer behind the windowed one; None where something else than activations lies between.

    Args:
        model: the recogniser.
        layer: its windowed layer.
        reverse: the direction that reads from the end.
    """
    stages: list[Stage] = []
    module, columns = model.get_submodule(layer.name), layer.order
    behind = find_pointwise_layer(model, layer)
    while behind is not None:
        weight = module.get_parameter("weight").detach().flatten(1)[:, columns]
        stages.append(Stage(weight.float().cpu(), _bias(module, "bias", len(weight)), behind.activation))
        module = model.get_submodule(behind.name)
        if isinstance(module, nn.RNNBase):
            return _direction(behind.name, module, tuple(stages), reverse)
        if not isinstance(module, nn.Linear):
            return None
        columns = torch.arange(module.in_features)
        behind = find_pointwise_layer(model, replace(layer, name=behind.name))
    return None


def _direction(name: str, module: nn.RNNBase, stages: tuple[Stage, ...], reverse: bool) -> RecurrentLayer | None:
    ending = "l0_reverse" if reverse else "l0"
    if module.mode not in CELLS or module.proj_size or (reverse and not module.bidirectional):
        return None
    inward, onward = (module.get_parameter(f"weight_{which}_{ending}").detach().float().cpu() for which in ("ih", "hh"))
    biases = [_bias(module, f"bias_{which}_{ending}", len(inward)) for which in ("ih", "hh")]
    return RecurrentLayer(
        f"{name}.weight_hh_{ending}", stages, inward, onward, biases[0], biases[1], CELLS[module.mode]
    )


def _bias(module: nn.Module, name: str, size: int) -> Float[Tensor, " H"]:
    found = getattr(module, name, None)
    return found.detach().float().cpu() if isinstance(found, Tensor) else torch.zeros(size)


def _lstm(inward: Tensor, onward: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (inward + onward).chunk(4, -1)
    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def _gru(inward: Tensor, onward: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    (x_r, x_z, x_n), (u_r, u_z, u_n) = inward.chunk(3, -1), onward.chunk(3, -1)
    z = (x_z + u_z).sigmoid()
    state = (1 - z) * (x_n + (x_r + u_r).sigmoid() * u_n).tanh() + z * memory
    return state, state


def _tanh(inward: Tensor, onward: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    state = (inward + onward).tanh()
    return state, state


CELLS: dict[str, CellStep] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh}
"""By torch's names; a GRU's memory is its state, and a plain network has none that a unit keeps to itself."""
