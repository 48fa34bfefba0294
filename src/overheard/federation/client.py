"""What one client computes from its own speech: the update it would share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
        local_steps: steps of plain SGD on the same batch before a delta is shared.
        learning_rate: of those steps.
    """

    kind: Kind = "gradient"
    mode: Mode = "eval"
    local_steps: int = 1
    learning_rate: float | None = None


def client_update(
    model: nn.Module, batch: Batch, settings: ClientSettings, model_name: str, weights: str
) -> ClientUpdate:
    """The update of one client; the model is left as it was.

    Args:
        model: the recogniser, with the weights the server sent.
        batch: the client's speech.
        settings: how the client trains.
        model_name: how the server names the model, kept in the update.
        weights: fingerprint of the server's weights, kept in the update.

    Raises:
        InputError: the loss or a gradient is not finite.
    """
    protocol = Protocol(
        settings.kind, batch.size, settings.mode, settings.local_steps, settings.learning_rate, model_name, weights
    )
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _left_as_found(model, settings):
        if settings.kind == "gradient":
            tensors = _gradient(model, batch, parameters)
        else:
            start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for _ in range(settings.local_steps):
                gradient = _gradient(model, batch, parameters)
                with torch.no_grad():
                    for name, parameter in parameters.items():
                        parameter.sub_(gradient[name], alpha=float(settings.learning_rate or 0.0))
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
