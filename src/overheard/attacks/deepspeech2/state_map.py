"""The state before each frame, linear in the frame: two updates of one layer share their left factor.

What a gate's pre-activation gets is d_t, whether it came from the frame or from the state before it:

    dW_ih = sum_t d_t h_t',    dW_hh = sum_t d_t s_{t-1}'

(of a GRU for the gates r and z; of LSTM and tanh cells for all). So the rows of [dW_ih R' | dW_hh] are mixtures of
[a_t | s_{t-1}], with h_t = a_t R, and where there are enough of them their P strongest directions Q = [Q_1 | Q_2] hold
every pair: [a_t | s_{t-1}] = w [Q_1 | Q_2]. From a state s follows w, the least |w Q_2 - s|, and w Q_1 is the frame
behind it, but for multiples of frames that the state zero precedes. Those are w Q_1 with w Q_2 = 0: the first frames,
one for each utterance. Both updates are rounded, so both are divided by the noise that is left of their spectrum. The
noise then turns a direction of the span by one over its singular value, which says how far a pair may lie outside.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.recognition.recurrence import CellName


@dataclass(frozen=True)
class Pairs:
    """How far a frame and a state are from being a pair that the update holds.

    Attributes:
        frames_outside: (P, H): a times it, and s times `states_outside`, is what of [a | s] lies outside the span.
        states_outside: (H, H).
        frames_blur: (P, P): the length of a times it, and s times `states_blur`, is the noise of each number outside.
        states_blur: (H, P).
    """

    frames_outside: Float[Tensor, "P H"]
    states_outside: Float[Tensor, "H H"]
    frames_blur: Float[Tensor, "P P"]
    states_blur: Float[Tensor, "H P"]

    def outside(self, frames: Float[Tensor, "N P"], states: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """What of each pair lies outside the span."""
        return frames @ self.frames_outside + states @ self.states_outside

    def noise(self, frames: Float[Tensor, "N P"], states: Float[Tensor, "N H"]) -> Float[Tensor, "N 1"]:
        """Standard deviation of what the update's noise makes of each number outside."""
        return (frames @ self.frames_blur + states @ self.states_blur).norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class StateMap:
    """Frames by the states before them, in one direction.

    Attributes:
        pairs: what the map was made from.
        frames: (H, P): s times it is the frame behind the state s, without its part in `firsts`.
        firsts: orthonormal rows that span what the state zero precedes, (N, P): the first frames.
    """

    pairs: Pairs
    frames: Float[Tensor, "H P"]
    firsts: Float[Tensor, "N P"]


def make_state_map(
    cell: CellName,
    into_gates: Float[Tensor, "K C"],
    recurrent: Float[Tensor, "K H"],
    basis: Float[Tensor, "P C"],
    utterances: int,
) -> StateMap:
    """The pairs that the updates of one direction's weights hold.

    Args:
        cell: of the layer.
        into_gates: update of W_ih, float64.
        recurrent: update of W_hh.
        basis: orthonormal rows that span all frames.
        utterances: in the update.
    """
    size, carried = len(basis), len(basis) - utterances
    shared = 2 * recurrent.shape[1] if cell == "gru" else len(recurrent)
    left, right = into_gates[:shared] @ basis.T, recurrent[:shared]
    one = _noise(float((into_gates[:shared] - left @ basis).square().mean().sqrt()), left)
    behind = torch.linalg.svdvals(recurrent)[carried:].square().mean().sqrt()
    other = _noise(float(behind) / len(recurrent) ** 0.5, right)
    _, strengths, rows = torch.linalg.svd(torch.cat([left / one, right / other], dim=1), full_matrices=True)
    span, outside = rows[:size], rows[size:].T
    blur = span.T / strengths[:size]
    pairs = Pairs(outside[:size] / one, outside[size:] / other, blur[:size] / one, blur[size:] / other)
    first, second = span[:, :size] * one, span[:, size:] * other
    mixed, values, states = torch.linalg.svd(second)
    frames = (states[:carried].T / values[:carried]) @ (mixed[:, :carried].T @ first)
    firsts = torch.linalg.qr((mixed[:, carried:].T @ first).T).Q.T
    return StateMap(pairs, frames, firsts)


def _noise(measured: float, tensor: Float[Tensor, "K J"]) -> float:
    """Of each number of a tensor; no less than its arithmetic makes."""
    return max(measured if measured == measured else 0.0, torch.finfo(tensor.dtype).eps * float(tensor.norm()))
