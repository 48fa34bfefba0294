"""An update that is known to be less than what the client computed: entries were left out, or tensors shrunk."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from overheard.federation.update import ClientUpdate


@dataclass(frozen=True)
class ReceivedUpdate(ClientUpdate):
    """Re-simulated updates are compared with it as it came.

    Attributes:
        sent: for tensors of which only some entries were sent, which ones.
        free_sizes: tensors that may each have been multiplied by a factor of its own.
    """

    sent: dict[str, Tensor] = field(default_factory=dict)
    free_sizes: bool = False

    def as_received(self, computed: dict[str, Tensor]) -> dict[str, Tensor]:
        """What would have been received of what a client computed."""
        found = {name: each * self.sent[name] if name in self.sent else each for name, each in computed.items()}
        if not self.free_sizes:
            return found
        return {name: each * _factor(each, self.tensors[name]) for name, each in found.items()}


def _factor(computed: Tensor, received: Tensor) -> float:
    """By least squares; at least 0."""
    one, other = computed.flatten().double(), received.flatten().double()
    return max(0.0, float(one.dot(other) / one.dot(one).clamp(min=torch.finfo(torch.float64).tiny)))
