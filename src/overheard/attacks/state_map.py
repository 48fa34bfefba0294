"""The state before each frame, linear in the frame: two updates of one layer share their left factor.

What a gate's pre-activation gets is d_t, whether it came from the frame or from the state before it:

    dW_ih = sum_t d_t h_t',    dW_hh = sum_t d_t s_{t-1}'

(of a GRU for the gates r and z; of LSTM and tanh cells for all). So with h_t = a_t R, and D' A = dW_ih R' known, the one
matrix L that solves (D' A) L = dW_hh gives a_t L = s_{t-1} for every frame: A L = S. Read backwards it gives the frame that
follows a state, but for multiples of frames that the state zero precedes, which L sends to zero. Those are the first
frames, one for each utterance.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.recognition.recurrence import CellName


@dataclass(frozen=True)
class StateMap:
    """L of one direction.

    Attributes:
        states: L, (P, H): coordinates of a frame to the state before it.
        frames: its pseudo-inverse, (H, P): a state to the frame behind it, without its part in `firsts`.
        firsts: orthonormal rows that span what L sends to zero, (N, P): the first frames.
    """

    states: Float[Tensor, "P H"]
    frames: Float[Tensor, "H P"]
    firsts: Float[Tensor, "N P"]


def make_state_map(
    cell: CellName,
    into_gates: Float[Tensor, "K C"],
    recurrent: Float[Tensor, "K H"],
    basis: Float[Tensor, "P C"],
    utterances: int,
) -> StateMap:
    """L from the updates of one direction's weights.

    Args:
        cell: of the layer.
        into_gates: update of W_ih, float64.
        recurrent: update of W_hh.
        basis: orthonormal rows that span all frames.
        utterances: in the update.
    """
    shared = 2 * recurrent.shape[1] if cell == "gru" else len(recurrent)
    states = torch.linalg.lstsq(into_gates[:shared] @ basis.T, recurrent[:shared]).solution
    left, values, right = torch.linalg.svd(states)
    carried = len(basis) - utterances
    frames = (right[:carried].T / values[:carried]) @ left[:, :carried].T
    return StateMap(states, frames, left[:, carried:].T.contiguous())
