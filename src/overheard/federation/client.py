"""What one client computes from its own speech: the update it would share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.federation.update import ClientUpdate, Kind, Mode, Protocol
from overheard.recognition.loss import recognition_loss
from overheard.speech.batching import Batch


@dataclass(frozen=True)
class ClientSettings:
    """How the client trains.

    Attributes:
        kind: share the gradient, or the weights' change after local SGD.
        mode: run normalisation and dropout as in evaluation or in training.
        local_steps: steps of SGD on the same batch before a delta is shared.
        learning_rate: of those steps.
        momentum: of those steps.
        weight_decay: of those steps, added to the gradient as in `torch.optim.SGD`.
        clip_norm: largest norm of the gradient of a step, over all parameters; None for any.
    """

    kind: Kind = "gradient"
    mode: Mode = "eval"
    local_steps: int = 1
    learning_rate: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None


def settings_of(protocol: Protocol) -> ClientSettings:
    """How the client trained, as far as the protocol says."""
    return ClientSettings(**{field.name: getattr(protocol, field.name) for field in fields(ClientSettings)})


def client_update(
    model: nn.Module,
    batch: Batch,
    settings: ClientSettings,
    model_name: str,
    weights: str,
    each_step: Callable[[float], None] | None = None,
    ahead_of_step: Callable[[], None] | None = None,
) -> ClientUpdate:
    """The update of one client; the model is left as it was.

    Args:
        model: the recogniser, with the weights the server sent.
        batch: the client's speech.
        settings: how the client trains.
        model_name: how the server names the model, kept in the update.
        weights: fingerprint of the server's weights, kept in the update.
        each_step: called behind the gradient of every local step and ahead of the step itself, with the factor by
            which that gradient was clipped; what it changes of the weights it has to put back.
        ahead_of_step: called ahead of that gradient, which is taken at the weights that it leaves behind; `each_step`
            has to put these back, too.

    Raises:
        InputError: the loss or a gradient is not finite.
    """
    protocol = Protocol(**asdict(settings), num_utterances=batch.size, model=model_name, weights=weights)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _left_as_found(model, settings):
        if settings.kind == "gradient":
            tensors, _ = _clipped(_gradient(model, batch, parameters), settings.clip_norm)
        else:
            start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            optimiser = torch.optim.SGD(
                parameters.values(),
                settings.learning_rate or 0.0,
                settings.momentum,
                weight_decay=settings.weight_decay,
            )
            for _ in range(settings.local_steps):
                if ahead_of_step is not None:
                    ahead_of_step()
                gradient, factor = _clipped(_gradient(model, batch, parameters), settings.clip_norm)
                if each_step is not None:
                    each_step(factor)
                for name, parameter in parameters.items():
                    parameter.grad = gradient[name]
                optimiser.step()
            optimiser.zero_grad()
            tensors = {name: parameter.detach() - start[name] for name, parameter in parameters.items()}
    return ClientUpdate(tensors, protocol)


def _gradient(model: nn.Module, batch: Batch, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    loss = recognition_loss(model, batch)
    if not bool(torch.isfinite(loss)):
        raise InputError("loss", loss.item(), "leave out utterances that are too short for their transcripts")
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    named = dict(zip(parameters, gradients, strict=True))
    for name, gradient in named.items():
        if not bool(torch.isfinite(gradient).all()):
            raise InputError("gradient", f"{name} holds NaN or infinity", "check the model's weights")
    return named


def _clipped(gradient: dict[str, Tensor], most: float | None) -> tuple[dict[str, Tensor], float]:
    """The same, scaled down where its norm over all parameters is larger, and the factor."""
    if most is None:
        return gradient, 1.0
    norm = float(torch.stack([each.double().norm() for each in gradient.values()]).norm())
    if norm <= most:
        return gradient, 1.0
    return {name: each * (most / norm) for name, each in gradient.items()}, most / norm


@contextmanager
def _left_as_found(model: nn.Module, settings: ClientSettings) -> Iterator[None]:
    """The mode, and in it every weight and buffer that training would change, restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    changes = settings.kind == "delta" or settings.mode == "train"
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()} if changes else None
    model.train(settings.mode == "train")
    try:
        yield
    finally:
        if kept is not None:
            model.load_state_dict(kept)
        for module, training in modes.items():
            module.training = training
