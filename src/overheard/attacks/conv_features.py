"""Features behind two rectified convolutions, from the second one's update and the gradients that reached it.

With delta (C, K, T) the gradient of the second convolution's output, its weight shares

    dW[o, i, a, b] = sum_{k,t} delta[o, k, t] z[i, s k + a, t + b],

linear in the first layer's activations z, the same matrix M for every input channel i, and apart for every residue of a
modulo the stride s: one Cholesky factor of M'M + rho for each residue serves all channels. M'M is a sum of shifted
copies of delta' delta, so M itself is never formed. Up to about 55 output frames of the default sizes M z = dW has one
solution. Past that it has many, and z = clamp(W_1 * x + b_1) for features x says which: the nearest solution of the
linear equations, and the features that explain it best, are taken in turn.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from overheard.recognition.deepspeech2 import KERNELS, STRIDES, DeepSpeech2

SOFTNESS = 1e-6
"""rho, relative to the mean eigenvalue of M'M: below what is determined, above what rounding of the update makes."""


@dataclass(frozen=True)
class Front:
    """The first convolution with its norm folded in, and the geometry of both.

    Attributes:
        weight: (C, 1, k_f, k_t).
        bias: (C,).
        clip: where rectifiers saturate.
        padding: of each convolution, (frequency, time).
    """

    weight: Float[Tensor, "C 1 KF KT"]
    bias: Float[Tensor, " C"]
    clip: float
    padding: tuple[tuple[int, int], tuple[int, int]]

    def convolve(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "C K U"]:
        """W_1 * x, without the bias."""
        return functional.conv2d(features.T[None, None], self.weight, None, STRIDES[0], self.padding[0])[0]

    def convolve_transposed(self, values: Float[Tensor, "C K U"], num_frames: int, num_features: int) -> Tensor:
        """The adjoint of `convolve`, (T, F)."""
        beyond = [
            size + 2 * pad - kernel - (count - 1) * stride
            for size, pad, kernel, count, stride in zip(
                (num_features, num_frames), self.padding[0], KERNELS[0], values.shape[1:], STRIDES[0], strict=True
            )
        ]
        spread = functional.conv_transpose2d(
            values[None], self.weight, None, STRIDES[0], self.padding[0], output_padding=beyond
        )
        return spread[0, 0].T

    def pre_activations(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "C K U"]:
        """What the first rectifier is given."""
        return self.convolve(features) + self.bias[:, None, None]


@dataclass(frozen=True)
class FeatureSolution:
    """Features, and how well they explain the update.

    Attributes:
        features: (T, F).
        residual: distance between the activations that the features give and the nearest that the second layer's
            update allows, relative.
        steps: alternations taken.
    """

    features: Float[Tensor, "T F"]
    residual: float
    steps: int


def folded(model: DeepSpeech2, layer: int) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Scale and shift that a convolution's batch norm applies in evaluation mode, float64."""
    norm = model.convolution_norms[layer]
    weight, bias = norm.weight.detach().double(), norm.bias.detach().double()  # pyright: ignore
    mean, variance = norm.running_mean.double(), norm.running_var.double()  # pyright: ignore
    scale = weight / (variance + norm.eps).sqrt()  # pyright: ignore[reportOperatorIssue]
    return scale, bias - mean * scale  # pyright: ignore[reportOperatorIssue]


def make_front(model: DeepSpeech2) -> Front:
    """The first layer of a model in evaluation mode."""
    scale, shift = folded(model, 0)
    convolution = model.convolutions[0]
    weight = convolution.weight.detach().double() * scale[:, None, None, None]  # pyright: ignore
    bias = convolution.bias.detach().double() * scale + shift  # pyright: ignore[reportCallIssue]
    return Front(weight, bias, model.config.clip, model.config.padding)


class ActivationEquations:
    """M z = dW, ready to be solved for any start.

    Args:
        front: the geometry.
        delta: gradient of the second convolution's output, (C, K, T).
        update: of its weight, (C, C, k_f, k_t), float64.
        shape: (K, U), frequencies and frames of z.
    """

    def __init__(
        self, front: Front, delta: Float[Tensor, "C K T"], update: Float[Tensor, "C I A B"], shape: tuple[int, int]
    ) -> None:
        self._shape = shape
        self._padding = front.padding[1]
        stride = STRIDES[1][0]
        self._groups = [(residue, stride) for residue in range(stride)]
        right = functional.conv_transpose2d(delta[None], update, None, STRIDES[1])[0]
        # Frequencies and frames that no window of the second layer reaches.
        missing = [size + 2 * pad - have for size, pad, have in zip(shape, self._padding, right.shape[1:], strict=True)]
        self._right = functional.pad(right, (0, missing[1], 0, missing[0]))
        self._factors, self._softness = [], []
        for residue, _ in self._groups:
            gram = _gram(delta, residue, (shape[0] + 2 * self._padding[0], shape[1] + 2 * self._padding[1]))
            inside = self._inside(residue)
            if not bool(inside.all()):
                gram = gram[inside][:, inside]
            softness = SOFTNESS * float(gram.diagonal().mean())
            gram.diagonal().add_(softness)
            self._factors.append(torch.linalg.cholesky(gram))
            self._softness.append(softness)

    def nearest(self, activations: Float[Tensor, "I K U"]) -> Float[Tensor, "I K U"]:
        """The solution nearest to given activations: least |M z - dW|^2 + rho |z - activations|^2."""
        padded = functional.pad(activations, (self._padding[1],) * 2 + (self._padding[0],) * 2)
        found = torch.zeros_like(padded)
        for (residue, stride), factor, softness in zip(self._groups, self._factors, self._softness, strict=True):
            inside = self._inside(residue)
            right = (self._right[:, residue::stride] + softness * padded[:, residue::stride]).flatten(1)[:, inside]
            values = torch.zeros_like(padded[:, residue::stride]).flatten(1)
            half = torch.linalg.solve_triangular(factor, right.T, upper=False)
            values[:, inside] = torch.linalg.solve_triangular(factor.T, half, upper=True).T
            found[:, residue::stride] = values.view_as(found[:, residue::stride])
        (low, early), (high, late) = self._padding, self._shape
        return found[:, low : low + high, early : early + late]

    def _inside(self, residue: int) -> Tensor:
        """Which of the padded unknowns of a residue are real ones, flat."""
        real = torch.ones(self._shape, dtype=torch.bool, device=self._right.device)
        padded = functional.pad(real, (self._padding[1],) * 2 + (self._padding[0],) * 2)
        return padded[residue :: STRIDES[1][0]].flatten()


def _gram(delta: Float[Tensor, "C K T"], residue: int, shape: tuple[int, int]) -> Float[Tensor, "U U"]:
    """M'M of one residue: delta' delta, shifted by every place in the kernel and summed, one axis at a time."""
    _, high, long = delta.shape
    stride = STRIDES[1][0]
    shifts = len(range(residue, KERNELS[1][0], stride))
    rows = len(range(residue, shape[0], stride))
    flat = delta.flatten(1)
    inner = (flat.T @ flat).view(high, long, high, long)
    over_frequency = inner.new_zeros(rows, long, rows, long)
    for shift in range(shifts):
        over_frequency[shift : shift + high, :, shift : shift + high] += inner
    over_time = inner.new_zeros(rows, shape[1], rows, shape[1])
    for shift in range(KERNELS[1][1]):
        over_time[:, shift : shift + long, :, shift : shift + long] += over_frequency
    return over_time.view(rows * shape[1], rows * shape[1])


def solve_features(
    front: Front,
    equations: ActivationEquations,
    num_frames: int,
    num_features: int,
    most_steps: int,
    tolerance: float,
) -> FeatureSolution:
    """Alternate between the two constraints on the activations until they agree or come no closer.

    Args:
        front: the first layer.
        equations: what the second layer's update says.
        num_frames: T.
        num_features: F.
        most_steps: alternations at most.
        tolerance: residual at which both agree.
    """
    features = front.weight.new_zeros(num_frames, num_features)
    explained = front.pre_activations(features).clamp(0.0, front.clip)
    history: list[float] = []
    exact = False
    for step in range(1, most_steps + 1):
        allowed = equations.nearest(explained)
        features = _fit_features(front, features, allowed, first=step == 1, exact=exact)
        explained = front.pre_activations(features).clamp(0.0, front.clip)
        history.append(float((allowed - explained).norm() / allowed.norm().clamp(min=1e-300)))
        settled = len(history) > 4 and history[-1] > 0.97 * min(history[:-3])
        if exact and (history[-1] < tolerance or settled):
            break
        exact = exact or history[-1] < 1e-3 or settled
    return FeatureSolution(features, history[-1], len(history))


def _fit_features(
    front: Front,
    features: Float[Tensor, "T F"],
    allowed: Float[Tensor, "C K U"],
    first: bool,
    exact: bool,
) -> Float[Tensor, "T F"]:
    """Least squares by conjugate gradients on units that are active, or wrongly predicted to be."""
    predicted = front.pre_activations(features)
    target = allowed.clamp(0.0, front.clip)
    floor = 3e-3 * float(allowed.square().mean().sqrt())
    active = (target > floor) if first else (target > floor) | (predicted > 0)
    active &= (target < front.clip) | (predicted < front.clip)
    misfit = torch.where(active, target - predicted, 0.0)
    slope = front.convolve_transposed(misfit, *features.shape)
    direction, energy = slope, float(slope.square().sum())
    # Far from the end the active units still change, and a rough fit is as good as a fine one.
    enough = energy * (1e-14 if exact else 1e-4)
    for _ in range(400 if exact else 30):
        if energy <= enough:
            break
        along = torch.where(active, front.convolve(direction), 0.0)
        length = energy / float(along.square().sum())
        features = features + length * direction
        misfit = misfit - length * along
        slope = front.convolve_transposed(misfit, *features.shape)
        before, energy = energy, float(slope.square().sum())
        direction = slope + energy / before * direction
    return features
