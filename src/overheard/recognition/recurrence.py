"""One recurrent layer: torch's parameters and results, with a choice of how it is differentiated.

`nn.GRU`, `nn.LSTM` and `nn.RNN` cannot be differentiated twice on a GPU (cuDNN has no double backward) and only at a
great price in time and memory on a CPU. `Recurrence` has the same parameters under the same names and computes the same
function with either of two engines: torch's own kernels, or the sweep of `recurrent_sweep`, which gradient matching
needs.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from overheard.errors import InputError
from overheard.recognition.gru_cell import GRU
from overheard.recognition.lstm_cell import LSTM
from overheard.recognition.recurrent_sweep import Cell, sweep
from overheard.recognition.tanh_cell import TANH

CellName = Literal["gru", "lstm", "tanh"]
Engine = Literal["native", "analytic"]

_CELLS: dict[str, Cell] = {"gru": GRU, "lstm": LSTM, "tanh": TANH}


class Recurrence(nn.RNNBase):
    """One layer of a GRU, LSTM or tanh RNN, its directions kept apart.

    The parameters are those of the one-layer `nn.GRU`, `nn.LSTM` or `nn.RNN`, name by name, so that state dicts load
    both ways; they are drawn uniformly from +-1/sqrt(hidden_size), in torch's order.

    Attributes:
        cell: "gru" (torch's formulation), "lstm" or "tanh".
        engine: "native" for torch's kernels (cuDNN on a GPU), the default; "analytic" for gradients that can be
            differentiated again, on any device, without keeping a weight gradient per frame.

    Args:
        cell: the kind of cell.
        input_size: features per frame.
        hidden_size: H.
        bidirectional: D = 2 directions if true, else 1.
        bias: whether there are input and recurrent biases.
        generator: source of the initial parameters; torch's global one if None.

    Raises:
        InputError: if the cell is unknown or a size is not positive.
    """

    def __init__(
        self,
        cell: CellName,
        input_size: int,
        hidden_size: int,
        *,
        bidirectional: bool = True,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if cell not in _CELLS:
            raise InputError("cell", repr(cell), f"choose one of {', '.join(_CELLS)}")
        if input_size < 1 or hidden_size < 1:
            raise InputError("input_size, hidden_size", (input_size, hidden_size), "give positive sizes")
        # Built without storage first: the base class would draw from the global generator whatever the caller wants.
        super().__init__(
            _CELLS[cell].mode, input_size, hidden_size, bias=bias, bidirectional=bidirectional, device="meta"
        )
        self.cell: CellName = cell
        self.engine: Engine = "native"
        self.to_empty(device=torch.get_default_device())
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every parameter uniformly from +-1/sqrt(hidden_size)."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def extra_repr(self) -> str:
        return f"{self.cell!r}, {super().extra_repr()}"

    def forward(
        self, inputs: Float[Tensor, "T N I"], lengths: Int[Tensor, " N"] | None = None
    ) -> Float[Tensor, "T N D H"]:
        """Hidden states of every frame and direction.

        The backward direction starts at each utterance's own last frame. Frames past an utterance's length are exactly
        zero in the output, get no gradient, and influence nothing.

        Args:
            inputs: frames of the batch, padded to T.
            lengths: frames of each utterance, 1 to T, in any order; all T if None.

        Returns:
            States, direction 0 forward and direction 1 backward in time.

        Raises:
            InputError: on empty or ill-fitting inputs, or lengths outside 1 to T.
        """
        frames, batch, size = inputs.shape
        if size != self.input_size or frames == 0 or batch == 0:
            raise InputError("inputs", tuple(inputs.shape), f"give (T, N, {self.input_size}) with T and N at least 1")
        if lengths is not None:
            if lengths.shape != (batch,):
                raise InputError("lengths", f"{len(lengths)} for {batch} utterances", "give one length per utterance")
            shortest, longest = int(lengths.min()), int(lengths.max())
            if shortest < 1 or longest > frames:
                raise InputError("lengths", f"{shortest} to {longest}", f"give lengths from 1 to the {frames} frames")
            if shortest == frames:
                lengths = None
        if self.engine == "native":
            return self._native(inputs, lengths)
        # Reduced precision would lose the second derivatives, and in-place products do not go through autocast.
        with torch.autocast(inputs.device.type, enabled=False):
            return self._analytic(inputs.to(self.all_weights[0][0].dtype), lengths)

    def _native(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        directions = 1 + self.bidirectional
        zeros = inputs.new_zeros(directions, inputs.shape[1], self.hidden_size)
        initial = (zeros, zeros) if self.cell == "lstm" else zeros
        kernel = {"gru": torch.gru, "lstm": torch.lstm, "tanh": torch.rnn_tanh}[self.cell]
        weights = [weight for layer in self.all_weights for weight in layer]
        settings = (self.bias, 1, 0.0, self.training, self.bidirectional)
        if lengths is None:
            states = kernel(inputs, initial, weights, *settings, False)[0]
        else:
            packed = pack_padded_sequence(inputs, lengths.cpu(), enforce_sorted=False)
            data = kernel(packed.data, packed.batch_sizes, initial, weights, *settings)[0]
            packed = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            states, _ = pad_packed_sequence(packed, total_length=inputs.shape[0])
        return states.unflatten(2, (directions, self.hidden_size))

    def _analytic(self, inputs: Tensor, lengths: Tensor | None) -> Tensor:
        # Each direction starts at frame 0 here and nothing flows back in time, so that the frames past the end need no
        # care within the sweep: they get no gradient because the output hides them.
        within, order = None, None
        if lengths is not None:
            within, order = _within(inputs.shape[0], lengths), _reversal(inputs.shape[0], lengths)
            inputs = inputs.where(within.unsqueeze(2), 0)

        suffixes = ("", "_reverse")[: 1 + self.bidirectional]

        def parameters(name: str) -> list[Tensor]:
            return [getattr(self, f"{name}_l0{suffix}") for suffix in suffixes]

        input_biases = parameters("bias_ih") if self.bias else [None] * len(suffixes)
        projections = [
            F.linear(inputs, *weight_and_bias)
            for weight_and_bias in zip(parameters("weight_ih"), input_biases, strict=True)
        ]
        projections[1:] = [_turn_round(each, order) for each in projections[1:]]
        weight = torch.stack(parameters("weight_hh"))
        bias = torch.stack(parameters("bias_hh")) if self.bias else None
        states = sweep(_CELLS[self.cell], torch.stack(projections), weight, bias)

        forward, *backward = states.unbind(0)
        states = torch.stack([forward, *(_turn_round(each, order) for each in backward)], 2)  # (T, N, D, H)
        return states if within is None else states.where(within[..., None, None], 0)


def set_engine(model: nn.Module, engine: Engine) -> None:
    """Switch every `Recurrence` within `model` to `engine`.

    Raises:
        InputError: if the engine is unknown.
    """
    if engine not in get_args(Engine):
        raise InputError("engine", repr(engine), f"choose one of {', '.join(get_args(Engine))}")
    for module in model.modules():
        if isinstance(module, Recurrence):
            module.engine = engine


def _within(frames: int, lengths: Int[Tensor, " N"]) -> Bool[Tensor, "T N"]:
    """Whether a frame belongs to its utterance."""
    return torch.arange(frames, device=lengths.device).unsqueeze(1) < lengths


def _reversal(frames: int, lengths: Int[Tensor, " N"]) -> Int[Tensor, " TN"]:
    """Rows of a flattened (T, N) sequence with each utterance back to front, the frames past its end left in place."""
    batch = len(lengths)
    frame = torch.arange(frames, device=lengths.device).unsqueeze(1)
    source = torch.where(frame < lengths, lengths - 1 - frame, frame)  # (T, N)
    return (source * batch + torch.arange(batch, device=lengths.device)).flatten()


def _turn_round(sequence: Float[Tensor, "T N K"], order: Int[Tensor, " TN"] | None) -> Float[Tensor, "T N K"]:
    """Each utterance back to front; its own inverse."""
    if order is None:
        return sequence.flip(0)
    return sequence.flatten(0, 1).index_select(0, order).view_as(sequence)
