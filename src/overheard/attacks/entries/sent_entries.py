"""Which entries of a layer's update were sent: sparsified and pruned updates hold exact zeros in the others' place.

Zeros that mean something else are told apart: rows and columns of units that nothing switched on are zero throughout;
a delta, or a coarse number format, rounds small values to zero, but then values one step away are as frequent; and
values on an even grid were quantised, so that a zero there is a value.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overheard.attacks.entries.completion import CERTAIN_MARGIN, Completion, complete
from overheard.attacks.entries.rounding import grid_step
from overheard.attacks.observation import Observation
from overheard.attacks.output_layer import stored_format
from overheard.attacks.rank import layer_matrix
from overheard.attacks.windows import WindowedLayer

BLOCK_ROWS, BLOCK_COLUMNS = 450, 650
"""Of the densest part that is completed, times what of it is missing."""
UNEXPLAINED = 0.02
"""Share of zeros without another reason from which on they are taken for entries that were not sent."""


@dataclass(frozen=True)
class SentEntries:
    """[dW | db] of a layer, as far as it was sent.

    Attributes:
        name: of the layer.
        matrix: 0 where nothing was sent; rows and columns of which nothing was sent are left out.
        mask: where something was.
        columns: of the layer's inputs, in the order in which `layer_matrix` has them.
    """

    name: str
    matrix: Float[Tensor, "R C"]
    mask: Bool[Tensor, "R C"]
    columns: Int[Tensor, " C"]

    @property
    def share(self) -> float:
        """Of the entries that was sent."""
        return float(self.mask.double().mean())

    def densest(self, rows: int, columns: int) -> "SentEntries":
        """At most so many rows and columns, those of which most was sent."""
        some = torch.arange(self.mask.shape[1])
        chosen = torch.arange(len(self.mask))
        for _ in range(2):
            chosen = self.mask[:, some].sum(dim=1).argsort(descending=True)[:rows]
            some = self.mask[chosen].sum(dim=0).argsort(descending=True)[:columns]
        return SentEntries(self.name, self.matrix[chosen][:, some], self.mask[chosen][:, some], self.columns[some])

    def with_more_than(self, entries: int, most: int) -> "SentEntries":
        """At most so many rows, those of which most was sent, all of them more than so many entries."""
        counts = self.mask.sum(dim=1)
        chosen = counts.argsort(descending=True)[:most]
        chosen = chosen[counts[chosen] > entries]
        matrix, mask = self.matrix[chosen], self.mask[chosen]
        some = mask.any(dim=0)
        return SentEntries(self.name, matrix[:, some], mask[:, some], self.columns[some])


def sent_entries(observation: Observation, windowed: WindowedLayer) -> SentEntries | None:
    """What was sent of the update of the layer that sees windows; None where all was, or nothing.

    What such a layer shares has no zeros of its own, but for units that nothing switched on, or padding alone: there
    whole frames are zero, which is no evidence. Behind rectifiers there are others, of units that were never on
    together; a layer there is taken with `all_but_zeros` where the one before it has missing entries.
    """
    found = all_but_zeros(observation, windowed.name)
    if found is None or found.share > 1 - UNEXPLAINED:
        return None
    weights = found.mask.new_zeros(len(found.mask), len(windowed.order))
    on_weights = found.columns < len(windowed.order)
    weights[:, found.columns[on_weights]] = found.mask[:, on_weights]
    frames = weights[:, windowed.order].view(len(weights), windowed.window, windowed.num_features)
    zeros = float((~frames & frames.any(dim=2, keepdim=True)).sum())
    update, module = observation.update, observation.model.get_submodule(windowed.name)
    weight = update.tensors[f"{windowed.name}.weight" if windowed.name else "weight"]
    zeros -= _rounded_to_zero(weight, module.get_parameter("weight"), update.protocol.kind == "delta")
    if zeros < UNEXPLAINED * found.mask.numel() or grid_step(weight) is not None:
        return None
    return found


def all_but_zeros(observation: Observation, name: str) -> SentEntries | None:
    """A layer's update but for its zeros; None where the update does not hold it, or nothing else."""
    matrix = layer_matrix(observation.update, name, observation.model.get_submodule(name))
    if matrix is None:
        return None
    matrix = matrix.cpu()
    mask = matrix != 0
    rows, columns = mask.any(dim=1), torch.nonzero(mask.any(dim=0)).flatten()
    if not len(columns):
        return None
    return SentEntries(name, matrix[rows][:, columns], mask[rows][:, columns], columns)


def _rounded_to_zero(tensor: Tensor, weights: Tensor, subtracted: bool) -> float:
    """About how many zeros rounding made: as many as there are values of one step, either side."""
    step = torch.full_like(tensor, torch.finfo(stored_format(tensor)).smallest_normal, dtype=torch.float64)
    kind = torch.finfo(stored_format(tensor))
    step = step * kind.eps
    if subtracted:
        spacing = weights.detach().to(tensor.device).double().abs().clamp(min=torch.finfo(weights.dtype).tiny)
        step = torch.maximum(step, torch.exp2(spacing.log2().floor()) * torch.finfo(weights.dtype).eps)
    sizes = tensor.double().abs()
    return float(((sizes > 0) & (sizes < 1.5 * step)).sum())


def complete_block(
    entries: SentEntries, generator: torch.Generator, rank: int | None = None, certain: float = CERTAIN_MARGIN
) -> Completion | None:
    """Completion of the part of which most was sent, or of all where the rank is known; columns are those of the layer.

    The first layer, whose rank the one behind tells, is narrow: its rows have few entries more than directions.
    """
    block, size = entries, 1.0
    for _ in range(2 if rank is None else 0):
        block = entries.densest(int(BLOCK_ROWS * size), int(BLOCK_COLUMNS * size))
        size = 1 / max(block.share, 1e-2)
    found = complete(block.matrix, block.mask, generator, rank, certain)
    return None if found is None else replace(found, columns=block.columns[found.columns])
