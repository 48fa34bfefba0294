"""`ClientUpdate`: the tensors one client shares with the server, and what the protocol says about them."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from overheard.errors import InputError
from overheard.recognition.configuration import config_from_file
from overheard.storage import read_tensors, write_tensors

Kind = Literal["gradient", "delta"]
Mode = Literal["eval", "train"]


@dataclass(frozen=True)
class Protocol:
    """What server and client agree on, and the server therefore knows.

    Attributes:
        kind: "gradient" of the loss, or "delta" = client - server after local training.
        num_utterances: N, which clients report so that the server can weight them.
        mode: whether normalisation and dropout ran as in evaluation or in training.
        local_steps: steps of local SGD behind a delta; 1 for a gradient.
        learning_rate: of local SGD; None for a gradient.
        model: the recogniser: JSON of its specification, a path, or module:function.
        weights: fingerprint of the weights the client started from.
        momentum: of local SGD.
        weight_decay: of local SGD, added to the gradient as in `torch.optim.SGD`.
        clip_norm: largest norm of a step's gradient over all parameters; None for any.
    """

    kind: Kind = "gradient"
    num_utterances: int = 1
    mode: Mode = "eval"
    local_steps: int = 1
    learning_rate: float | None = None
    model: str = ""
    weights: str = ""
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None

    @property
    def step_weights(self) -> tuple[float, ...]:
        """How often each step's gradient is in a delta over minus its rate: momentum repeats it, decay takes some off.

        SGD is linear in its gradients, so each weight is what becomes of a gradient of 1 in that step and of none in
        others: 1 in the last one.
        """
        found = []
        for step in range(self.local_steps):
            weight, velocity = 0.0, 1.0
            for _ in range(step, self.local_steps):
                weight -= (self.learning_rate or 0.0) * velocity
                velocity = self.momentum * velocity + self.weight_decay * weight
            found.append(-weight / self.learning_rate if self.learning_rate else 1.0)
        return tuple(found)

    def __post_init__(self) -> None:
        for name, value, choices in (("kind", self.kind, get_args(Kind)), ("mode", self.mode, get_args(Mode))):
            if value not in choices:
                raise InputError(name, repr(value), f"choose one of {', '.join(choices)}")
        for name, value in (("num_utterances", self.num_utterances), ("local_steps", self.local_steps)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(name, repr(value), "give a whole number from 1 up")
        if self.kind == "delta":
            rate = self.learning_rate
            if not isinstance(rate, int | float) or not math.isfinite(rate) or rate <= 0:
                raise InputError("learning_rate", repr(rate), "a delta needs the positive rate of local SGD")
        elif self.learning_rate is not None or self.local_steps != 1:
            raise InputError("kind", "a gradient with a learning rate or several steps", "share a delta instead")
        for name, value in (("momentum", self.momentum), ("weight_decay", self.weight_decay)):
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(name, repr(value), "give a finite number, not below 0")
        norm = self.clip_norm
        if norm is not None and (not isinstance(norm, int | float) or not 0 < norm < math.inf):
            raise InputError("clip_norm", repr(norm), "give a finite number above 0, or none")
        if self.kind == "gradient" and (self.momentum or self.weight_decay):
            raise InputError("kind", "a gradient with momentum or weight decay", "share a delta instead")
        for name, value in (("model", self.model), ("weights", self.weights)):
            if not isinstance(value, str):
                raise InputError(name, repr(value), "give text")


@dataclass(frozen=True)
class ClientUpdate:
    """Named tensors, one for each shared parameter, under the names of `model.named_parameters()`."""

    tensors: dict[str, Tensor]
    protocol: Protocol

    def gradient(self, name: str) -> Tensor:
        """One tensor in float64, of gradient sign and scale: a delta is divided by minus its learning rate."""
        scale = 1.0 if self.protocol.learning_rate is None else -1.0 / self.protocol.learning_rate
        return self.tensors[name].double() * scale

    def gradient_without_decay(self, name: str, start: Tensor) -> Tensor:
        """As `gradient`, without what weight decay moved: a sum of the steps' gradients, each with its own weight.

        SGD is linear in the weights, so decay's part of a delta is that of steps without a gradient: what becomes of 1
        under v <- momentum v + decay w, w <- w - rate v, times the weights at the start.

        Args:
            name: of the tensor.
            start: its weights before local training.
        """
        protocol = self.protocol
        if protocol.learning_rate is None or protocol.weight_decay == 0:
            return self.gradient(name)
        weight, velocity = 1.0, 0.0
        for _ in range(protocol.local_steps):
            velocity = protocol.momentum * velocity + protocol.weight_decay * weight
            weight -= protocol.learning_rate * velocity
        return self.gradient(name) + start.detach().to(self.tensors[name].device).double() * (
            (weight - 1) / protocol.learning_rate
        )

    def save(self, path: Path) -> None:
        """Write the update; what it holds is all that the server sees."""
        write_tensors(path, self.tensors, {"client_update": _as_json(self.protocol)})


def load_update(path: Path) -> ClientUpdate:
    """Read an update that came from outside.

    Raises:
        InputError: the file is missing, broken, or no client update.
    """
    tensors, metadata = read_tensors(path, "client update")
    if "client_update" not in metadata:
        raise InputError(str(path), "safetensors that hold no client update", "name a file written by overheard share")
    protocol = config_from_file(Protocol, metadata["client_update"], path, "client update")
    if not tensors:
        raise InputError(str(path), "no tensors", "share the update again")
    return ClientUpdate(tensors, protocol)


def _as_json(protocol: Protocol) -> dict[str, Any]:
    return {field.name: getattr(protocol, field.name) for field in fields(protocol)}


def check_fits(update: ClientUpdate, shapes: dict[str, tuple[int, ...]], source: str) -> None:
    """Refuse an update that is not of the model: the first difference is named.

    Args:
        update: tensors by parameter name; parameters the client does not share may be absent.
        shapes: shape of every parameter of the model.
        source: the file, for the message.

    Raises:
        InputError: a tensor that the model lacks, or one of another shape or of no floating type.
    """
    remedy = "name the model that the client trained with --model"
    for name, tensor in update.tensors.items():
        if name not in shapes:
            raise InputError(source, f"tensor {name!r}, which the model lacks", remedy)
        if tuple(tensor.shape) != shapes[name]:
            found = f"tensor {name!r} has shape {tuple(tensor.shape)}, the model's has {shapes[name]}"
            raise InputError(source, found, remedy)
        if not tensor.is_floating_point():
            raise InputError(source, f"tensor {name!r} has type {tensor.dtype}", "share floating-point tensors")
