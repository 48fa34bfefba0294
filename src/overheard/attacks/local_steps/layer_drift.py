"""What moving weights did to the update of the layer behind the one that sees windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.certificates.resimulation import simulate_client
from overheard.attacks.local_steps.path import at_weights
from overheard.attacks.output_layer import run_output_layer
from overheard.attacks.words.text_lattice import Text
from overheard.federation.update import ClientUpdate


@dataclass(frozen=True)
class LayerDrift:
    """Of one candidate.

    Attributes:
        drift: (R, C) sum_k c_k sum_p g_pk (h_pk - h_p)', in the scale of a gradient; h_p is what the layer is shown by
            the mean weights ahead of it. Subtracted from the layer's update it leaves sum_p g_p h_p' with g_p the sum
            of c_k g_pk, as if those inputs had been the same at every step.
        means: of the weights ahead of it, by their names, over the path.
    """

    drift: Float[Tensor, "R C"]
    means: dict[str, Tensor]


def layer_drift(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    texts: Sequence[Text],
    ahead: str,
    layer: str,
) -> LayerDrift:
    """Run the client's steps on a candidate and watch two layers.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared, a delta of several steps.
        features: (T_i, F) of each utterance.
        texts: labels of each.
        ahead: name of the layer that sees windows.
        layer: name of the affine layer that is shown its activated outputs.
    """
    shown: list[Tensor] = []
    pulled: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shown.append(inputs[0].detach().flatten(0, -2).double())
        if output.requires_grad:
            output.register_hook(lambda gradient: pulled.append(gradient.flatten(0, -2).double()))

    weights = {f"{ahead}.{name}": each for name, each in model.get_submodule(ahead).named_parameters(recurse=False)}
    means = {name: torch.zeros_like(each, dtype=torch.float64) for name, each in weights.items()}
    shares = iter(update.protocol.step_weights)
    products: list[Tensor] = []
    gradients: list[Tensor] = []
    total = 0.0

    def each_step(factor: float) -> None:
        nonlocal total
        share = factor * next(shares)
        total += share
        gradient = share * pulled.pop()
        _add(products, gradient.T @ shown.pop())
        _add(gradients, gradient)
        for name, each in weights.items():
            means[name].add_(each.detach(), alpha=share)

    handle = model.get_submodule(layer).register_forward_hook(watch)
    try:
        simulate_client(model, update, features, texts, each_step)
        means = {name: each / total for name, each in means.items()}
        with at_weights(weights, means):
            run_output_layer(model, features, update.protocol.mode)
    finally:
        handle.remove()
    return LayerDrift(products[0] - gradients[0].T @ shown[0], means)


def _add(sums: list[Tensor], term: Tensor) -> None:
    sums[:] = [sums[0] + term] if sums else [term]
