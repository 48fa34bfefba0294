"""What a recogniser minimises, and which utterances it can be asked to learn at all."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from overheard.errors import InputError
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.alphabet import minimum_frames
from overheard.speech.batching import Batch


def utterance_losses(model: nn.Module, batch: Batch, *, zero_infinity: bool = False) -> Float[Tensor, " N"]:
    """CTC negative log-likelihood of each utterance, nats, summed over its paths (Graves et al. 2006, eq. 14).

    CTC is given output lengths, never input lengths. It is computed in float32 whatever precision the model runs in:
    a sum over hundreds of frames has no use for 8 bits of mantissa.

    Args:
        model: the recogniser.
        batch: what was said.
        zero_infinity: an utterance that no path fits costs nothing and teaches nothing, instead of infinity and NaN.
    """
    logits, output_lengths = model(batch.features, batch.num_frames)
    log_probs = logits.float().log_softmax(dim=-1) if logits.element_size() < 4 else logits.log_softmax(dim=-1)
    return functional.ctc_loss(
        log_probs,
        batch.targets,
        output_lengths,
        batch.target_lengths,
        reduction="none",
        zero_infinity=zero_infinity,
    )


def recognition_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """`utterance_losses`, averaged over the N utterances."""
    return utterance_losses(model, batch).sum() / batch.size


def check_feasible(model: nn.Module, batch: Batch, names: Sequence[str]) -> None:
    """Every utterance must have a transcript and enough output frames for it.

    Raises:
        InputError: names the utterance and the shortage.
    """
    lengths = as_recogniser(model).output_lengths(batch.num_frames)
    for index, name in enumerate(names):
        reason = infeasible_reason(int(batch.num_frames[index]), int(lengths[index]), batch.utterance_labels(index))
        if reason is not None:
            raise InputError(name, reason, "leave it out: CTC has no path for it")


def infeasible_reason(num_frames: int, output_length: int, labels: Sequence[int]) -> str | None:
    """Why CTC cannot align these labels, or None when it can."""
    if not labels:
        return "empty transcript"
    needed = minimum_frames(labels)
    if output_length < needed:
        repeats = needed - len(labels)
        return (
            f"too short: {num_frames} frames give {max(output_length, 0)} output frames, "
            f"its transcript needs {needed} ({len(labels)} labels and {repeats} repeats)"
        )
    return None
