"""The gradient, with respect to the features, of the distance between a simulated update and the observed one.

Matching minimises D(g(x), g*) over features x, g(x) the update that the client would send for x. With v = dD/dg held
constant, grad_x D is a mixed second derivative of the client's loss L along v,

    grad_x D = d/d eps [ grad_x L(x; theta + eps v) ]  at eps = 0,

and three engines compute it:

    exact    double backward through recurrences and a CTC loss whose second derivatives are analytic, and through
             tiled convolutions
    frozen   central difference of grad_x L at theta +- eps v, with every kink kept on its side (`frozen_kinks`), for
             models that cannot be differentiated twice: cuDNN's recurrences, a user's own
    naive    double backward through torch's own recurrences and an automatically differentiated CTC scan: the
             reference, and what everyone else does

A client that takes K local steps of rate eta shares, divided by -eta, the sum of g_k = grad L(theta_{k-1}), with
theta_k = theta_{k-1} - eta g_k. Going back through the steps with the adjoint mu_k of theta_k, step k adds the same
kind of product along w = v - eta mu_k to grad_x D, and mu_{k-1} = mu_k + (Hessian of L at theta_{k-1}) w. One step is
kept in memory at a time, whatever K.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from overheard.attacks.gradient_matching.distances import Distance
from overheard.attacks.gradient_matching.frozen_kinks import frozen_kinks, recorded_kinks
from overheard.federation.update import Protocol
from overheard.recognition.ctc import ctc_loss
from overheard.recognition.ctc_scan import ctc_scan_loss
from overheard.recognition.recurrence import Engine as RecurrenceEngine
from overheard.recognition.recurrence import Recurrence, set_engine
from overheard.recognition.tiled_convolution import TiledConvolutions
from overheard.speech.batching import Batch

Engine = Literal["exact", "frozen", "naive"]

FROZEN_STEP = 0.005
"""Relative change of the weights in the central difference, in cube roots of the arithmetic's precision (where rounding
and curvature balance): 2.5e-5 in float32. Measured on small recognisers with random weights: errors of 1e-4 to 3e-3."""

DISAGREEMENT = 0.1
"""Relative difference between two engines on one batch from which on one of them must be wrong."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine, and why it was taken."""

    engine: Engine
    reason: str


@dataclass(frozen=True)
class MatchingStep:
    """What one evaluation yields.

    Attributes:
        loss: the client's, at the features; of its first local step.
        distance: D.
        gradient: of D by the features, zero behind each utterance's own frames.
        engine: which engine computed it, and why.
    """

    loss: float
    distance: float
    gradient: Float[Tensor, "T N F"]
    engine: EngineChoice


def grad_of_distance(
    model: nn.Module,
    batch: Batch,
    names: Sequence[str],
    distance: Distance,
    protocol: Protocol,
    engine: EngineChoice | None = None,
) -> MatchingStep:
    """D and its gradient by the features of a batch; the model is left as it was.

    Args:
        model: the public model, with the server's weights.
        batch: the features at which to evaluate, their lengths, and the labels believed to be said.
        names: parameters whose updates are compared, in the order that the distance expects.
        distance: from the observed update, which is of gradient sign and scale (`ClientUpdate.gradient`).
        protocol: how the client trains: mode, local steps and their rate.
        engine: which engine; None for `choose_engine`'s.
    """
    choice = engine or choose_engine(model, batch, protocol)
    with prepared(model, protocol, choice.engine):
        return _Client(model, batch, choice, protocol).step(names, distance)


@torch.no_grad()
def simulated_update(model: nn.Module, batch: Batch, names: Sequence[str], protocol: Protocol) -> list[Tensor]:
    """The update that the client would send for a batch, of gradient sign and scale, by first derivatives alone."""
    choice = EngineChoice("frozen", "first derivatives alone, with the native kernels")
    with prepared(model, protocol, choice.engine):
        return _Client(model, batch, choice, protocol).update(names)


def choose_engine(model: nn.Module, batch: Batch, protocol: Protocol) -> EngineChoice:
    """The fastest engine that is right for a model; a model of unknown parts is tried once on the batch."""
    foreign = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase) and not isinstance(module, Recurrence)
    ]
    rectified = any(
        isinstance(module, nn.RNN) and module.nonlinearity == "relu" and not isinstance(module, Recurrence)
        for module in model.modules()
    )
    if foreign and not (rectified and batch.features.device.type == "cpu"):
        found = f"{foreign[0]} is torch's own recurrence, whose double backward is missing or keeps a matrix per frame"
        return EngineChoice("frozen", f"{found}: finite differences with frozen kinks")
    if rectified:
        return EngineChoice("exact", f"{foreign[0]} rectifies inside its kernel, where kinks cannot be frozen")
    exact = EngineChoice("exact", "every part of the model can be differentiated twice")
    if all(type(module).__module__.split(".")[0] in ("torch", "overheard") for module in model.modules()):
        return exact
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    differences = EngineChoice("frozen", "")
    try:
        twice = grad_of_distance(model, batch, trained, _own_square, protocol, exact).gradient
    except (RuntimeError, NotImplementedError) as error:
        return replace(differences, reason=f"the model cannot be differentiated twice ({str(error).splitlines()[0]})")
    # Autograd may leave a function out that can be differentiated once only, and say nothing.
    reference = grad_of_distance(model, batch, trained, _own_square, protocol, differences).gradient
    gap = float((twice - reference).norm() / reference.norm().clamp(min=torch.finfo(reference.dtype).tiny))
    if gap > DISAGREEMENT:
        reason = f"double backward through the model is off by {gap:.0%}: it holds a function differentiable once only"
        return replace(differences, reason=reason)
    return exact


def _own_square(simulated: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
    """|g|^2 / 2, a distance that needs no observed update."""
    return 0.0, [each.clone() for each in simulated]


@dataclass(frozen=True)
class _Client:
    """A client that is being simulated; its model is prepared for the engine."""

    model: nn.Module
    batch: Batch
    choice: EngineChoice
    protocol: Protocol

    def step(self, names: Sequence[str], distance: Distance) -> MatchingStep:
        parameters = dict(self.model.named_parameters())
        chosen = [parameters[name] for name in names]
        features = self.batch.features.detach().requires_grad_()
        if self.protocol.local_steps == 1:
            loss, value, (gradient, *_) = self._product(features, chosen, distance, adjoint=False)
            return MatchingStep(loss, value, gradient, self.choice)
        return self._through_local_steps(features, parameters, set(names), distance)

    def update(self, names: Sequence[str]) -> list[Tensor]:
        parameters = dict(self.model.named_parameters())
        if self.protocol.local_steps == 1:
            return self._gradients(self.batch.features, [parameters[name] for name in names])[1]
        total, *_ = self._walk(self.batch.features, self._trained(parameters))
        return [total[name] for name in names]

    def _trained(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}

    def _walk(
        self, features: Tensor, trained: dict[str, nn.Parameter]
    ) -> tuple[dict[str, Tensor], list[list[Tensor]], float]:
        """The local steps forward: the sum of gradients, the weights before each step, the first loss."""
        rate = float(self.protocol.learning_rate or 0.0)
        weights: list[Tensor] = list(trained.values())
        before: list[list[Tensor]] = []
        total = [torch.zeros_like(weight) for weight in weights]
        first = math.nan
        with _restored(weights):
            for index in range(self.protocol.local_steps):
                before.append([weight.detach().clone() for weight in weights])
                loss, gradients = self._gradients(features, weights)
                first = loss if index == 0 else first
                with torch.no_grad():
                    torch._foreach_add_(total, gradients)
                    torch._foreach_sub_(weights, torch._foreach_mul(gradients, rate))
        return dict(zip(trained, total, strict=True)), before, first

    def _through_local_steps(
        self, features: Tensor, parameters: dict[str, nn.Parameter], names: set[str], distance: Distance
    ) -> MatchingStep:
        trained = self._trained(parameters)
        rate = float(self.protocol.learning_rate or 0.0)
        weights: list[Tensor] = list(trained.values())
        total, before, loss = self._walk(features.detach(), trained)
        value, slopes = distance([total[name] for name in trained if name in names])
        by_name = dict(zip([name for name in trained if name in names], slopes, strict=True))
        along = [by_name.get(name, torch.zeros_like(weight)) for name, weight in trained.items()]
        adjoint = [torch.zeros_like(weight) for weight in weights]
        gradient = torch.zeros_like(features)
        with _restored(weights):
            for weights_before in reversed(before):
                with torch.no_grad():
                    torch._foreach_copy_(weights, weights_before)
                direction = torch._foreach_sub(along, torch._foreach_mul(adjoint, rate))
                _, _, (by_features, *by_weights) = self._product(
                    features, weights, lambda _, direction=tuple(direction): (0.0, list(direction)), adjoint=True
                )
                gradient += by_features
                torch._foreach_add_(adjoint, by_weights)
        return MatchingStep(loss, value, gradient, self.choice)

    def _product(
        self, features: Tensor, weights: Sequence[Tensor], distance: Distance, adjoint: bool
    ) -> tuple[float, float, list[Tensor]]:
        """Loss, D, and the mixed second derivative along dD/dg by the features and, if asked, by the weights."""
        if self.choice.engine == "frozen":
            return self._difference(features, weights, distance, adjoint)
        loss = self._loss(features)
        gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
        with torch.no_grad():
            value, slopes = distance([each.detach() for each in gradients])
        joined = [(g, v) for g, v in zip(gradients, slopes, strict=True) if g.requires_grad]
        wanted = [features, *weights] if adjoint else [features]
        outputs, directions = [list(part) for part in zip(*joined, strict=True)]
        found = torch.autograd.grad(outputs, wanted, directions, materialize_grads=True)
        return loss.item(), value, list(found)

    def _difference(
        self, features: Tensor, weights: Sequence[Tensor], distance: Distance, adjoint: bool
    ) -> tuple[float, float, list[Tensor]]:
        with recorded_kinks() as patterns:
            loss = self._loss(features)
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        value, slopes = distance(gradients)
        wanted = [features, *weights] if adjoint else [features]
        change = _relative_length(slopes, weights)
        if change == 0.0:
            return loss.item(), value, [torch.zeros_like(each) for each in wanted]
        step = FROZEN_STEP * torch.finfo(features.dtype).eps ** (1 / 3) / change
        sides = []
        with _restored(weights) as kept:
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    torch._foreach_copy_(list(weights), torch._foreach_add(kept, slopes, alpha=sign * step))
                with frozen_kinks(patterns):
                    moved = self._loss(features)
                sides.append(torch.autograd.grad(moved, wanted, materialize_grads=True))
        return loss.item(), value, [(ahead - behind) / (2 * step) for ahead, behind in zip(*sides, strict=True)]

    def _gradients(self, features: Tensor, weights: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        with torch.enable_grad():
            loss = self._loss(features)
        return loss.item(), list(torch.autograd.grad(loss, weights, materialize_grads=True))

    def _loss(self, features: Tensor) -> Float[Tensor, ""]:
        """The client's loss (`federation.client.recognition_loss`) through the engine's CTC."""
        with TiledConvolutions() if self.choice.engine == "exact" else nullcontext():
            logits, lengths = self.model(features, self.batch.num_frames)
        log_probs = logits.log_softmax(dim=-1)
        targets, counts = self.batch.targets, self.batch.target_lengths
        if self.choice.engine == "exact":
            total = ctc_loss(log_probs, targets, lengths, counts, reduction="sum")
        elif self.choice.engine == "naive":
            total = ctc_scan_loss(log_probs, targets, lengths, counts).sum()
        else:
            # In float64: the difference of two gradients has the digits that float32 rounds away.
            total = functional.ctc_loss(log_probs.double(), targets, lengths, counts, reduction="sum")
        return (total / self.batch.size).to(features.dtype)


@torch.no_grad()
def _relative_length(slopes: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
    """Norm of a direction with each tensor relative to the weights it moves.

    A few small tensors often hold most of v, and a step that is small against all weights together would then be large
    for those. Tensors of zeros, such as fresh biases, count as if they had the root mean square of all weights.
    """
    squares = [float(weight.square().sum()) for weight in weights]
    count = sum(weight.numel() for weight in weights)
    floor = sum(squares) / count
    return math.sqrt(
        sum(
            float(slope.square().sum()) / max(square, floor * weight.numel(), torch.finfo(torch.float32).tiny)
            for slope, square, weight in zip(slopes, squares, weights, strict=True)
        )
    )


@contextmanager
def _restored(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields copies of the weights, and puts them back whatever happens."""
    kept = [weight.detach().clone() for weight in weights]
    try:
        yield kept
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), kept)


@contextmanager
def prepared(model: nn.Module, protocol: Protocol, engine: Engine) -> Iterator[None]:
    """The model in the client's mode with the engine's recurrences; modes and buffers are restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    engines: list[tuple[Recurrence, RecurrenceEngine]] = [
        (module, module.engine) for module in model.modules() if isinstance(module, Recurrence)
    ]
    buffers = [buffer.detach().clone() for buffer in model.buffers()] if protocol.mode == "train" else None
    model.train(protocol.mode == "train")
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            # cuDNN differentiates in training mode alone; without dropout between layers the mode changes nothing.
            module.training = module.dropout == 0.0
    set_engine(model, "analytic" if engine == "exact" else "native")
    try:
        with torch.enable_grad(), _native_kernels_off(engine), _without_dropout(protocol):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers() if buffers is not None else (), buffers or (), strict=True):
                buffer.copy_(value)
        for module, former in engines:
            set_engine(module, former)
        for module, training in modes.items():
            module.training = training


_DROPOUTS = {getattr(functional, name) for name in dir(functional) if "dropout" in name and not name.startswith("_")}


class _WithoutDropout(TorchFunctionMode):
    """Lets everything through as it is: which units the client left out is unknown."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def _without_dropout(protocol: Protocol) -> AbstractContextManager[object]:
    return _WithoutDropout() if protocol.mode == "train" else nullcontext()


def _native_kernels_off(engine: Engine) -> AbstractContextManager[object]:
    """cuDNN's recurrences have no double backward; torch's own kernels on a GPU do."""
    return nullcontext() if engine == "frozen" else torch.backends.cudnn.flags(enabled=False)
