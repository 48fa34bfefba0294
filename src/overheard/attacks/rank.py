"""Rank scan: the cheapest figure of risk, for any `nn.Module`.

A layer that maps z_p = W u_p + b at P positions shares dW = sum_p g_p u_p^T, so the row space of [dW | db] lies in the
span of its inputs [u_p, 1], and where P < min(out, in + 1) its numerical rank is P: the update then gives away the
span of everything the layer was shown, and how much that was (Fowl et al. 2022 and Dimitrov et al. 2024 use the same
fact for images and text).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.observation import Observation
from overheard.federation.update import ClientUpdate

Verdict = Literal["span exposed", "saturated", "no clear rank"]

TRACY_WIDOM = 4.0
"""Deviations above its mean that the largest value of noise does not reach but once in tens of thousands of spectra."""

GAP = 3.0
"""Ratio of neighbouring singular values near the noise that windows of speech do not leave among themselves."""

FIRST_SKETCH = 512
"""Width of the first random sketch: ranks below it, utterances up to 10 s, need no larger decomposition."""

SKETCH_END = 8
"""One part in so many of a sketch's values is left out at its end."""


@dataclass(frozen=True)
class NumericalRank:
    """Where a spectrum falls off.

    Attributes:
        rank: singular values above the fall; the smaller dimension when there is none.
        margin: the ratio of the values on either side of the fall; 1 when there is none.
        singular_values: largest first.
    """

    rank: int
    margin: float
    singular_values: Float[Tensor, " R"]


@dataclass(frozen=True)
class LayerRank:
    """One row of the scan.

    Attributes:
        layer: the module's name.
        kind: the module's class.
        rows: outputs of the affine map.
        columns: its inputs, and one for a bias.
        rank: of the layer's update.
        margin: of that decision; see `NumericalRank`.
        verdict: "span exposed" where rank < both dimensions.
    """

    layer: str
    kind: str
    rows: int
    columns: int
    rank: int
    margin: float
    verdict: Verdict


def numerical_rank(matrix: Float[Tensor, "R C"], precision: float) -> NumericalRank:
    """The rank at the widest gap of the spectrum among values that rounding could have caused.

    Args:
        matrix: float64 values of an update.
        precision: relative rounding of the arithmetic that made it, such as `torch.finfo(torch.float32).eps`.
    """
    generator = torch.Generator(matrix.device).manual_seed(0)
    smaller = min(matrix.shape)
    width = min(smaller, FIRST_SKETCH)
    while True:
        values = torch.linalg.svdvals(_sketch(matrix, width, generator))
        # The last values of a square random sketch fall to nothing, whatever it is a sketch of.
        usable = values if width == smaller else values[: width - width // SKETCH_END]
        found = rank_of_spectrum(usable, precision)
        if found.rank < len(usable) or width == smaller:
            return found
        width = min(smaller, 4 * width)


def _sketch(matrix: Float[Tensor, "R C"], width: int, generator: torch.Generator) -> Float[Tensor, "W W"]:
    """A (width, width) matrix of the same rank, if that is below `width` (Halko et al. 2011, section 4)."""
    for _ in range(2):
        if matrix.shape[1] > width:
            mix = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype, device=matrix.device)
            matrix = matrix @ mix
        matrix = matrix.T
    return matrix


def rank_of_spectrum(values: Float[Tensor, " R"], precision: float) -> NumericalRank:
    """As `numerical_rank`, of singular values in falling order."""
    if values.numel() == 0 or float(values[0]) == 0.0:
        return NumericalRank(0, 1.0, values)
    relative = (values / values[0]).clamp(min=precision**2)
    # Rounding of sums of R terms grows with sqrt(R); what is above that noise is signal and cannot end the spectrum.
    noise = precision * max(values.numel(), 2) ** 0.5
    gaps = relative[:-1] / relative[1:]
    below = relative[1:] < noise
    if not bool(below.any()):
        return NumericalRank(values.numel(), 1.0, values)
    # Units that nothing reached leave exact zeros; where rounding shows above them, the signal ends there.
    zeros = values[1:] <= torch.finfo(torch.float64).eps * values.numel() * values[0]
    if bool((below & ~zeros).any()):
        below &= ~zeros
    gaps = torch.where(below, gaps, torch.ones_like(gaps))
    cut = int(gaps.argmax())
    return NumericalRank(cut + 1, float(gaps[cut]), values)


def rank_above_noise(values: Float[Tensor, " C"], num_rows: int) -> NumericalRank:
    """The rank of a matrix under independent noise of one unknown level: values that the noise alone cannot reach.

    From the smallest value up, each is compared with the largest that noise of the level of those below it makes in a
    matrix of what is left (Johnstone 2001, theorem 1.1). The margin is the ratio of the last value above to that bound.

    Args:
        values: singular values, largest first, of a matrix of no more columns than rows.
        num_rows: R.
    """
    num_columns = values.numel()
    taken = torch.arange(num_columns, dtype=values.dtype, device=values.device)
    rows, columns = num_rows - taken, num_columns - taken
    squares = values.square().flip(0).cumsum(0).flip(0)  # of each value and those below it
    edge = (rows - 1).clamp(min=1).sqrt() + columns.sqrt()
    spread = edge * ((rows - 1).clamp(min=1) ** -0.5 + columns**-0.5) ** (1 / 3)
    bounds = (squares / (rows * columns) * (edge.square() + TRACY_WIDOM * spread)).sqrt()
    above = torch.nonzero(values > bounds).flatten()
    if not above.numel():
        return NumericalRank(0, 1.0, values)
    rank = int(above[-1]) + 1
    # Rounding is not quite independent: a value or two of it may reach past the bound, but not across a gap.
    doubtful = int((values[:rank] > GAP * bounds[min(rank, num_columns - 1)]).sum())
    if doubtful < rank:
        gaps = values[max(0, doubtful - 1) : rank] / values[max(0, doubtful - 1) + 1 : rank + 1].clamp(min=1e-300)
        widest = int(gaps.argmax()) if len(gaps) == rank - max(0, doubtful - 1) else 0
        if len(gaps) and float(gaps[widest]) > GAP:
            rank = max(0, doubtful - 1) + widest + 1
    bound = float(bounds[rank]) if rank < num_columns else 0.0
    return NumericalRank(rank, float(values[rank - 1]) / bound if bound > 0 else 1.0, values)


def layer_matrix(update: ClientUpdate, name: str, module: nn.Module) -> Float[Tensor, "R C"] | None:
    """[dW | db] of a layer whose inputs the update may expose, float64; None if it has no such weight.

    Linear and convolution weights are taken as one matrix (out, inputs of a window); of a recurrent layer the input
    weights of all gates and both directions, which see the same inputs.
    """
    own = [key for key, _ in module.named_parameters(recurse=False)]
    prefix = f"{name}." if name else ""
    weights = [key for key in own if key == "weight" or key.startswith("weight_ih_l0")]
    shared = [key for key in weights if f"{prefix}{key}" in update.tensors]
    parameters = dict(module.named_parameters(recurse=False))
    if not shared or any(parameters[key].ndim < 2 for key in shared):
        return None
    blocks = []
    for key in shared:
        block = update.gradient_without_decay(f"{prefix}{key}", parameters[key]).flatten(1)
        bias = key.replace("weight", "bias", 1)
        if f"{prefix}{bias}" in update.tensors:
            shift = update.gradient_without_decay(f"{prefix}{bias}", parameters[bias])
            block = torch.cat([block, shift[:, None]], dim=1)
        blocks.append(block)
    return torch.cat(blocks)


def precision_of(update: ClientUpdate, name: str) -> float:
    """Relative rounding of the tensors under a module's name."""
    kinds = [tensor.dtype for key, tensor in update.tensors.items() if key.rpartition(".")[0] == name]
    return max(torch.finfo(kind).eps for kind in kinds)


def rank_scan(observation: Observation) -> list[LayerRank]:
    """The rank of every affine layer's update, beside both of its dimensions, in the order of the model's modules."""
    rows = []
    for name, module in observation.model.named_modules():
        matrix = layer_matrix(observation.update, name, module)
        if matrix is None:
            continue
        found = numerical_rank(matrix, precision_of(observation.update, name))
        verdict = _verdict(matrix, found)
        outputs, inputs = matrix.shape
        rows.append(LayerRank(name, type(module).__name__, outputs, inputs, found.rank, found.margin, verdict))
    return rows


def _verdict(matrix: Float[Tensor, "R C"], found: NumericalRank) -> Verdict:
    # Softmax minus occupancy sums to zero over symbols, so an output layer has one row less than it seems.
    constrained = float(matrix.sum(dim=0).norm()) < 1e-3 * float(matrix.norm())
    # Units that no frame switched on have rows of zeros.
    alive = int((matrix != 0).any(dim=1).sum())
    if found.rank < min(alive - constrained, matrix.shape[1]):
        # A gap of less than an order of magnitude may be the tail of the signal itself.
        return "span exposed" if found.margin >= 10.0 else "no clear rank"
    return "saturated"
