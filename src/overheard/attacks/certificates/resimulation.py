"""The client's computation once more, on a candidate, and how far two updates are apart, tensor by tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.certificates.switched_kinks import switched_kinks, watched_kinks
from overheard.attacks.output_layer import OutputRun, run_output_layer, stored_format
from overheard.attacks.received_update import ReceivedUpdate
from overheard.attacks.words.text_lattice import Text
from overheard.federation.client import client_update, settings_of
from overheard.federation.update import ClientUpdate, Mode
from overheard.recognition.recurrence import Engine, Recurrence
from overheard.speech.batching import Batch, collate

AT_ONCE = 2**17
"""Numbers compared at once: what stays in a processor's cache."""


@dataclass(frozen=True)
class TracedRun:
    """A forward pass that can be run backwards.

    Attributes:
        run: what the output layer was shown and wrote.
        logits: (T_out, N, V), on autograd's graph.
        kinks: inputs of all piecewise linear functions, in the order of the calls.
    """

    run: OutputRun
    logits: Float[Tensor, "T N V"]
    kinks: list[Tensor]


def trace(
    model: nn.Module, features: Sequence[Float[Tensor, "_ F"]], mode: Mode, switched: list[Tensor] | None = None
) -> TracedRun | None:
    """Push features through the model as a client does; None where no linear layer writes the logits.

    Args:
        model: the public model.
        features: (T_i, F) of each utterance.
        mode: in which the client ran it.
        switched: kinks of a pass before this one: undecided units take the other side; see `switched_kinks`.
    """
    with _one_pass_engine(model), watched_kinks() if switched is None else switched_kinks(switched) as seen:
        run = run_output_layer(model, features, mode, traced=True)
    if run is None or run.traced is None:
        return None
    return TracedRun(run, run.traced, seen or [])


@contextmanager
def _one_pass_engine(model: nn.Module) -> Iterator[None]:
    """Recurrences sum their weights' gradient over all frames in one product, not frame by frame."""
    engines: list[tuple[Recurrence, Engine]] = [
        (module, module.engine) for module in model.modules() if isinstance(module, Recurrence)
    ]
    try:
        for module, _ in engines:
            module.engine = "analytic"
        yield
    finally:
        for module, engine in engines:
            module.engine = engine


def backwards(
    model: nn.Module, update: ClientUpdate, traced: TracedRun, shares: Sequence[Float[Tensor, "_ V"]]
) -> dict[str, Tensor]:
    """The update that follows from a gradient at the logits, N times `shares`, utterance by utterance."""
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    weight = torch.zeros_like(traced.logits)
    for index, share in enumerate(shares):
        weight[: len(share), index] = (share / len(shares)).to(weight)
    found = torch.autograd.grad(traced.logits, list(parameters.values()), weight, materialize_grads=True)
    shared = dict(zip(parameters, found, strict=True))
    rate = update.protocol.learning_rate
    if rate is not None:
        # As the client subtracts, rounding included.
        shared = {name: parameters[name].detach().sub(each, alpha=rate) for name, each in shared.items()}
        shared = {name: each - parameters[name].detach() for name, each in shared.items()}
    return _as_stored(shared, update)


def simulate(
    model: nn.Module, update: ClientUpdate, features: Sequence[Tensor], texts: Sequence[Text]
) -> dict[str, Tensor]:
    """What the client would have sent, in the number format in which the update came."""
    return _as_stored(simulate_client(model, update, features, texts), update)


def simulate_client(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Tensor],
    texts: Sequence[Text],
    each_step: Callable[[float], None] | None = None,
    ahead_of_step: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """What the client would have computed; `each_step` and `ahead_of_step` as in `client_update`."""
    protocol = update.protocol
    settings = settings_of(protocol)
    batch = batch_for(model, features, texts)
    with _one_pass_engine(model):
        return client_update(model, batch, settings, protocol.model, protocol.weights, each_step, ahead_of_step).tensors


def _as_stored(shared: dict[str, Tensor], update: ClientUpdate) -> dict[str, Tensor]:
    shared = {name: shared[name] for name in update.tensors}
    if isinstance(update, ReceivedUpdate):
        shared = update.as_received(shared)
    return {name: shared[name].to(stored_format(tensor)) for name, tensor in update.tensors.items()}


def batch_for(model: nn.Module, features: Sequence[Tensor], texts: Sequence[Text]) -> Batch:
    """A candidate as the client would have it."""
    parameter = next(model.parameters())
    return collate([matrix.detach().to("cpu", parameter.dtype) for matrix in features], texts).to(parameter.device)


def distance(one: Tensor, other: Tensor) -> float:
    """Frobenius norm of a difference."""
    pairs = zip(one.detach().flatten().split(AT_ONCE), other.detach().flatten().split(AT_ONCE), strict=True)
    return sum(_square(left.to(_wide(left)) - right.to(_wide(right))) for left, right in pairs) ** 0.5


def size(tensor: Tensor) -> float:
    """Frobenius norm."""
    return sum(_square(part.to(_wide(part))) for part in tensor.detach().flatten().split(AT_ONCE)) ** 0.5


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _square(part: Tensor) -> float:
    # Sums of so few float32 squares are right to 1e-5, and far faster than in float64.
    return float(part.dot(part))


def relative_distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |other| over all tensors of `other`."""
    above = sum(distance(one[name], tensor) ** 2 for name, tensor in other.items())
    below = sum(size(tensor) ** 2 for tensor in other.values())
    return (above / below) ** 0.5 if below > 0 else float(above > 0)
