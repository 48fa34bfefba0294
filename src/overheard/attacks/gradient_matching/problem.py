"""What gradient matching solves: unknown features of known number and length, labels, an objective and its gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.attacks.gradient_matching.distances import Distance, DistanceConfig, build_distance
from overheard.attacks.gradient_matching.exposed_layer import ExposedLayer, find_exposed_layer, lengths_of_rank
from overheard.attacks.gradient_matching.priors import PriorConfig, build_prior
from overheard.attacks.gradient_matching.second_order import (
    EngineChoice,
    choose_engine,
    grad_of_distance,
    simulated_update,
)
from overheard.attacks.observation import Observation, Reconstruction
from overheard.errors import InputError
from overheard.federation.update import Protocol
from overheard.recognition.recogniser import as_recogniser, without_padding
from overheard.speech.alphabet import BLANK, minimum_frames
from overheard.speech.batching import Batch
from overheard.speech.features import standardise


@dataclass(frozen=True)
class Lengths:
    """Input frames of each utterance, and how they are known; or why they are not.

    Attributes:
        num_frames: one for each utterance; empty where unknown.
        source: where they come from, or the reason.
        layer: the layer whose inputs' span the update shows, if there is one.
    """

    num_frames: tuple[int, ...]
    source: str
    layer: ExposedLayer | None


@dataclass(frozen=True)
class Evaluation:
    """The objective at a point.

    Attributes:
        loss: the client's.
        distance: of the updates.
        objective: distance and priors.
        gradient: of the objective by the features.
    """

    loss: float
    distance: float
    objective: float
    gradient: Float[Tensor, "T N F"]


@dataclass(frozen=True)
class Problem:
    """Everything that stays the same during a run.

    Attributes:
        observation: what the attacker sees.
        names: parameters whose updates are matched.
        num_frames: of each utterance.
        engine: of the second derivatives, and why.
        distance: from the observed update.
        prior: further terms and their gradient.
    """

    observation: Observation
    names: tuple[str, ...]
    num_frames: Int[Tensor, " N"]
    engine: EngineChoice
    distance: Distance
    prior: Callable[[Tensor], tuple[float, Tensor]] | None

    @property
    def model(self) -> nn.Module:
        return self.observation.model

    @property
    def protocol(self) -> Protocol:
        return self.observation.update.protocol

    def batch(self, features: Float[Tensor, "T N F"], labels: list[list[int]]) -> Batch:
        return labelled_batch(features, self.num_frames, labels)

    def evaluate(self, features: Float[Tensor, "T N F"], labels: list[list[int]]) -> Evaluation:
        """Objective and gradient at a point."""
        step = grad_of_distance(
            self.model, self.batch(features, labels), self.names, self.distance, self.protocol, self.engine
        )
        if self.prior is None:
            return Evaluation(step.loss, step.distance, step.distance, step.gradient)
        value, gradient = self.prior(features)
        return Evaluation(step.loss, step.distance, step.distance + value, step.gradient + gradient)

    def distance_at(self, features: Float[Tensor, "T N F"], labels: list[list[int]]) -> float:
        """The distance alone, by first derivatives."""
        simulated = simulated_update(self.model, self.batch(features, labels), self.names, self.protocol)
        return self.distance(simulated)[0]

    def utterances(self, features: Float[Tensor, "T N F"]) -> list[Float[Tensor, "_ F"]]:
        """One matrix for each utterance, padding left out."""
        return [features[:length, index] for index, length in enumerate(self.num_frames.tolist())]


def build_problem(
    observation: Observation,
    parameters: Sequence[str],
    distance: DistanceConfig,
    priors: PriorConfig,
    engine: EngineChoice | None,
    lengths: Lengths,
) -> Problem:
    """Check what is asked for against what was observed.

    Args:
        observation: what the attacker sees.
        parameters: beginnings of names; none for all that were shared.
        distance: between updates.
        priors: further terms.
        engine: of the second derivatives; None for the automatic choice.
        lengths: of the utterances, known.

    Raises:
        InputError: no such parameters, a zero update, or a prior that lacks something.
    """
    model, update = observation.model, observation.update
    shared = [name for name, _ in model.named_parameters() if name in update.tensors]
    names = tuple(name for name in shared if not parameters or name.startswith(tuple(parameters)))
    for start in parameters:
        if not any(name.startswith(start) for name in shared):
            remedy = f"choose beginnings of {', '.join(shared[:4])} ..."
            raise InputError("parameters", f"no shared parameter's name begins with {start!r}", remedy)
    own = dict(model.named_parameters())
    target = [update.gradient(name).to(own[name]) for name in names]
    parameter = next(model.parameters())
    num_frames = torch.tensor(lengths.num_frames, device=parameter.device)
    if engine is None:
        features = parameter.new_zeros(max(lengths.num_frames), len(num_frames), _num_features(model)).normal_(
            generator=torch.Generator(parameter.device).manual_seed(0)
        )
        features = without_padding(features, num_frames)
        engine = choose_engine(model, labelled_batch(features, num_frames, [[1]] * len(num_frames)), update.protocol)
    prior = build_prior(priors, observation, lengths.layer, num_frames)
    return Problem(observation, names, num_frames, engine, build_distance(distance, target), prior)


def find_lengths(observation: Observation, start: Reconstruction | None) -> Lengths:
    """From prior knowledge, from another attack's reconstruction, or from the rank of the first layer's update."""
    count = observation.update.protocol.num_utterances
    layer = find_exposed_layer(observation)
    if observation.prior.num_frames is not None:
        return Lengths(observation.prior.num_frames, "prior knowledge", layer)
    if start is not None and len(start.features) == count:
        return Lengths(tuple(len(matrix) for matrix in start.features), f"the reconstruction of {start.attack}", layer)
    if layer is None:
        reason = "the lengths are unknown and no first layer's update has a clear rank to tell them"
        return Lengths((), reason, None)
    if count > 1 or observation.update.protocol.local_steps > 1:
        reason = f"the rank of {layer.name} tells the frames of one utterance in one step, not of {count} in several"
        return Lengths((), reason, layer)
    found = lengths_of_rank(observation, layer)
    if not found:
        return Lengths((), f"no number of frames shows {layer.name} {layer.rank} rows", layer)
    # The longest: a frame too many costs little, a frame too few leaves speech out.
    return Lengths((found[-1],), f"rank {layer.rank} of {layer.name} means {found[0]} to {found[-1]} frames", layer)


def labelled_batch(features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"], labels: list[list[int]]) -> Batch:
    """A batch on the features' device."""
    counts = torch.tensor([len(text) for text in labels], device=features.device)
    targets = torch.full((len(labels), max(1, int(counts.max()))), BLANK, device=features.device)
    for row, text in zip(targets, labels, strict=True):
        row[: len(text)] = torch.tensor(text, device=features.device)
    return Batch(features, num_frames, targets, counts)


def too_long(model: nn.Module, num_frames: Int[Tensor, " N"], labels: list[list[int]]) -> str | None:
    """Why CTC cannot align some labels, or None."""
    lengths = as_recogniser(model).output_lengths(num_frames).tolist()
    for length, text in zip(lengths, labels, strict=True):
        if not text or minimum_frames(text) > length:
            return f"a transcript of {len(text)} labels does not fit {length} output frames"
    return None


def standardised(model: nn.Module, matrix: Float[Tensor, "T F"]) -> Float[Tensor, "T F"]:
    """Features at the scale that the front end gives all of them; cosine matching loses it."""
    kind = as_recogniser(model).front_end.normalise
    return matrix if kind == "none" else standardise(matrix, over=(-2, -1) if kind == "utterance" else (-2,))


def initial_features(
    problem: Problem, kind: str, scale: float, start: Reconstruction | None, generator: torch.Generator
) -> Float[Tensor, "T N F"]:
    """Random normal, zeros, or another attack's features, cut or padded to the lengths; zero in the padding."""
    parameter = next(problem.model.parameters())
    shape = (int(problem.num_frames.max()), len(problem.num_frames), _num_features(problem.model))
    features = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    if start is not None:
        for index, matrix in enumerate(start.features):
            features[: len(matrix), index] = matrix[: shape[0]].to(features)
    elif kind == "random":
        features = scale * torch.randn(shape, dtype=features.dtype, device=features.device, generator=generator)
    return without_padding(features, problem.num_frames)


def _num_features(model: nn.Module) -> int:
    return as_recogniser(model).front_end.num_features
