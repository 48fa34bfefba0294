"""DP-SGD on a client (Abadi et al. 2016, algorithm 1): Opacus clips and adds the noise.

Per-utterance gradients come from one backward pass for each utterance, so that every recogniser will do, whatever its
layers, and memory holds two gradients at most.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lhotse import MonoCut
from torch import nn

from overheard.errors import InputError
from overheard.federation.local_settings import LocalSettings
from overheard.recognition.loss import utterance_losses
from overheard.training.data import FeatureDataset, Heard


def sampling_rate(utterances: int, settings: LocalSettings) -> float:
    """Probability with which a step takes an utterance."""
    return min(1.0, settings.batch_size / utterances)


def private_steps(
    model: nn.Module,
    cuts: Sequence[MonoCut],
    dataset: FeatureDataset,
    steps: int,
    settings: LocalSettings,
    generator: torch.Generator,
) -> tuple[list[Heard], list[float]]:
    """Train the model in place; every step draws each utterance independently with the sampling rate.

    Returns:
        What was heard, one utterance each, and its loss.

    Raises:
        InputError: Opacus is not installed, or a batch norm mixes the utterances of a batch.
    """
    try:
        from opacus.optimizers import DPOptimizer
    except ImportError as error:
        raise InputError("defence", "sample-dp without Opacus", "install overheard[federated]") from error
    if settings.mode == "train" and any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules()):
        remedy = 'give a model with norm "group": its statistics are those of one utterance'
        raise InputError("defence", "sample-dp with a batch norm, which mixes utterances", remedy)
    assert settings.noise_multiplier is not None
    parameters = [each for each in model.parameters() if each.requires_grad]
    rate = sampling_rate(len(cuts), settings)
    optimiser = DPOptimizer(
        torch.optim.SGD(parameters, lr=settings.learning_rate),
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=settings.sample_norm,
        expected_batch_size=max(1, round(rate * len(cuts))),
        generator=generator,
    )
    heard: list[Heard] = []
    losses: list[float] = []
    for _ in range(steps):
        drawn = torch.rand(len(cuts), generator=generator) < rate
        chosen = [cut for cut, taken in zip(cuts, drawn.tolist(), strict=True) if taken]
        for cut in chosen:
            each = dataset[[cut]]
            loss = _sample_gradient(model, each, parameters)
            if loss is not None:
                heard.append(each)
                losses.append(loss)
            optimiser.signal_skip_step(do_skip=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        # The step itself, with nothing more to add: noise comes in even where nobody was drawn.
        for parameter in parameters:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # pyright: ignore[reportAttributeAccessIssue]
        optimiser.signal_skip_step(do_skip=False)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return heard, losses


def _sample_gradient(model: nn.Module, heard: Heard, parameters: Sequence[nn.Parameter]) -> float | None:
    """Put one utterance's gradient where Opacus looks for it; zeros, and no loss, where it has none that is finite."""
    gradients: Sequence[torch.Tensor] = [torch.zeros_like(each) for each in parameters]
    loss = None
    if heard.batch is not None:
        device = parameters[0].device
        with _without_onednn():
            value = utterance_losses(model, heard.batch.to(device), zero_infinity=True).sum()
            found = torch.autograd.grad(value, list(parameters), materialize_grads=True)
        if all(bool(each.isfinite().all()) for each in found):
            gradients, loss = found, float(value.detach())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad_sample = gradient[None]  # pyright: ignore[reportAttributeAccessIssue]
    return loss


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN takes 20 times as long for the first convolution of one utterance as for that of four."""
    before = torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before[0])
