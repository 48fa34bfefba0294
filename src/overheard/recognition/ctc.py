"""Connectionist temporal classification, differentiable twice: value, gradient, Hessian-vector product.

A. Graves et al., "Connectionist temporal classification", ICML 2006. The second derivative is the tangent of the
forward and backward messages (see `ctc_lattice`): all three are analytic, and no graph over frames is ever recorded.

The gradient is the derivative with respect to log_probs as they are given: minus the occupancy. PyTorch's own loss
returns softmax minus occupancy there, which presumes that log_probs came out of a log_softmax; behind a log_softmax
both give the same gradient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from overheard.errors import InputError
from overheard.recognition.ctc_lattice import (
    Chains,
    Lattice,
    build_chains,
    impossible,
    occupancy,
    occupancy_tangent,
    solve,
    solve_losses,
    sum_over_states,
)

REDUCTIONS = ("none", "mean", "sum")
Lengths: TypeAlias = Tensor | Sequence[int] | int


def ctc_loss(
    log_probs: Float[Tensor, "T N V"] | Float[Tensor, "T V"],
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Float[Tensor, "..."]:
    """CTC loss with the arguments, layouts and reductions of `torch.nn.functional.ctc_loss`.

    Differentiable twice with respect to log_probs. Computed in float64 whatever the input's type: second derivatives
    computed in float32 are off by percents at 500 frames. Results have the input's type.

    Args:
        log_probs: natural logarithms of probabilities, (T, N, V), or (T, V) for one utterance; -inf allowed.
        targets: labels, (N, L) padded with anything, or the N transcripts concatenated into one dimension; never blank.
        input_lengths: valid frames of each utterance, at most T, (N,).
        target_lengths: labels of each utterance, (N,).
        blank: index of the blank symbol.
        reduction: "none" for (N,) losses in nats, "sum", or "mean" of losses over their target lengths (at least 1).
        zero_infinity: give loss 0 and gradient 0 to transcripts that no path fits, not loss inf and gradient NaN.

    Returns:
        The losses reduced; without dimensions for one utterance.

    Raises:
        InputError: if shapes, types, lengths or labels do not fit together.
    """
    if reduction not in REDUCTIONS:
        raise InputError("reduction", repr(reduction), f"choose one of {', '.join(REDUCTIONS)}")
    problem = _check(log_probs, targets, input_lengths, target_lengths, blank)
    if torch.is_grad_enabled() and log_probs.requires_grad:
        losses = _CTC.apply(problem.log_probs, problem.chains, zero_infinity)
    else:
        losses = solve_losses(problem.log_probs, problem.chains)
        if zero_infinity:
            losses = losses.masked_fill(losses == torch.inf, 0.0)
    if reduction == "mean":
        losses = (losses / problem.target_lengths.clamp(min=1)).mean()
    elif reduction == "sum":
        losses = losses.sum()
    elif log_probs.dim() == 2:
        losses = losses.squeeze(0)
    return losses.to(log_probs.dtype)


class CTCLoss(nn.Module):
    """`ctc_loss` as a module, in place of `torch.nn.CTCLoss`.

    Args:
        blank: index of the blank symbol.
        reduction: "none", "mean" or "sum".
        zero_infinity: give loss 0 and gradient 0 to transcripts that no path fits.
    """

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> None:
        super().__init__()
        self.blank = blank
        self.reduction = reduction
        self.zero_infinity = zero_infinity

    def forward(
        self,
        log_probs: Float[Tensor, "T N V"] | Float[Tensor, "T V"],
        targets: Tensor,
        input_lengths: Lengths,
        target_lengths: Lengths,
    ) -> Float[Tensor, "..."]:
        """See `ctc_loss`."""
        return ctc_loss(
            log_probs, targets, input_lengths, target_lengths, self.blank, self.reduction, self.zero_infinity
        )

    def extra_repr(self) -> str:
        return f"blank={self.blank}, reduction={self.reduction!r}, zero_infinity={self.zero_infinity}"


@torch.no_grad()
def ctc_occupancy(
    log_probs: Float[Tensor, "T N V"],
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
) -> Float[Tensor, "T N V"]:
    """Posterior probability of each symbol at each frame, given the transcript (gamma of Graves et al., eq. 14).

    Not differentiable. To score many candidate transcripts of one utterance, expand its log_probs along N.

    Args:
        log_probs: as for `ctc_loss`, batched.
        targets: as for `ctc_loss`.
        input_lengths: as for `ctc_loss`.
        target_lengths: as for `ctc_loss`.
        blank: index of the blank symbol.

    Returns:
        Rows that sum to one over V at valid frames; zero at padded frames and for transcripts that no path fits.

    Raises:
        InputError: if shapes, types, lengths or labels do not fit together.
    """
    if log_probs.dim() != 3:
        raise InputError("log_probs", f"shape {tuple(log_probs.shape)}", "give (T, N, V)")
    problem = _check(log_probs, targets, input_lengths, target_lengths, blank)
    result = torch.zeros_like(log_probs, memory_format=torch.contiguous_format)
    for lattice in solve(problem.log_probs, problem.chains).lattices:
        states = occupancy(lattice)
        result[: len(states) - 1, lattice.rows] = sum_over_states(states, lattice.chains, log_probs.shape[2]).to(result)
    return result


class _CTC(torch.autograd.Function):
    """Losses (N,) in float64; its gradient is a function of its own, so that it can be differentiated."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, chains: Chains, zero_infinity: bool) -> Tensor:
        solution = solve(log_probs, chains)
        ctx.zero_infinity = zero_infinity
        # Saved as tensors rather than as attributes, so that they are freed once backward has run.
        ctx.save_for_backward(log_probs, *(t for lattice in solution.lattices for t in lattice.to_tensors()))
        if zero_infinity:
            return solution.losses.masked_fill(solution.losses == torch.inf, 0.0)
        return solution.losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, *saved = ctx.saved_tensors
        return _CTCGradient.apply(log_probs, grad_outputs[0], ctx.zero_infinity, *saved), None, None


class _CTCGradient(torch.autograd.Function):
    """`-occupancy * grad_losses`; its gradient is the Hessian-vector product."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, grad_losses: Tensor, zero_infinity: bool, *saved: Tensor) -> Tensor:
        ctx.zero_infinity = zero_infinity
        ctx.save_for_backward(log_probs, grad_losses, *saved)
        lattices = Lattice.from_tensors(saved)
        parts = [
            sum_over_states(_posterior(lattice, zero_infinity), lattice.chains, log_probs.shape[2])
            .mul_(-grad_losses[lattice.rows, None])
            .to(log_probs.dtype)
            for lattice in lattices
        ]
        return _merge(parts, lattices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        direction = grad_outputs[0]
        log_probs, grad_losses, *saved = ctx.saved_tensors
        lattices = Lattice.from_tensors(saved)
        parts, grad_grad_losses = [], torch.zeros_like(grad_losses)
        for lattice in lattices:
            posterior = _posterior(lattice, ctx.zero_infinity)
            along = direction if len(lattices) == 1 else direction[:, lattice.rows]
            change, slope = occupancy_tangent(lattice, posterior, along)
            product = sum_over_states(change, lattice.chains, log_probs.shape[2])
            parts.append(product.mul_(-grad_losses[lattice.rows, None]).to(log_probs.dtype))
            grad_grad_losses[lattice.rows] = -slope
        return _merge(parts, lattices), grad_grad_losses, None, *(None for _ in saved)


def _posterior(lattice: Lattice, zero_infinity: bool) -> Tensor:
    """Occupancy, NaN for impossible alignments unless they are to count as nothing."""
    posterior = occupancy(lattice)
    if zero_infinity or not lattice.in_logs:
        return posterior
    valid = torch.arange(len(posterior), device=posterior.device)[:, None] < lattice.chains.num_frames
    return posterior.masked_fill_((valid & impossible(lattice))[:, :, None], torch.nan)


def _merge(parts: list[Tensor], lattices: list[Lattice]) -> Tensor:
    """Puts the lattices' rows back into the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([lattice.rows for lattice in lattices])
    return torch.cat(parts, 1)[:, rows.argsort()]


class _Problem(NamedTuple):
    log_probs: Float[Tensor, "T_longest N V"]
    chains: Chains
    target_lengths: Int[Tensor, " N"]


def _check(log_probs: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, blank: int) -> _Problem:
    if log_probs.dim() not in (2, 3) or not log_probs.is_floating_point():
        found = f"shape {tuple(log_probs.shape)} of {log_probs.dtype}"
        raise InputError("log_probs", found, "give floating-point (T, N, V), or (T, V) for one utterance")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError("targets", str(targets.dtype), "give integer labels")
    if log_probs.dim() == 2:
        log_probs, targets = log_probs.unsqueeze(1), targets.reshape(1, -1)
    frames, num_rows, num_symbols = log_probs.shape
    if not 0 <= blank < num_symbols:
        raise InputError("blank", blank, f"give an index below the {num_symbols} symbols of log_probs")
    frame_counts = _check_lengths("input_lengths", input_lengths, num_rows, frames)
    if targets.dim() == 2 and len(targets) == num_rows:
        label_counts = _check_lengths("target_lengths", target_lengths, num_rows, targets.shape[1])
    elif targets.dim() == 1:
        label_counts = _check_lengths("target_lengths", target_lengths, num_rows, len(targets))
        if sum(label_counts) != len(targets):
            found = f"{len(targets)} concatenated labels for target_lengths that sum to {sum(label_counts)}"
            raise InputError("targets", found, "make the two agree")
    else:
        found = f"shape {tuple(targets.shape)} for {num_rows} utterances"
        raise InputError("targets", found, "give (N, L) padded or one dimension concatenated")

    device, longest = log_probs.device, max(label_counts, default=0)
    num_frames, num_labels = torch.tensor([frame_counts, label_counts], device=device)
    present = torch.arange(longest, device=device) < num_labels[:, None]
    targets = targets.to(device=device, dtype=torch.int64)
    labels = targets if targets.dim() == 1 else targets[:, :longest][present]
    wrong = (labels < 0) | (labels >= num_symbols) | (labels == blank)
    if bool(wrong.any()):
        found = f"label {int(labels[wrong][0])} in row {int(present.nonzero()[wrong][0, 0])}"
        raise InputError("targets", found, f"use labels from 0 to {num_symbols - 1} other than the blank, {blank}")
    padded = torch.full(present.shape, blank, dtype=torch.int64, device=device).masked_scatter_(present, labels)
    chains = build_chains(padded, num_frames, num_labels, blank)
    return _Problem(log_probs[: max(frame_counts, default=0)], chains, num_labels)


def _check_lengths(argument: str, lengths: Lengths, num_rows: int, largest: int) -> list[int]:
    values = torch.as_tensor(lengths)
    if values.numel() > 0 and (values.is_floating_point() or values.dtype == torch.bool):
        raise InputError(argument, str(values.dtype), "give integers")
    counts: list[int] = values.reshape(-1).tolist()
    if values.dim() > 1 or len(counts) != num_rows:
        raise InputError(argument, f"shape {tuple(values.shape)}", f"give one length for each of {num_rows} utterances")
    for row, count in enumerate(counts):
        if not 0 <= count <= largest:
            raise InputError(argument, f"{count} in row {row}", f"give lengths from 0 to {largest}")
    return [int(count) for count in counts]
