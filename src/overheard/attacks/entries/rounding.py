"""What rounding a stored number may have suffered: its size for every entry, and as scales of rows and columns.

A number format's spacing grows with the number, that of a grid of few values is one for all. Both are read off the
values themselves: numbers that all fit a coarser format were rounded to it. What sums were rounded to shows in what a
matrix of low rank holds beside its directions: the error of a float32 product grows with its row and its column, that
of subtracted weights, or of noise that was added, does not.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overheard.attacks.output_layer import stored_format

MOST_STEPS = 4096
"""Multiples of a step up to which evenly spaced values count as a grid; 8 bits have 255."""
LESS = -0.15
"""Power of a row's size that errors over that size follow, down to which they count as errors of products, with 0. Of
errors that are alike in all rows it is -1, and nearer to 0 the more small rows have turned the directions."""
SWEEPS = 4
"""Of the two means that fit rows and columns; entries that are missing let them depend on each other."""


def rounding_size(tensor: Tensor) -> Float[Tensor, "*S"] | None:
    """Standard deviation of the rounding of each entry; None where no format coarser than the tensor's own shows."""
    step = grid_step(tensor)
    if step is not None:
        return torch.full(tensor.shape, step / 12**0.5, dtype=torch.float64)
    kind = stored_format(tensor)
    if kind == tensor.dtype and kind not in (torch.float16, torch.bfloat16):
        return None
    limits = torch.finfo(kind)
    spacing = torch.exp2(tensor.double().abs().clamp(min=limits.tiny).log2().floor()) * limits.eps
    return spacing / 12**0.5


def grid_step(tensor: Tensor) -> float | None:
    """The step of evenly spaced values, such as 8-bit numbers times a scale; None if they are none."""
    some = tensor.flatten().double()
    sizes = some.abs()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    present = sizes[sizes > 0]
    if largest == 0.0:
        return None
    step = float(present.min())
    # The smallest value present is a small multiple of the step; the next smallest tells which.
    for divisor in (1, 2, 3):
        multiples = sizes / (step / divisor)
        near = (multiples - multiples.round()).abs() <= 1e-3
        if float(multiples.max()) <= MOST_STEPS and bool(near.all()) and present.unique().numel() > 2:
            return step / divisor
    return None


def scales_of(sizes: Float[Tensor, "R C"], present: Bool[Tensor, "R C"]) -> tuple[Tensor, Tensor]:
    """Rows (R,) and columns (C,) whose product is nearest to the sizes of entries that are present, by logarithm."""
    logarithms = torch.where(present, sizes.log(), 0.0)
    rows, columns = logarithms.new_zeros(len(logarithms), 1), logarithms.new_zeros(1, logarithms.shape[1])
    for _ in range(SWEEPS):
        rows = ((logarithms - columns) * present).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp(
            min=1
        )
        columns = ((logarithms - rows) * present).sum(dim=0, keepdim=True)
        columns = columns / present.sum(dim=0, keepdim=True).clamp(min=1)
    return rows.flatten().exp(), columns.flatten().exp()


def by_sizes(matrix: Float[Tensor, "R C"]) -> tuple[Float[Tensor, "R C"], Float[Tensor, " C"]]:
    """Rows, then columns, over their root mean squares, so that errors of products are of one size; and the latter."""
    rows = matrix.square().mean(dim=1, keepdim=True).sqrt()
    scaled = matrix / torch.where(rows > 0, rows, 1.0)
    columns = scaled.square().mean(dim=0).sqrt()
    columns = torch.where(columns > 0, columns, 1.0)
    return scaled / columns, columns


def rounded_as_products(
    matrix: Float[Tensor, "R C"], scaled: Float[Tensor, "R C"], basis: Float[Tensor, "P C"]
) -> bool:
    """Whether what a matrix of low rank holds beside its directions grows with its rows, as errors of products do.

    Args:
        matrix: no row of it zero.
        scaled: the same `by_sizes`: then such errors are alike in all rows, others are larger the smaller the row was.
        basis: orthonormal rows, the directions of the latter.
    """
    rest = scaled - (scaled @ basis.T) @ basis
    sizes, errors = (each.square().mean(dim=1).clamp(min=torch.finfo(each.dtype).tiny).log() for each in (matrix, rest))
    spread = sizes - sizes.mean()
    return float(spread @ errors) > LESS * float(spread.square().sum())
