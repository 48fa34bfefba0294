"""Certificate: run the client's computation on what was recovered, and see whether the same update comes out.

The model is public and the protocol known, so a candidate (features, transcripts) fixes the update that a client would
share. Where that equals the observed one to rounding, the recovery is proven, with no access to the truth.

The coarsest rounding in a client's gradient is that of CTC, which adds logarithms as large as the loss; it hides small
errors of the features, yet it reaches every tensor through one matrix, softmax minus occupancy. So two questions are
asked. **Texts**: are the occupancies that the output layer's update tells those of the transcripts? They are judged
as in `transcript`, with a floor from rounding and a gap to the nearest other text. **Features**: are all tensors those
that follow when the observed rounding of CTC is put into the output's gradient and run backwards through the model?
A Wiener filter takes as much of it from the update as is known better than the size that float32 gives it.

How much the second difference may be is found by running too. The client's run and ours are each as far from the
rounding-free update as runs can be from each other, so its **floor** is twice the largest distance among updates of
the same candidate with its features moved by their stated precision and the output's gradient by what is unknown of
it, cast to the number format in which the update came: this holds float32 sums, units that switch at zero, the
subtraction behind a delta, and the steps of half precision. The **tolerance** that a certificate states is the error
of the features, relative to their root mean square, that would explain the difference.

After several local steps CTC's rounding cannot be told apart. The update is then compared as it stands, with a floor
not below the spacing of float32 numbers of the loss's size, relative to one, and the text's gap found by running the
edit that the output layer sees least.

An update is blind to some changes of its features. What a certificate proves is that the update does not tell the
candidate from the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.output_layer import (
    OutputRun,
    frame_evidence,
    in_mode,
    output_gradient,
    relative_rounding,
    run_output_layer,
    stored_format,
)
from overheard.attacks.text_search import Text, occupancies
from overheard.attacks.transcript import TextEvidence, judge_texts, rounding_of_sums
from overheard.federation.client import ClientSettings, client_update, recognition_loss
from overheard.federation.update import ClientUpdate
from overheard.speech.alphabet import minimum_frames
from overheard.speech.batching import Batch, collate

FLOAT32 = torch.finfo(torch.float32).eps
EDITS_AT_ONCE = 64


@dataclass(frozen=True)
class Certificate:
    """Whether an update follows from a candidate.

    Attributes:
        certified: None where the client's computation cannot be run again; see `reason`.
        relative_difference: |re-simulated - observed| / |observed| over all tensors, CTC's own rounding taken out
            where it can be told; None where a text already fails.
        floor: what rounding and the features' stated precision make of it.
        text_residual: of the text that fits worst; in relative difference after several local steps.
        text_floor: what rounding makes of a right text's residual.
        text_gap: residual that the nearest other text would leave.
        tolerance: error of the features, relative to their root mean square, that would explain the difference.
        precision: the error that the candidate was granted.
        per_tensor: relative difference of each tensor.
        reason: why it is not certified; None when it is.
    """

    certified: bool | None
    relative_difference: float | None = None
    floor: float | None = None
    text_residual: float | None = None
    text_floor: float | None = None
    text_gap: float | None = None
    tolerance: float | None = None
    precision: float | None = None
    per_tensor: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A candidate: features (T_i, F) and transcript of each utterance."""

    features: tuple[Float[Tensor, "_ F"], ...]
    transcripts: tuple[str, ...]


@dataclass(frozen=True)
class Settlement:
    """Which of several candidates an update came from.

    Attributes:
        index: of the nearest; None where none could be run.
        relative_differences: of each; None where it could not be run.
        certificate: of the nearest.
    """

    index: int | None
    relative_differences: tuple[float | None, ...]
    certificate: Certificate


def certify(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    transcripts: Sequence[str | None],
    precision: float = FLOAT32,
    samples: int = 3,
    seed: int = 0,
) -> Certificate:
    """Compare an update with the one that follows from a candidate.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared.
        features: (T_i, F) of each of its N utterances.
        transcripts: of each.
        precision: error of the features that is granted, relative to their root mean square; at least that of float32.
        samples: runs with features moved by that much.
        seed: of the moves.

    Raises:
        InputError: a transcript holds a character that the model's alphabet lacks.
    """
    hindrance = _hindrance(model, update, features, transcripts)
    if hindrance is not None:
        return Certificate(None, reason=hindrance)
    texts = [_labels(model, text) for text in transcripts if text is not None]
    run = run_output_layer(model, features, update.protocol.mode)
    gradient = None if run is None else output_gradient(update, run.layer)
    if run is None or gradient is None:
        return Certificate(None, reason="the update holds no linear layer that writes the logits")
    if not run.repeatable:
        return Certificate(None, reason="the client drew random dropout masks, which nobody can draw again")
    if any(minimum_frames(text) > len(logits) for text, logits in zip(texts, run.logits, strict=True)):
        return Certificate(False, reason="a transcript needs more frames than its features give")
    candidate = _Candidate(model, update, tuple(features), tuple(texts), run)
    moves = torch.Generator().manual_seed(seed)
    precision = max(precision, FLOAT32)
    if update.protocol.local_steps == 1:
        return _through_output(candidate, gradient, precision, samples, moves)
    return _as_it_stands(candidate, precision, samples, moves)


@dataclass(frozen=True)
class _Candidate:
    model: nn.Module
    update: ClientUpdate
    features: tuple[Tensor, ...]
    texts: tuple[Text, ...]
    run: OutputRun


def _through_output(
    candidate: _Candidate, gradient: Float[Tensor, "V C"], precision: float, samples: int, moves: torch.Generator
) -> Certificate:
    """One step: texts by their occupancies, features by what runs backwards from the output."""
    run, observed = candidate.run, candidate.update.tensors
    judged = judge_texts(run, gradient, _precision(candidate), candidate.texts)
    worst = max(judged, key=lambda each: each.residual / each.gap)
    texts_told = Certificate(
        False, text_residual=worst.residual, text_floor=worst.floor, text_gap=worst.gap, precision=precision
    )
    if not all(each.exact for each in judged):
        reason = f"a text leaves {worst.residual:.1e} of its occupancies, rounding {worst.floor:.1e}"
        return replace(texts_told, reason=reason)
    known, unknown = _rounding_of_ctc(run, gradient, judged, _precision(candidate))
    expected = _backwards(candidate, candidate.features, known)
    moved = [expected]
    for _ in range(samples):
        drawn = [
            own + spread @ torch.randn(own.shape, generator=moves, dtype=own.dtype).to(own)
            for own, spread in zip(known, unknown, strict=True)
        ]
        moved.append(_backwards(candidate, _moved(candidate.features, precision, moves), drawn))
    spreads = _spreads(moved, observed)
    found = _compared(expected, observed, spreads, 2 * max(spreads), precision)
    return replace(found, text_residual=worst.residual, text_floor=worst.floor, text_gap=worst.gap)


def _rounding_of_ctc(
    run: OutputRun, gradient: Float[Tensor, "V C"], judged: Sequence[TextEvidence], precision: float
) -> tuple[list[Float[Tensor, "_ V"]], list[Float[Tensor, "_ _"]]]:
    """softmax - occupancy of each utterance as the client had it, and a square root of what is unknown of it."""
    exact = [logits.softmax(dim=-1) - each.occupancy for logits, each in zip(run.logits, judged, strict=True)]
    evidence = frame_evidence(run, gradient, {}, precision, rounding_of_sums(run, precision))
    known, unknown = [], []
    for index, share in enumerate(exact):
        each = evidence[index]
        # A right text's residual is rounding; what a wrong one leaves is capped by what rounding may be.
        likely = min(judged[index].residual, judged[index].floor) ** 2 / max(1, share.numel())
        trust = likely / (likely + each.variances)
        told = each.directions.T @ ((each.log_probs.exp() - each.occupancy) - share)
        known.append(share + each.directions @ (trust[:, None] * told))
        unknown.append(each.directions * (trust * each.variances).sqrt())
    return known, unknown


def _backwards(
    candidate: _Candidate, features: Sequence[Tensor], shares: Sequence[Float[Tensor, "_ V"]]
) -> dict[str, Tensor]:
    """The update that follows from a gradient at the logits, N times `shares`, utterance by utterance."""
    model, update = candidate.model, candidate.update
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    batch = _batch(model, features, candidate.texts)
    with in_mode(model, update.protocol.mode), torch.enable_grad():
        logits, _ = model(batch.features, batch.num_frames)
        weight = torch.zeros_like(logits)
        for index, share in enumerate(shares):
            weight[: len(share), index] = (share / len(shares)).to(weight)
        found = torch.autograd.grad(logits, list(parameters.values()), weight, materialize_grads=True)
    shared = dict(zip(parameters, found, strict=True))
    rate = update.protocol.learning_rate
    if rate is not None:
        # As the client subtracts, rounding included.
        shared = {name: parameters[name].detach().sub(each, alpha=rate) for name, each in shared.items()}
        shared = {name: each - parameters[name].detach() for name, each in shared.items()}
    return {name: shared[name].to(stored_format(tensor)) for name, tensor in update.tensors.items()}


def _as_it_stands(candidate: _Candidate, precision: float, samples: int, moves: torch.Generator) -> Certificate:
    """Several steps: the whole update against the whole update."""
    model, update, features, texts = candidate.model, candidate.update, candidate.features, candidate.texts
    expected = _simulate(model, update, features, texts)
    moved = [expected]
    moved += [_simulate(model, update, _moved(features, precision, moves), texts) for _ in range(samples)]
    spreads = _spreads(moved, update.tensors)
    floor = max(2 * max(spreads), FLOAT32 * _largest_loss(candidate))
    gap = _gap(candidate, expected)
    found = _compared(expected, update.tensors, spreads, floor, precision)
    found = replace(found, text_residual=found.relative_difference, text_floor=floor, text_gap=gap)
    if found.certified and floor > gap / 2:
        reason = f"rounding, {floor:.1e}, hides the nearest other transcript, {gap:.1e}"
        return replace(found, certified=False, reason=reason)
    return found


def _compared(
    expected: dict[str, Tensor], observed: dict[str, Tensor], spreads: list[float], floor: float, precision: float
) -> Certificate:
    difference = _distance(expected, observed, observed)
    per_tensor = {name: _distance({name: expected[name]}, observed, observed) for name in observed}
    tolerance = precision * difference / max(*spreads, torch.finfo(torch.float64).tiny)
    reason = None
    if difference > floor:
        most = max(per_tensor, key=lambda name: per_tensor[name])
        reason = f"re-simulated update differs by {difference:.1e}, rounding explains {floor:.1e}; most in {most}"
    return Certificate(
        reason is None,
        difference,
        floor,
        tolerance=tolerance,
        precision=precision,
        per_tensor=per_tensor,
        reason=reason,
    )


def _precision(candidate: _Candidate) -> float:
    name = f"{candidate.run.layer}.weight" if candidate.run.layer else "weight"
    return relative_rounding(candidate.model, candidate.update, name)


def settle(
    model: nn.Module, update: ClientUpdate, hypotheses: Sequence[Hypothesis], precision: float = FLOAT32
) -> Settlement:
    """Choose among lengths, repeats or orders: the candidate whose update is nearest, with its certificate."""
    found: list[float | None] = []
    for each in hypotheses:
        texts = [_labels(model, text) for text in each.transcripts]
        if _hindrance(model, update, each.features, each.transcripts) is not None or not _fits(model, each, texts):
            found.append(None)
            continue
        found.append(_distance(_simulate(model, update, each.features, texts), update.tensors, update.tensors))
    usable = {index: difference for index, difference in enumerate(found) if difference is not None}
    if not usable:
        return Settlement(None, tuple(found), Certificate(None, reason="no candidate could be run"))
    index = min(usable, key=lambda at: usable[at])
    nearest = hypotheses[index]
    certificate = certify(model, update, nearest.features, nearest.transcripts, precision)
    return Settlement(index, tuple(found), certificate)


def _hindrance(
    model: nn.Module, update: ClientUpdate, features: Sequence[Tensor], transcripts: Sequence[str | None]
) -> str | None:
    count = update.protocol.num_utterances
    if len(features) != count or len(transcripts) != count:
        return f"features of {len(features)} and transcripts of {len(transcripts)} of the update's {count} utterances"
    if any(text is None for text in transcripts):
        return "a transcript is missing"
    if set(update.tensors) - dict(model.named_parameters()).keys():
        return "the update holds tensors that the model lacks"
    return None


def _labels(model: nn.Module, text: str) -> Text:
    return tuple(model.alphabet.encode(text))  # pyright: ignore


def _fits(model: nn.Module, hypothesis: Hypothesis, texts: Sequence[Text]) -> bool:
    frames = torch.tensor([len(matrix) for matrix in hypothesis.features])
    lengths = model.output_lengths(frames).tolist()  # pyright: ignore[reportCallIssue]
    return all(minimum_frames(text) <= length for text, length in zip(texts, lengths, strict=True))


def _batch(model: nn.Module, features: Sequence[Tensor], texts: Sequence[Text]) -> Batch:
    parameter = next(model.parameters())
    return collate([matrix.detach().to("cpu", parameter.dtype) for matrix in features], texts).to(parameter.device)


def _simulate(
    model: nn.Module, update: ClientUpdate, features: Sequence[Tensor], texts: Sequence[Text]
) -> dict[str, Tensor]:
    """What the client would have sent, in the number format in which the update came."""
    protocol = update.protocol
    settings = ClientSettings(protocol.kind, protocol.mode, protocol.local_steps, protocol.learning_rate)
    shared = client_update(model, _batch(model, features, texts), settings, protocol.model, protocol.weights).tensors
    return {name: shared[name].to(stored_format(tensor)) for name, tensor in update.tensors.items()}


def _distance(one: dict[str, Tensor], other: dict[str, Tensor], scale: dict[str, Tensor]) -> float:
    """|one - other| / |scale| over the tensors of `one`."""
    above = sum(_norm(one[name] - other[name]) ** 2 for name in one)
    below = sum(_norm(scale[name]) ** 2 for name in one)
    return (above / below) ** 0.5 if below > 0 else float(above > 0)


def _spreads(runs: list[dict[str, Tensor]], scale: dict[str, Tensor]) -> list[float]:
    """Distances of all pairs of runs."""
    return [_distance(one, other, scale) for at, one in enumerate(runs) for other in runs[:at]]


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _moved(features: Sequence[Tensor], precision: float, generator: torch.Generator) -> list[Tensor]:
    moved = []
    for matrix in features:
        exact = matrix.detach().double().cpu()
        noise = torch.randn(exact.shape, generator=generator, dtype=exact.dtype)
        moved.append(exact + noise * (precision * float(exact.square().mean().sqrt())))
    return moved


@torch.no_grad()
def _largest_loss(candidate: _Candidate) -> float:
    """Negative log-likelihood of the batch's utterances together, nats: an upper bound on that of each."""
    batch = _batch(candidate.model, candidate.features, candidate.texts)
    with in_mode(candidate.model, candidate.update.protocol.mode):
        return float(recognition_loss(candidate.model, batch)) * batch.size


def _gap(candidate: _Candidate, expected: dict[str, Tensor]) -> float:
    """Relative change of the update by the single edit that the output layer sees least."""
    run, texts = candidate.run, candidate.texts
    nearest: tuple[float, int, Text] | None = None
    for index, (logits, inputs, text) in enumerate(zip(run.logits, run.inputs, texts, strict=True)):
        log_probs = logits.log_softmax(dim=-1)
        others = [other for other in _single_edits(text, logits.shape[1]) if minimum_frames(other) <= len(logits)]
        for start in range(0, len(others), EDITS_AT_ONCE):
            some = others[start : start + EDITS_AT_ONCE]
            found = occupancies(log_probs, [text, *some])
            change = torch.einsum("tnv,tc->nvc", found[:, 1:] - found[:, :1], inputs).flatten(1).norm(dim=1)
            least = int(change.argmin())
            if nearest is None or float(change[least]) < nearest[0]:
                nearest = float(change[least]), index, some[least]
    if nearest is None:
        return float("inf")
    _, index, other = nearest
    changed = [other if at == index else text for at, text in enumerate(texts)]
    update = candidate.update
    return _distance(_simulate(candidate.model, update, candidate.features, changed), expected, update.tensors)


def _single_edits(text: Text, num_symbols: int) -> list[Text]:
    """Neighbours exchanged, a label taken out, doubled, or replaced by the next symbol: one of each at every place."""
    found = [(*text, 1)]
    for place, label in enumerate(text):
        before, after = text[:place], text[place + 1 :]
        found += [(*before, *after), (*before, label, *text[place:]), (*before, label % (num_symbols - 1) + 1, *after)]
        if after:
            found.append((*before, after[0], label, *after[1:]))
    return [other for other in dict.fromkeys(found) if other != text]
