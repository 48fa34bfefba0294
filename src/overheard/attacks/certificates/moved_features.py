"""Features moved as far as they may be wrong, to see how much of an update hangs on that.

What a solver leaves is not alike in all directions: weak frames err more than others, and neighbours that share windows
err alike, so that sums over frames feel more of it than of independent errors of that size. Where the solver hands on
draws of its own error, these are the moves.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.output_layer import FLOAT32


def moved_features(
    features: Sequence[Float[Tensor, "_ F"]],
    precision: float,
    errors: Sequence[Float[Tensor, "D _ F"]],
    generator: torch.Generator,
) -> Iterator[list[Float[Tensor, "_ F"]]]:
    """The features with each draw of their error added, or once with independent numbers; float64.

    Args:
        features: (T_i, F) of each utterance.
        precision: error relative to each one's root mean square, where no draws are given.
        errors: (D, T_i, F) draws for each utterance; empty for none.
        generator: of the independent numbers, which come to the draws too, as large as float32 rounds features.
    """
    exact = [matrix.detach().double().cpu() for matrix in features]
    level = FLOAT32 if errors else precision
    for draws in zip(*errors, strict=True) if errors else [tuple(torch.zeros_like(matrix) for matrix in exact)]:
        moved = []
        for matrix, draw in zip(exact, draws, strict=True):
            noise = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
            moved.append(matrix + draw.to(matrix) + level * matrix.square().mean().sqrt() * noise)
        yield moved
