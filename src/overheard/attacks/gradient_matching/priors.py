"""What speech features look like whatever was said: terms that matching may add to its distance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overheard.attacks.gradient_matching.exposed_layer import ExposedLayer, layer_inputs
from overheard.attacks.observation import Observation
from overheard.errors import InputError
from overheard.recognition.recogniser import as_recogniser, frame_mask
from overheard.speech.features import FrontEndConfig

Term = Callable[[Tensor], Tensor]
"""Features (T, N, F) -> a number."""


DEFAULT_SPAN_RESIDUAL = 0.3
"""On two 1 s crops of real speech, 0.1 and 0.3 gained 2 to 4 dB over none with all else alike; 1 gained nothing."""


@dataclass(frozen=True)
class PriorConfig:
    """Weights of the terms, beside a distance of about 1 at the start; 0 leaves a term out.

    Attributes:
        total_variation: mean absolute step between neighbouring frames plus that between neighbouring features.
        statistics: squared error of mean and deviation: of each feature against the attacker's own speech where there
            is some, else of what the front end normalises to 0 and 1.
        span_residual: share of the energy of the first recurrent layer's inputs outside the span that its update gives
            away; None for `DEFAULT_SPAN_RESIDUAL` where it does, else 0.
    """

    total_variation: float = 0.0
    statistics: float = 0.0
    span_residual: float | None = None

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if weight is not None and not 0.0 <= weight < float("inf"):
                raise InputError(name, weight, "give a weight from 0 up")


def build_prior(
    config: PriorConfig, observation: Observation, layer: ExposedLayer | None, num_frames: Int[Tensor, " N"]
) -> Callable[[Float[Tensor, "T N F"]], tuple[float, Float[Tensor, "T N F"]]] | None:
    """The weighted sum of the terms and its gradient, as a function of the features; None without terms.

    Raises:
        InputError: a term for which this model, update or attacker lacks something.
    """
    front_end: FrontEndConfig = as_recogniser(observation.model).front_end
    longest = int(num_frames.max())
    mask = frame_mask(num_frames, longest)
    terms: list[tuple[float, Term]] = []
    if config.total_variation:
        terms.append((config.total_variation, lambda features: total_variation(features, mask)))
    if config.statistics:
        terms.append((config.statistics, _statistics_term(observation, front_end, mask)))
    span_weight = config.span_residual
    if span_weight is None:
        span_weight = 0.0 if layer is None else DEFAULT_SPAN_RESIDUAL
    if span_weight:
        if layer is None:
            remedy = "set the span residual to 0: the first layer's update does not show a span"
            raise InputError("span_residual", span_weight, remedy)
        exposed = layer
        protocol = observation.update.protocol
        terms.append(
            (
                span_weight,
                lambda features: exposed.residual(
                    layer_inputs(observation.model, exposed.name, features, num_frames, protocol)
                ),
            )
        )
    if not terms:
        return None

    def prior(features: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            total = torch.stack([weight * term(leaf) for weight, term in terms]).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return total.item(), gradient

    return prior


def total_variation(features: Float[Tensor, "T N F"], mask: Bool[Tensor, "T N"]) -> Float[Tensor, ""]:
    """Mean absolute difference between neighbours in time and between neighbours in frequency, summed."""
    both = mask[1:] & mask[:-1]
    over_time = (features[1:] - features[:-1]).abs().mean(2)[both].sum() / both.sum().clamp(min=1)
    return over_time + features.diff(dim=2).abs().mean(2)[mask].mean()


def _statistics_term(observation: Observation, front_end: FrontEndConfig, mask: Bool[Tensor, "T N"]) -> Term:
    parameter = next(observation.model.parameters())
    if observation.public_speech:
        speech = torch.cat([matrix.to(parameter) for matrix in observation.public_speech])
        mean, deviation = speech.mean(0), speech.std(0)
    elif front_end.normalise == "feature":
        mean, deviation = parameter.new_zeros(front_end.num_features), parameter.new_ones(front_end.num_features)
    elif front_end.normalise == "utterance":
        mean, deviation = parameter.new_zeros(1), parameter.new_ones(1)
    else:
        remedy = "give the attacker speech of its own, or set the weight to 0: this front end normalises nothing"
        raise InputError("statistics", "no statistics to expect", remedy)

    def term(features: Tensor) -> Tensor:
        errors = []
        for index in range(features.shape[1]):
            frames = features[mask[:, index], index]
            if len(mean) == 1:
                frames = frames.reshape(-1, 1)
            shift = (frames.mean(0) - mean) / deviation
            errors.append((shift.square() + (frames.std(0) / deviation - 1.0).square()).mean())
        return torch.stack(errors).mean()

    return term
