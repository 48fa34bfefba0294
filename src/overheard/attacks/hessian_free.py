"""The zeroth-order attack of Dang et al. (ICASSP 2022, arXiv 2104.07815): the baseline that matching has to beat.

Each iteration draws random unit directions, each over the features of one random frame, keeps those along which a step
lowers the cosine distance of the output layer's update, and takes all of these steps at once. Settings and the rule
for the step size are those published with the paper: start uniform in (-1, 1), 127 directions, step 1, halved to 0.25
whenever 2,500 iterations lowered the distance by less than 5 %, the end when it cannot be halved any more or after
50,000 iterations. Transcript and length are given.
"""

import time
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.gradient_matching.problem import too_long
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.output_layer import OutputRun, output_gradient, run_output_layer
from overheard.errors import InputError
from overheard.federation.update import Mode
from overheard.recognition.ctc import ctc_occupancy
from overheard.recognition.recogniser import as_recogniser


@dataclass(frozen=True)
class HessianFreeConfig:
    """Settings; the defaults are the paper's.

    Attributes:
        directions: drawn in each iteration.
        step: at the start.
        least_step: at which halving stops.
        plateau: iterations over which progress is judged.
        least_progress: relative fall of the distance over a plateau below which the step is halved.
        iterations: at most.
        seconds: process CPU time, s; None for no limit.
    """

    directions: int = 127
    step: float = 1.0
    least_step: float = 0.25
    plateau: int = 2500
    least_progress: float = 0.05
    iterations: int = 50_000
    seconds: float | None = None

    def __post_init__(self) -> None:
        if min(self.directions, self.plateau, self.iterations) < 1:
            raise InputError("directions, plateau, iterations", "one below 1", "give whole numbers from 1 up")
        if not 0 < self.least_step <= self.step:
            raise InputError("step", (self.step, self.least_step), "give a step above 0 and none below the least")


@torch.no_grad()
def attack(observation: Observation, config: HessianFreeConfig, *, generator: torch.Generator) -> Reconstruction:
    """One utterance whose transcript and length are declared prior knowledge, from the output layer's update."""
    model, prior, protocol = observation.model, observation.prior, observation.update.protocol
    settings = asdict(config)

    def failed(reason: str) -> Reconstruction:
        return Reconstruction("hessian_free", reason=reason, settings=settings)

    if prior.transcripts is None or prior.num_frames is None:
        return failed("this attack is given transcript and length; declare both as prior knowledge")
    if protocol.num_utterances > 1:
        return failed(f"the update is of {protocol.num_utterances} utterances; this attack takes one")
    parameter = next(model.parameters())
    labels = as_recogniser(model).alphabet.encode(prior.transcripts[0])
    num_frames = torch.tensor(prior.num_frames, device=parameter.device)
    num_features: int = as_recogniser(model).front_end.num_features
    reason = too_long(model, num_frames, [labels])
    if reason is not None:
        return failed(reason)
    shape = (int(num_frames[0]), num_features)
    features = 2.0 * torch.rand(shape, generator=generator, dtype=parameter.dtype, device=parameter.device) - 1.0
    run = run_output_layer(model, [features], protocol.mode)
    target = None if run is None else output_gradient(observation.update, run.layer)
    if run is None or target is None:
        return failed("no linear layer writes the logits and shares its update")
    search = _Search(model, protocol.mode, labels, target / target.norm())
    return _descend(search, config, features, prior.transcripts, generator)


@dataclass(frozen=True)
class _Search:
    model: nn.Module
    mode: Mode
    labels: list[int]
    target: Float[Tensor, "V C"]

    def distances(self, points: list[Float[Tensor, "T F"]]) -> Float[Tensor, " K"]:
        """Cosine distance of the output layer's update at each point."""
        # Batch norm in training would mix the points.
        groups = [points] if self.mode == "eval" else [[point] for point in points]
        found = []
        for group in groups:
            run = run_output_layer(self.model, group, self.mode)
            assert run is not None
            found.append(self._distances(run))
        return torch.cat(found)

    def _distances(self, run: OutputRun) -> Float[Tensor, " K"]:
        count = len(run.logits)
        log_probs = torch.stack(run.logits, dim=1).log_softmax(2)  # (T, K, V)
        targets = torch.tensor([self.labels] * count, device=log_probs.device)
        occupancy = ctc_occupancy(log_probs, targets, [len(log_probs)] * count, [len(self.labels)] * count)
        residual = log_probs.exp() - occupancy
        update = torch.einsum("tkv,tkc->kvc", residual, torch.stack(run.inputs, dim=1))
        if self.target.shape[1] > update.shape[2]:
            update = torch.cat([update, residual.sum(0)[:, :, None]], dim=2)
        return 1.0 - (update * self.target).sum((1, 2)) / update.flatten(1).norm(dim=1)


def _descend(
    search: _Search,
    config: HessianFreeConfig,
    features: Float[Tensor, "T F"],
    transcripts: tuple[str, ...],
    generator: torch.Generator,
) -> Reconstruction:
    frames, num_features = features.shape
    step, since, begun = config.step, [], time.process_time()
    best, least, iteration = features, float("inf"), 0
    while iteration < config.iterations:
        if config.seconds is not None and time.process_time() - begun >= config.seconds:
            break
        where = torch.randint(frames, (config.directions,), generator=generator, device=features.device)
        along = torch.randn(
            config.directions, num_features, generator=generator, dtype=features.dtype, device=features.device
        )
        along = along / along.norm(dim=1, keepdim=True)
        points = [features, *(_moved(features, int(at), step * way) for at, way in zip(where, along, strict=True))]
        distances = search.distances(points)
        iteration += 1
        here = float(distances[0])
        if here < least:
            best, least = features, here
        accepted = distances[1:] < distances[0]
        features = features.index_add(0, where[accepted], step * along[accepted])
        since.append(here)
        if len(since) > config.plateau and since[-1] >= (1.0 - config.least_progress) * since[-1 - config.plateau]:
            if step <= config.least_step:
                break
            step, since = max(config.least_step, step / 2), []
    return Reconstruction(
        attack="hessian_free",
        features=(best.clone(),),
        transcripts=transcripts,
        settings=asdict(config),
        diagnostics={
            "distance": least,
            "iterations": iteration,
            "step": step,
            "cpu_seconds": time.process_time() - begun,
        },
    )


def _moved(features: Float[Tensor, "T F"], frame: int, change: Float[Tensor, " F"]) -> Float[Tensor, "T F"]:
    moved = features.clone()
    moved[frame] += change
    return moved
