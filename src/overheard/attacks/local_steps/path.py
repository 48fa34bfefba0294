"""The weights that a client passed through on its local steps, as a candidate tells them and its update ends them.

Running the client on a candidate gives a path that ends elsewhere than the client came to, in every direction that its
steps move fast in, whatever was said: an untrained recogniser learns the blank first. Where the client came to is
known, since a delta is the difference. So the path is run again, and at each step the weights are moved by the share of
the missing rest that belongs to it: the share of the way that the candidate had gone by then, tensor by tensor. What is
left are the steps' differences beside their common way, which a wrong text changes little.

A candidate that is a few letters off may end farther from the client than one that says nothing: steps at its own
weights overshoot elsewhere. Then its gradients are taken along the path known so far, whose end is the client's, and
their sums are the next path (waveform relaxation, Lelarasmee et al. 1982). How far these end from where the client did
falls as texts come nearer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.certificates.resimulation import simulate_client
from overheard.attacks.words.text_lattice import Text
from overheard.federation.update import ClientUpdate

MOST_KEPT = 2**31
"""Bytes of weights that are kept of one path."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """A candidate's local steps.

    Attributes:
        sent: the delta that its gradients give.
        passed: the weights ahead of each step, and the factor by which its gradient was clipped; None where there was
            no room to keep them.
    """

    sent: Weights
    passed: list[tuple[float, Weights]] | None

    def apart(self, update: ClientUpdate, name: str) -> float:
        """How far a tensor's delta is from the client's, relative to that."""
        return float((self.sent[name] - update.tensors[name]).norm() / update.tensors[name].norm())


def take_steps(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    texts: Sequence[Text],
    along: list[Weights] | None = None,
) -> Steps:
    """Run the client on a candidate.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared, a delta.
        features: (T_i, F) of each utterance.
        texts: labels of each.
        along: path at whose weights gradients are taken, emptied on the way; None for the candidate's own.
    """
    parameters = {name: each for name, each in model.named_parameters() if name in update.tensors}
    size = sum(each.numel() * each.element_size() for each in parameters.values())
    if size * update.protocol.local_steps > MOST_KEPT:
        return Steps(simulate_client(model, update, features, texts), None)
    passed: list[tuple[float, Weights]] = []
    own: list[Weights] = []

    def leave() -> None:
        own.append({name: each.detach().clone() for name, each in parameters.items()})
        if along is not None:
            _set(parameters, along.pop(0))

    def come_back(factor: float) -> None:
        passed.append((factor, own.pop()))
        if along is not None:
            _set(parameters, passed[-1][1])

    return Steps(simulate_client(model, update, features, texts, come_back, leave), passed)


def revisit(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    texts: Sequence[Text],
    steps: Steps,
    look: Callable[[float], None],
) -> list[Weights] | None:
    """Go a candidate's steps once more, moved so that they end where the client's did.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared, a delta.
        features: (T_i, F) of each utterance.
        texts: labels of each.
        steps: of these; what was kept of them is emptied on the way.
        look: called at each step while the model has the weights that the client had there, with the share of that
            step's gradient in the delta over minus its rate.

    Returns:
        the path that was passed; None where there is no room to keep it.
    """
    parameters = dict(model.named_parameters())
    sent = steps.sent
    start = {name: parameters[name].detach().clone() for name in sent}
    rest = {name: tensor.to(sent[name]) - sent[name] for name, tensor in update.tensors.items()}
    ends = {name: float(sent[name].double().square().sum()) for name in rest}
    shares = iter(update.protocol.step_weights)

    def visit(factor: float, weights: Mapping[str, Tensor]) -> Weights:
        moved = {}
        for name, missing in rest.items():
            here = weights[name].detach()
            gone = float(torch.dot((here - start[name]).flatten(), sent[name].flatten())) / max(ends[name], 1e-300)
            moved[name] = here + gone * missing
        with at_weights(parameters, moved):
            look(factor * next(shares))
        return moved

    def visit_own(factor: float) -> None:
        visit(factor, parameters)

    if steps.passed is None:
        simulate_client(model, update, features, texts, visit_own)
        return None
    return [visit(*steps.passed.pop(0)) for _ in range(len(steps.passed))]


@contextmanager
def at_weights(parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for a while."""
    own = {name: parameters[name].detach().clone() for name in others}
    with torch.no_grad():
        try:
            _set(parameters, others)
            yield
        finally:
            _set(parameters, own)


@torch.no_grad()
def _set(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)
