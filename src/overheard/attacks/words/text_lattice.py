"""The lattice of one text: where the alignment is in each frame, and messages that other texts' lattices start from."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.recognition.ctc_lattice import PAD, build_chains, occupancy, solve, sum_over_states
from overheard.speech.alphabet import BLANK

Text = tuple[int, ...]

Chains = Sequence[tuple[float, Float[Tensor, "T V"]]]
"""Shares and log-probabilities over which occupancies are summed: one for a gradient, one for each local step."""


class TextLattice:
    """Columns are those of `recognition.ctc_lattice`: a start, then blanks and labels in turn, then an end.

    Args:
        log_probs: (T, V) of the model.
        text: with a path.

    Attributes:
        text: the same.
        states: (T, W) probability of each frame being in each column.
        occupancy: (T, V) gamma.
        before: (T + 2, W) logarithms of the messages after so many frames, each frame on its own scale.
        after: (T + 2, W) the same from the other end, of the frame and those behind it.
    """

    def __init__(self, log_probs: Float[Tensor, "T V"], text: Text) -> None:
        frames, device = len(log_probs), log_probs.device
        chains = build_chains(
            torch.tensor([text], dtype=torch.long, device=device),
            torch.tensor([frames], device=device),
            torch.tensor([len(text)], device=device),
            BLANK,
        )
        lattice = solve(log_probs[:, None], chains).lattices[0]
        states = occupancy(lattice)
        messages = lattice.messages if lattice.in_logs else lattice.messages.log()
        self.text = text
        self.states: Tensor = states[:frames, 0]
        self.occupancy: Tensor = sum_over_states(states, chains, log_probs.shape[1])[:, 0]
        self.before: Tensor = messages[:, 0, PAD:]
        self.after: Tensor = messages[:, 1, PAD:].flip(0, 1)

    @property
    def label_occupancy(self) -> Float[Tensor, "T L"]:
        """q: probability of each frame being at each label."""
        return self.states[:, 2 : 2 * len(self.text) + 2 : 2]


class MeanLattice:
    """Of one text, the mean over several local steps.

    Args:
        chains: share and (T, V) log-probabilities of each step.
        text: with a path.

    Attributes:
        text: the same.
        occupancy: (T, V) gamma.
        label_occupancy: (T, L) q.
    """

    def __init__(self, chains: Chains, text: Text) -> None:
        lattices = [(share, TextLattice(log_probs, text)) for share, log_probs in chains]
        self.text = text
        self.occupancy: Tensor = torch.stack([share * each.occupancy for share, each in lattices]).sum(dim=0)
        self.label_occupancy: Tensor = torch.stack([share * each.label_occupancy for share, each in lattices]).sum(
            dim=0
        )
