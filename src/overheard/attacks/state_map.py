"""The state before each frame, linear in the frame: two updates of one layer share their left factor.

What a gate's pre-activation gets is d_t, whether it came from the frame or from the state before it:

    dW_ih = sum_t d_t h_t',    dW_hh = sum_t d_t s_{t-1}'

(of a GRU for the gates r and z; of LSTM and tanh cells for all). So the rows of [dW_ih R' | dW_hh] are mixtures of
[a_t | s_{t-1}], with h_t = a_t R, and where there are enough of them their P strongest directions Q = [Q_1 | Q_2] hold
every pair: [a_t | s_{t-1}] = w [Q_1 | Q_2]. From a state s follows w, the least |w Q_2 - s|, and w Q_1 is the frame
behind it, but for multiples of frames that the state zero precedes. Those are w Q_1 with w Q_2 = 0: the first frames,
one for each utterance. Both updates are rounded, so both are divided by the noise that is left of their spectrum.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.recognition.recurrence import CellName


@dataclass(frozen=True)
class StateMap:
    """Frames by the states before them, in one direction.

    Attributes:
        frames: (H, P): s times it is the frame behind the state s, without its part in `firsts`.
        firsts: orthonormal rows that span what the state zero precedes, (N, P): the first frames.
    """

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
    pairs = torch.linalg.svd(torch.cat([left / one, right / other], dim=1), full_matrices=False)[2][:size]
    first, second = pairs[:, :size] * one, pairs[:, size:] * other
    mixed, values, states = torch.linalg.svd(second)
    frames = (states[:carried].T / values[:carried]) @ (mixed[:, :carried].T @ first)
    firsts = torch.linalg.qr((mixed[:, carried:].T @ first).T).Q.T
    return StateMap(frames, firsts)


def _noise(measured: float, tensor: Float[Tensor, "K J"]) -> float:
    """Of each number of a tensor; no less than its arithmetic makes."""
    return max(measured if measured == measured else 0.0, torch.finfo(tensor.dtype).eps * float(tensor.norm()))
