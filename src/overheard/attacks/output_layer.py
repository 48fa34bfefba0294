"""What the output layer's update says about every output frame, once the features are known.

With known features every input h_t of the output layer is known, and its update is

    dW = sum_t r_t h_t^T,   db = sum_t r_t,   r_t = (p_t - gamma_t) / N,

p_t the softmax and gamma_t the CTC occupancy of frame t (Graves et al. 2006, eq. 16). The frames of all N utterances
are the rows of one matrix A = [H, 1] (P, C), so least squares gives every r_t, hence every occupancy, at once where
P <= C. Beyond that the update determines r up to the null space of A^T: that part enters as uncertainty, and shrinks
as the transcripts of other utterances are found and their share is subtracted.

What the update holds outside the row space of A cannot come from any r. Its size is the rounding of the update,
whatever caused it: float32 sums, the subtraction behind a delta, half precision.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from overheard.federation.update import ClientUpdate, Mode

FLOAT32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class OutputRun:
    """A forward pass as the client made it, utterance by utterance and without padding.

    Attributes:
        layer: name of the linear layer that writes the logits.
        inputs: (T_out, C) what it was shown, float64.
        logits: (T_out, V) float64 of the model's own precision.
        repeatable: a second pass gives the same; False with dropout in training.
        traced: (T_out, N, V) logits of all on autograd's graph, where that was asked for.
    """

    layer: str
    inputs: tuple[Float[Tensor, "_ C"], ...]
    logits: tuple[Float[Tensor, "_ V"], ...]
    repeatable: bool
    traced: Float[Tensor, "T N V"] | None = None


@dataclass(frozen=True)
class FrameEvidence:
    """What the update says about one utterance's occupancy.

    Attributes:
        log_probs: (T_out, V) of the model.
        occupancy: (T_out, V) least-squares estimate of gamma; its rows are no exact distributions.
        smoothed: (T_out, V) the same, the model's own probabilities where the update tells little.
        whitener: (T_out, T_out), symmetric: 1 in directions of time where the estimate is good, below 1 where its
            expected error nears or passes the size of the signal. Products with it are in units of occupancy.
        noise: expected Frobenius norm of the whitened error of `occupancy`.
        directions: (T_out, T_out) of time, one a column, in which errors are independent.
        variances: of the error of `occupancy` along each.
        rows: size of each symbol's error, relative to all of them (root mean square 1).
        chains: behind several local steps, the share of each in the update and the model's log-probabilities at it, the
            mean of whose probabilities `log_probs` then holds; empty for one step.
    """

    log_probs: Float[Tensor, "T V"]
    occupancy: Float[Tensor, "T V"]
    smoothed: Float[Tensor, "T V"]
    whitener: Float[Tensor, "T T"]
    noise: float
    directions: Float[Tensor, "T T"]
    variances: Float[Tensor, " T"]
    rows: Float[Tensor, " V"]
    chains: tuple[tuple[float, Float[Tensor, "T V"]], ...] = ()

    @property
    def weighted(self) -> tuple[tuple[float, Float[Tensor, "T V"]], ...]:
        """Shares and log-probabilities over which a text's occupancies are summed."""
        return self.chains or ((1.0, self.log_probs),)


@contextmanager
def in_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Run as the client did; modes, buffers and torch's generator are afterwards as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train(mode == "train")
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for buffer, before in buffers:
            if not torch.equal(buffer, before):  # a graph may hold it: writing the same numbers would invalidate that
                buffer.copy_(before)
        for module, training in modes.items():
            module.training = training


def run_output_layer(
    model: nn.Module, features: Sequence[Float[Tensor, "_ F"]], mode: Mode, traced: bool = False
) -> OutputRun | None:
    """Push features through the model and watch its output layer; None where no linear layer writes the logits.

    Args:
        model: the public model.
        features: (T_i, F) of each utterance, in any floating type.
        mode: in which the client ran it.
        traced: keep autograd's graph.
    """
    parameter = next(model.parameters())
    num_frames = torch.tensor([len(matrix) for matrix in features], device=parameter.device)
    batch = pad_sequence([matrix.to(parameter) for matrix in features])
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((name, inputs[0].detach(), output.detach()))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with in_mode(model, mode), torch.set_grad_enabled(traced):
            logits, lengths = model(batch, num_frames)
            first = len(seen)
            again, _ = model(batch, num_frames) if mode == "train" else (logits, lengths)
    finally:
        for handle in handles:
            handle.remove()
    counts = lengths.tolist()
    for name, inputs, output in reversed(seen[:first]):
        if output.shape == logits.shape and all(
            torch.equal(output[:count, index], logits[:count, index]) for index, count in enumerate(counts)
        ):
            return OutputRun(
                name,
                tuple(inputs[:count, index].double() for index, count in enumerate(counts)),
                tuple(logits[:count, index].detach().double() for index, count in enumerate(counts)),
                torch.equal(logits, again),
                logits if traced else None,
            )
    return None


def output_gradient(update: ClientUpdate, layer: str) -> Float[Tensor, "V C"] | None:
    """[dW | db] of the output layer, summed over utterances and averaged over local steps, float64, without db where
    the layer has no bias; None where its weight was not shared. Weight decay's part is in it."""
    prefix = f"{layer}." if layer else ""
    if f"{prefix}weight" not in update.tensors:
        return None
    parts = [update.gradient(f"{prefix}weight")]
    if f"{prefix}bias" in update.tensors:
        parts.append(update.gradient(f"{prefix}bias")[:, None])
    return torch.cat(parts, dim=1) * (update.protocol.num_utterances / sum(update.protocol.step_weights))


def relative_rounding(model: nn.Module, update: ClientUpdate, name: str) -> float:
    """Spacing of the numbers of an update's tensor, relative to its root mean square or to each number.

    A delta is a difference of weights, so that it has the weights' spacing, and that once for each local step.
    """
    tensor = update.tensors[name]
    stored = torch.finfo(stored_format(tensor)).eps
    if update.protocol.kind == "gradient":
        return stored
    weight = model.get_parameter(name).detach()
    share = float(weight.double().norm()) / max(float(tensor.double().norm()), torch.finfo(torch.float64).tiny)
    return max(stored, torch.finfo(weight.dtype).eps * share * update.protocol.local_steps**0.5)


def stored_format(tensor: Tensor) -> torch.dtype:
    """The coarsest usual format that holds a tensor's values: a float32 tensor may carry half-precision numbers."""
    some = tensor.flatten()[:4096]  # enough to tell most tensors without a look at the whole
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(each.to(dtype).to(each.dtype), each) for each in (some, tensor)):
            return dtype
    return tensor.dtype


def frame_evidence(
    run: OutputRun,
    gradient: Float[Tensor, "V C"],
    known: dict[int, Float[Tensor, "_ V"]],
    precision: float,
    largest: float = float("inf"),
) -> dict[int, FrameEvidence]:
    """Least squares for all frames of the utterances that are not yet known.

    Args:
        run: what the output layer was shown.
        gradient: of that layer.
        known: p - gamma of utterances whose transcripts are found, by index; subtracted.
        precision: relative rounding of the update's numbers, the least that is assumed.
        largest: relative error of the update that is believed at most; what is left over may also come from wrong
            features, and must not excuse them where they are to be tested.

    Returns:
        evidence by the index of the utterance.
    """
    biased = gradient.shape[1] > run.inputs[0].shape[1]
    rows = [nn.functional.pad(inputs, (0, 1), value=1.0) if biased else inputs for inputs in run.inputs]
    for index, share in known.items():
        gradient = gradient - share.T @ rows[index]
    unknown = [index for index in range(len(rows)) if index not in known]
    matrix = torch.cat([rows[index] for index in unknown])  # (P, C)
    # Sums of products round in proportion to their terms: columns of one size have errors of one size. What a unit
    # that is hardly ever active puts out is a float32 difference of larger numbers, so that its column also has the
    # errors of a typical one; one that is never active tells nothing, and its column would pass for one without error.
    square = matrix.square().mean(dim=0)
    active = square > 0
    scale = (square + (FLOAT32 / precision) ** 2 * square[active].mean()).sqrt()
    matrix, gradient = matrix[:, active] / scale[active], gradient[:, active] / scale[active]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > values[0] * torch.finfo(values.dtype).eps * max(matrix.shape)
    left, values, right = left[:, kept], values[kept], right[kept]
    inside = gradient @ right.T  # (V, R)
    spare = gradient.numel() - inside.numel()
    # Storing alone rounds by up to half a unit in the last place; that is all that is known where nothing is spare.
    signal = float(gradient.square().mean().sqrt())
    rounding = precision * signal / 2
    rows = precision * gradient.square().mean(dim=1).sqrt() / 2
    if spare > 0:
        left_over = gradient - inside @ right
        seen = float(left_over.norm()) / spare**0.5
        rounding = max(rounding, min(seen, largest * signal))
        rows = torch.maximum(rows, left_over.norm(dim=1) * (len(rows) / spare) ** 0.5)
    rows = rows / rows.square().mean().sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
    # The size of r follows from that of the update: |r A|^2 is about mean(r^2) * sum(values^2) for each symbol.
    size = (float(inside.square().sum()) / (gradient.shape[0] * float(values.square().sum()))) ** 0.5
    size = max(size, torch.finfo(values.dtype).tiny)
    found = left @ (inside / values).T  # (P, V), p - gamma
    evidence, start = {}, 0
    for index in unknown:
        logits = run.logits[index]
        own = left[start : start + len(logits)]
        log_probs = logits.log_softmax(dim=-1)
        occupancy = log_probs.exp() - found[start : start + len(logits)]
        evidence[index] = _whitened(log_probs, occupancy, own, rounding / values, size, rows)
        start += len(logits)
    return evidence


def _whitened(
    log_probs: Tensor,
    occupancy: Tensor,
    own: Float[Tensor, "T R"],
    errors: Float[Tensor, " R"],
    size: float,
    rows: Float[Tensor, " V"],
) -> FrameEvidence:
    """Weigh directions of time as a Wiener filter does: by signal against signal and expected error."""
    identity = torch.eye(len(own), dtype=own.dtype, device=own.device)
    unseen = identity - own @ own.T  # what lies in the null space may be anything of the signal's size
    covariance = (own * (errors / size).square()) @ own.T + unseen
    variances, directions = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0.0)
    weights = (1.0 + variances).rsqrt()
    noise = size * float((log_probs.shape[1] * (variances * weights.square()).sum()).sqrt())
    whitener = (directions * weights) @ directions.T
    probabilities = log_probs.exp()
    smoothed = probabilities + whitener @ (whitener @ (occupancy - probabilities))
    return FrameEvidence(log_probs, occupancy, smoothed, whitener, noise, directions, variances * size**2, rows)
