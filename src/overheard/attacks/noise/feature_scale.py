"""The one factor that a windowed layer's update may leave open, and what settles it.

A client that clips every tensor by itself scales dW and db apart. The row space is then that of [u_p, c] with an
unknown c, and the closed form gives all features times 1 / c; so it does where no entry of db was sent. The same factor
for all frames, so one number settles it:

- **The layer behind** is shown phi(W u_p + b), no homogeneous function of u_p: only the right factor puts these into
  the row space of its update, whose own factor does not matter.
- **The front end**: normalised features have deviation 1.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.noise.layer_fits import NoisyLayer, fit_whole
from overheard.attacks.noise.masked_fit import fit_masked
from overheard.attacks.windows import WindowedLayer
from overheard.federation.update import ClientUpdate
from overheard.speech.features import FrontEndConfig

LARGEST = 1e4
"""Factor, and one over it, up to which is looked."""
STEP = 1.2
NEARBY = 1e-3
"""Relative change of the factor beside which 1 must explain the layer behind better, or the factor is looked for."""
ACCURACY = 1e-9
SAME_NORM = 1e-5
"""Relative difference of norms that were clipped to the same one."""

Features = Sequence[Float[Tensor, "_ F"]]


def unexplained(layer: NoisyLayer, windowed: WindowedLayer, features: Features) -> Callable[[float], float]:
    """Factor -> variance that the layer behind keeps when all features are multiplied by it.

    Args:
        layer: the one behind.
        windowed: how the windows lie.
        features: (T_i, F) of all utterances.
    """
    windows = torch.cat([windowed.windows(each.double()) for each in features])

    def left(factor: float) -> float:
        if layer.mask is None:
            return fit_whole(layer, factor * windows, 1).variance
        return fit_masked(layer, layer.mask, factor * windows, 1).variance

    return left


def best_factor(left: Callable[[float], float], signs: tuple[int, ...] = (1,), accuracy: float = ACCURACY) -> float:
    """The factor that leaves least: every size is tried, and the best made exact by golden section.

    Args:
        left: of a factor, see `unexplained`.
        signs: that it may have.
        accuracy: relative, in which it is wanted.
    """
    count = math.ceil(math.log(LARGEST) / math.log(STEP))
    tried = [(left(sign * STEP**power), sign, power) for sign in signs for power in range(-count, count + 1)]
    _, sign, power = min(tried)
    low, high = (power - 1) * math.log(STEP), (power + 1) * math.log(STEP)
    golden = (5**0.5 - 1) / 2

    def at(size: float) -> float:
        return left(sign * math.exp(size))

    one, other = high - golden * (high - low), low + golden * (high - low)
    least = at(one), at(other)
    while high - low > accuracy:
        if least[0] < least[1]:
            high, other = other, one
            one = high - golden * (high - low)
            least = at(one), least[0]
        else:
            low, one = one, other
            other = low + golden * (high - low)
            least = least[1], at(other)
    return sign * math.exp((low + high) / 2)


def factor_of_layer_behind(layer: NoisyLayer, windowed: WindowedLayer, features: Features) -> float:
    """By what all features are to be multiplied; exactly 1 where they explain the layer behind as they are."""
    if layer.mask is None and _share_outside(layer, windowed, features) < NEARBY**2 / 100:
        return 1.0
    left = unexplained(layer, windowed, features)
    if left(1.0) < min(left(1 - NEARBY), left(1 + NEARBY)):
        return 1.0
    return best_factor(left)


def _share_outside(layer: NoisyLayer, windowed: WindowedLayer, features: Features) -> float:
    """Share of the update of the layer behind that its inputs do not span; 1 where they depend on each other."""
    inputs, _ = layer.inputs(torch.cat([windowed.windows(each.double()) for each in features]))
    factor, failed = torch.linalg.cholesky_ex(inputs @ inputs.T)
    if int(failed):
        return 1.0
    inside = torch.linalg.solve_triangular(factor, inputs @ layer.matrix.T, upper=False)
    return 1.0 - float(inside.square().sum()) / float(layer.matrix.square().sum())


def factor_of_front_end(config: FrontEndConfig, features: Features) -> float | None:
    """The same by normalisation; None where the front end does not normalise."""
    if config.normalise == "none" or min(map(len, features), default=0) < 2:
        return None
    over = (0, 1) if config.normalise == "utterance" else (0,)
    deviations = torch.stack([each.double().std(dim=over).mean() for each in features])
    return float(1 / deviations.median())


def clipped_by_layer(update: ClientUpdate, names: Sequence[str]) -> bool:
    """Whether tensors share one norm to rounding, one of these among them: clipping by layer does that."""
    norms = {name: float(tensor.double().norm()) for name, tensor in update.tensors.items()}
    return any(
        name != other and norm > 0 and abs(norms[name] / norm - 1) < SAME_NORM
        for name in names if name in norms
        for other, norm in norms.items()
    )  # fmt: skip
