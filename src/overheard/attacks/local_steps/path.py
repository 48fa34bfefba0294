"""The weights that a client passed through on its local steps, as a candidate tells them and its update ends them.

Running the client on a candidate gives a path that ends elsewhere than the client came to, in every direction that its
steps move fast in, whatever was said: an untrained recogniser learns the blank first. Where the client came to is
known, since a delta is the difference. So the path is run again, and at each step the weights are moved by the share of
the missing rest that belongs to it: the share of the way that the candidate had gone by then, tensor by tensor. What is
left are the steps' differences beside their common way, which a wrong text changes little.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.certificates.resimulation import simulate_client
from overheard.attacks.words.text_lattice import Text
from overheard.federation.update import ClientUpdate

MOST_KEPT = 2**31
"""Bytes of weights that are kept."""


def walk(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    texts: Sequence[Text],
    look: Callable[[float], None],
) -> dict[str, Tensor]:
    """Run the client on a candidate, once more where there is no room for the weights of all its steps.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared, a delta.
        features: (T_i, F) of each utterance.
        texts: labels of each.
        look: called at each step while the model has the weights that the client had there, with the share of that
            step's gradient in the delta over minus its rate.

    Returns:
        the delta that the candidate alone gives.
    """
    parameters = dict(model.named_parameters())
    start = {name: parameters[name].detach().clone() for name in update.tensors}
    kept: list[tuple[float, dict[str, Tensor]]] = []
    size = sum(each.numel() * each.element_size() for each in start.values())
    keeps = size * update.protocol.local_steps <= MOST_KEPT

    def keep(factor: float) -> None:
        kept.append((factor, {name: parameters[name].detach().clone() for name in start}))

    sent = simulate_client(model, update, features, texts, keep if keeps else None)
    rest = {name: tensor.to(sent[name]) - sent[name] for name, tensor in update.tensors.items()}
    ends = {name: float(sent[name].double().square().sum()) for name in rest}
    shares = iter(update.protocol.step_weights)

    def visit(factor: float, weights: Mapping[str, Tensor]) -> None:
        moved = {}
        for name, missing in rest.items():
            here = weights[name].detach()
            gone = float(torch.dot((here - start[name]).flatten(), sent[name].flatten())) / max(ends[name], 1e-300)
            moved[name] = here + gone * missing
        with at_weights(parameters, moved):
            look(factor * next(shares))

    for factor, weights in kept:
        visit(factor, weights)
    if not keeps:
        simulate_client(model, update, features, texts, lambda factor: visit(factor, parameters))
    return sent


@contextmanager
def at_weights(parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for a while."""
    own = {name: parameters[name].detach().clone() for name in others}
    with torch.no_grad():
        try:
            for name, tensor in others.items():
                parameters[name].copy_(tensor)
            yield
        finally:
            for name, tensor in own.items():
                parameters[name].copy_(tensor)
