"""What a client does in a round: the server's weights in, an update out, its speech kept."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lhotse import MonoCut
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.federation.clients import ClientSpeech
from overheard.federation.local_settings import LocalSettings
from overheard.federation.private_sgd import private_steps, sampling_rate
from overheard.federation.randomness import noise_generator
from overheard.federation.update import ClientUpdate, Protocol
from overheard.recognition.loss import utterance_losses
from overheard.recognition.recogniser import seeded
from overheard.recognition.recurrence import set_engine
from overheard.speech.augmentation import AugmentationConfig, generator_for
from overheard.speech.corpus import Problem
from overheard.training.data import FeatureDataset, Heard
from overheard.training.devices import Devices, launch
from overheard.training.schedule import build_optimiser
from overheard.training.settings import TrainingSettings
from overheard.training.step import Fault, take_step


@dataclass(frozen=True)
class Round:
    """What a client is told beside the weights.

    Attributes:
        number: of the round, from 1 up.
        seed: of the whole run.
        model: how the update names the recogniser.
        weights: fingerprint of the server's weights.
        augmentation: what is changed in what the model hears; None for nothing.
        device: where to compute.
        secret: noise comes from the system and not from the seed.
    """

    number: int = 1
    seed: int = 0
    model: str = ""
    weights: str = ""
    augmentation: AugmentationConfig | None = None
    device: str = "cpu"
    secret: bool = False


@dataclass(frozen=True)
class LocalOutcome:
    """What came of a round on one client.

    Attributes:
        update: before any defence of the update.
        buffers: running statistics of norms after training.
        loss: CTC loss averaged over the utterances heard, nats, each before the step it was part of.
        utterances: heard, counted each time.
        frames: input frames of those.
        steps: taken.
        rate: probability with which a step of DP-SGD takes an utterance; None without DP-SGD.
        heard: every batch in order; this is the truth, and never leaves the client.
        problems: utterances left out.
    """

    update: ClientUpdate
    buffers: dict[str, Tensor]
    loss: float
    utterances: int
    frames: int
    steps: int
    rate: float | None
    heard: tuple[Heard, ...]
    problems: tuple[Problem, ...]

    def weight(self, settings: LocalSettings) -> float:
        """Of this client in the mean."""
        return float({"utterances": self.utterances, "frames": self.frames, "equal": 1}[settings.weighting])


def train_locally(model: nn.Module, speech: ClientSpeech, settings: LocalSettings, told: Round) -> LocalOutcome:
    """Train the model on a client's speech; the model is changed.

    Everything drawn depends on the run's seed, the round and the client's name alone, secret noise excepted.

    Args:
        model: with the server's weights.
        speech: the client's.
        settings: how to train.
        told: the round.

    Raises:
        InputError: not one step could be taken, with the reason; nothing to train; a setting that the model lacks.
    """
    generator = generator_for(told.seed, told.number, f"client {speech.name}")
    prepare(model.to(told.device), settings)
    parameters = trainable(model, settings)
    dataset = FeatureDataset(model, told.augmentation, told.seed)
    dataset.epoch = told.number
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    plan = list(batches(speech.cuts, settings, generator))
    with seeded(int(torch.randint(2**31, (), generator=generator))):
        if settings.kind == "gradient":
            heard, losses, tensors = _gradient(model, parameters, dataset[plan[0]], speech.name)
        else:
            heard, losses = _steps(model, speech, plan, dataset, start, settings, told)
            tensors = {name: parameter.detach() - start[name] for name, parameter in parameters.items()}
    utterances = [name for each in heard for name in each.utterances]
    gradient = settings.kind == "gradient"
    steps = 1 if gradient else len(plan)
    protocol = Protocol(
        kind=settings.kind,
        num_utterances=max(1, len(set(utterances))),
        mode=settings.mode,
        local_steps=steps,
        learning_rate=None if gradient else settings.learning_rate,
        model=told.model,
        weights=told.weights,
    )
    return LocalOutcome(
        update=ClientUpdate({name: tensor.cpu() for name, tensor in tensors.items()}, protocol),
        buffers={name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()},
        loss=sum(losses) / max(1, len(losses)),
        utterances=len(utterances),
        frames=sum(int(each.batch.num_frames.sum()) for each in heard if each.batch is not None),
        steps=steps,
        rate=None if settings.noise_multiplier is None else sampling_rate(len(speech.cuts), settings),
        heard=tuple(heard),
        problems=tuple(problem for each in heard for problem in each.problems),
    )


def prepare(model: nn.Module, settings: LocalSettings) -> None:
    """Mode, dropout, frozen layers and recurrences as the settings say.

    Raises:
        InputError: dropout for a model that has none.
    """
    if settings.dropout is not None:
        config: Any = model.config
        if not hasattr(config, "dropout"):
            raise InputError(
                "dropout", settings.dropout, f"{type(model).__name__} leaves out no units; drop the defence"
            )
        model.config = replace(config, dropout=settings.dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(settings.frozen))
    model.train(settings.mode == "train")
    set_engine(model, "analytic" if settings.noise_multiplier is None else "native")


def trainable(model: nn.Module, settings: LocalSettings) -> dict[str, nn.Parameter]:
    """The parameters that a client trains and sends, by name.

    Raises:
        InputError: all are frozen, or a name to freeze begins no parameter's.
    """
    named = dict(model.named_parameters())
    kept = {name: parameter for name, parameter in named.items() if not name.startswith(settings.frozen)}
    if not kept or (settings.frozen and len(kept) == len(named)):
        found = f"{list(settings.frozen)} stand for {len(named) - len(kept)} of {len(named)} parameters"
        raise InputError("frozen", found, f"give beginnings of names such as {next(iter(named))}")
    return kept


def batches(cuts: Sequence[MonoCut], settings: LocalSettings, generator: torch.Generator) -> Iterator[list[MonoCut]]:
    """The utterances of every step: whole passes in an order drawn anew, cut into batches; one batch for a gradient."""
    steps = 1 if settings.kind == "gradient" else settings.steps
    epochs = 0
    taken = 0
    while True:
        order = torch.randperm(len(cuts), generator=generator).tolist()
        for at in range(0, len(order), settings.batch_size):
            # By id: a client whose speech is one batch takes the same batch in every step.
            yield [cuts[index] for index in sorted(order[at : at + settings.batch_size])]
            taken += 1
            if taken == steps:
                return
        epochs += 1
        if steps is None and epochs == settings.epochs:
            return


def _gradient(
    model: nn.Module, parameters: dict[str, nn.Parameter], heard: Heard, client: str
) -> tuple[list[Heard], list[float], dict[str, Tensor]]:
    if heard.batch is None:
        raise InputError(client, heard.problems[0].reason, heard.problems[0].remedy)
    losses = utterance_losses(model, heard.batch.to(next(model.parameters()).device), zero_infinity=True)
    gradients = torch.autograd.grad(losses.mean(), list(parameters.values()), materialize_grads=True)
    return [heard], losses.tolist(), dict(zip(parameters, gradients, strict=True))


def _steps(
    model: nn.Module,
    speech: ClientSpeech,
    plan: Sequence[Iterable[MonoCut]],
    dataset: FeatureDataset,
    start: dict[str, Tensor],
    settings: LocalSettings,
    told: Round,
) -> tuple[list[Heard], list[float]]:
    if settings.noise_multiplier is not None:
        generator = noise_generator(told.seed, told.number, f"DP-SGD of {speech.name}", told.secret)
        return private_steps(model, speech.cuts, dataset, len(plan), settings, generator)
    fabric = launch(Devices(str(next(model.parameters()).device)), "32")
    clipping = TrainingSettings(
        optimiser="adamw", learning_rate=settings.learning_rate, weight_decay=0.0, clip_norm=settings.clip_norm
    )
    adamw = settings.optimiser == "adamw"
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = build_optimiser(model, clipping) if adamw else torch.optim.SGD(moved, lr=settings.learning_rate)
    if settings.proximal > 0:
        optimiser.register_step_pre_hook(lambda *_: _pull(model, start, settings.proximal))
    wrapped, stepper = fabric.setup(model, optimiser)
    heard: list[Heard] = []
    losses: list[float] = []
    fault: Fault | None = None
    for cuts in plan:
        each = dataset[cuts]
        outcome = take_step(fabric, wrapped, stepper, [each], clipping)
        if isinstance(outcome, Fault):
            fault = outcome
            continue
        heard.append(each)
        losses += [outcome.loss] * len(each.utterances)
    if not heard:
        reason = fault.reason if fault is not None else "no utterance"
        raise InputError(speech.name, f"not one step could be taken: {reason}", "look at its speech and the weights")
    return heard, losses


def _pull(model: nn.Module, start: dict[str, Tensor], weight: float) -> None:
    """Gradient of mu / 2 |w - w_server|^2."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start[name], alpha=weight)
