"""One step of the optimiser, or the reason why there was none: all processes come to the same decision."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.recognition.loss import utterance_losses
from overheard.training.data import Heard
from overheard.training.devices import any_of, total
from overheard.training.settings import TrainingSettings

FaultKind = Literal["file", "loss", "gradient", "memory", "scaling", "elsewhere"]


@dataclass(frozen=True)
class Fault:
    """Why a step was skipped.

    Attributes:
        kind: "file" nothing in the batch could be read; "loss" or "gradient" is not finite; "memory" ran out;
            "scaling" means that 16-bit floats overflowed and the loss is scaled down, which is no failure;
            "elsewhere" another process had one of these.
        utterances: those at fault, or the whole batch where nobody can tell.
        reason: in words.
    """

    kind: FaultKind
    utterances: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Learnt:
    """A step that was taken.

    Attributes:
        loss: CTC loss averaged over the utterances of all processes, nats.
        gradient_norm: before clipping.
        utterances: in all processes.
    """

    loss: float
    gradient_norm: float
    utterances: int


def take_step(
    fabric: Fabric, model: _FabricModule, optimiser: Any, heard: Sequence[Heard], settings: TrainingSettings
) -> Learnt | Fault:
    """Learn from these batches together: one gradient, averaged over the utterances of all of them in all processes.

    A step that is skipped leaves weights, norms' statistics and optimiser as they were.

    Args:
        fabric: launched.
        model: set up by it.
        optimiser: set up by it.
        heard: the batches whose gradients are summed.
        settings: clipping and precision.

    Raises:
        InputError: memory ran out in the backward pass of one of several processes, which cannot be undone.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    utterances = total(fabric, sum(len(each.utterances) for each in heard))[0]
    optimiser.zero_grad(set_to_none=True)
    summed = 0.0
    for index, each in enumerate(heard):
        with fabric.no_backward_sync(model, enabled=index < len(heard) - 1):
            losses, fault = _losses(model, each, fabric.device)
            if any_of(fabric, fault is not None):
                _restore(model, optimiser, buffers)
                return fault or Fault("elsewhere", each.utterances, "another process had to skip its batch")
            assert losses is not None
            summed += float(losses.detach().sum())
            try:
                # DDP averages over processes; what is wanted is the sum over all utterances by their number.
                fabric.backward(losses.sum() * (fabric.world_size / utterances))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if fabric.world_size > 1:
                    found = "out of memory in the backward pass of one process"
                    raise InputError("batch_seconds", found, "give less audio to a batch") from error
                _restore(model, optimiser, buffers)
                return Fault("memory", each.utterances, "out of memory in the backward pass")
    norm = fabric.clip_gradients(model, optimiser, max_norm=settings.clip_norm, error_if_nonfinite=False)
    gradient_norm = float(norm) if norm is not None else 0.0
    if not math.isfinite(gradient_norm):
        names = tuple(name for each in heard for name in each.utterances)
        if settings.precision == "16":
            # The scaler skips the step itself and tries a smaller scale next time.
            optimiser.step()
            _restore(model, optimiser, buffers)
            return Fault("scaling", names, "16-bit floats overflowed; the loss is scaled down")
        _restore(model, optimiser, buffers)
        return Fault("gradient", names, f"the gradient's norm is {gradient_norm}")
    optimiser.step()
    return Learnt(total(fabric, summed)[0] / utterances, gradient_norm, int(utterances))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On the CPU torch raises a bare RuntimeError.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _losses(model: nn.Module, heard: Heard, device: torch.device) -> tuple[Tensor | None, Fault | None]:
    if heard.batch is None:
        names = tuple(problem.utterance for problem in heard.problems)
        return None, Fault("file", names, heard.problems[0].reason if heard.problems else "an empty batch")
    try:
        losses = utterance_losses(model, heard.batch.to(device), zero_infinity=True)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None, Fault("memory", heard.utterances, "out of memory in the forward pass")
    finite = losses.isfinite().tolist()
    if all(finite):
        return losses, None
    names = tuple(name for name, fine in zip(heard.utterances, finite, strict=True) if not fine)
    worst = next(loss for loss in losses.tolist() if not math.isfinite(loss))
    return None, Fault("loss", names, f"the loss is {worst}")


def _restore(model: nn.Module, optimiser: Any, buffers: dict[str, Tensor]) -> None:
    """A forward pass moves the running statistics of norms; a skipped step must not."""
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
