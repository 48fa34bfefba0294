"""Certificate: run the client's computation on what was recovered, and see whether the same update comes out.

The model is public and the protocol known, so a candidate (features, transcripts) fixes the update that a client would
share. Where that equals the observed one to rounding, the recovery is proven, with no access to the truth.

The coarsest rounding in a client's gradient is that of CTC, which adds logarithms as large as the loss; it hides small
errors of the features, yet it reaches every tensor through one matrix, softmax minus occupancy. So two questions are
asked. **Texts**: are the occupancies that the output layer's update tells those of the transcripts? They are judged
as in `transcript`, with a floor from rounding and a gap to the nearest other text. **Features**: are all tensors those
that follow when the observed rounding of CTC is put into the output's gradient and run backwards through the model?
A Wiener filter takes as much of it from the update as is known better than the size that float32 gives it.

How much the second difference may be is found by running too. A second run has the features moved as their solver
expects them to err (`moved_features`), the output's gradient by what is unknown of it, and every rectifier switched
whose side that leaves open (`switched_kinks`); its update is cast to the number format in which the observed one came.
Each tensor's **floor** is four times the distance between the two runs in that tensor, and what float32 sums and a few
numbers that round the other way add. One move may by chance miss the direction in which the features are weakest: where
it does not explain the update, the solver's other draws are run too, and the distance is the root mean square over all.
Tensors are judged one by one: those behind the last rectifier agree to a few parts in ten million, and are not excused
by those before it, where a single unit that switches makes a thousand times as much.

After several local steps CTC's rounding cannot be told apart. The update is then compared as it stands, with a floor
not below the spacing of float32 numbers of the loss's size, relative to one, and the text's gap found by running the
edit that the output layer sees least.

An update is blind to some changes of its features. What a certificate proves is that the update does not tell the
candidate from the truth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.certificates.moved_features import moved_features
from overheard.attacks.certificates.nearest_texts import nearest_texts
from overheard.attacks.certificates.resimulation import (
    TracedRun,
    backwards,
    batch_for,
    distance,
    relative_distance,
    simulate,
    size,
    trace,
)
from overheard.attacks.certificates.switched_kinks import switched_kinks, watched_kinks
from overheard.attacks.output_layer import (
    FLOAT32,
    OutputRun,
    frame_evidence,
    in_mode,
    output_gradient,
    relative_rounding,
)
from overheard.attacks.transcript import judge_texts, rounding_of_sums
from overheard.attacks.words.scored_texts import Text, occupancies
from overheard.federation.client import recognition_loss
from overheard.federation.update import ClientUpdate
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.alphabet import minimum_frames

SPREADS = 4.0
"""How many times the distance between two runs of one candidate the observed update may be from them."""

MOST_GRANTED = 5e-3
"""Error of features that is granted at most: what moves that far makes an update that nearly any candidate explains."""

ROUNDED_OTHERWISE = 8
"""Numbers of a tensor that may round to the other side although none did between the two runs."""


@dataclass(frozen=True)
class Certificate:
    """Whether an update follows from a candidate.

    Attributes:
        certified: None where the client's computation cannot be run again; see `reason`.
        relative_difference: |re-simulated - observed| / |observed| over all tensors, CTC's own rounding taken out
            where it can be told; None where a text already fails.
        floor: what rounding and the features' stated precision make of it, over all tensors.
        text_residual: of the text that fits worst; in relative difference after several local steps.
        text_floor: what rounding makes of a right text's residual.
        text_gap: residual that the nearest other text would leave.
        precision: the error that the candidate was granted.
        per_tensor: relative difference of each tensor.
        per_tensor_floor: of each; a certificate needs every difference to be within.
        reason: why it is not certified; None when it is.
    """

    certified: bool | None
    relative_difference: float | None = None
    floor: float | None = None
    text_residual: float | None = None
    text_floor: float | None = None
    text_gap: float | None = None
    precision: float | None = None
    per_tensor: dict[str, float] = field(default_factory=dict)
    per_tensor_floor: dict[str, float] = field(default_factory=dict)
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
    errors: Sequence[Float[Tensor, "D _ F"]] = (),
    seed: int = 0,
    traced: TracedRun | None = None,
) -> Certificate:
    """Compare an update with the one that follows from a candidate.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared.
        features: (T_i, F) of each of its N utterances.
        transcripts: of each.
        precision: error of the features that is granted, relative to their root mean square; at least that of float32.
        errors: (D, T_i, F) draws of each utterance's error, in the place of one of that size that is alike nowhere.
        seed: of the features' moves.
        traced: a run of these features, where there is one already.

    Raises:
        InputError: a transcript holds a character that the model's alphabet lacks.
    """
    hindrance = _hindrance(model, update, features, transcripts)
    if hindrance is not None:
        return Certificate(None, reason=hindrance)
    if precision > MOST_GRANTED:
        reason = f"the features are off by up to {precision:.1g} of their size, of which {MOST_GRANTED:.1g} is granted"
        return Certificate(False, precision=precision, reason=reason)
    texts = [_labels(model, text) for text in transcripts if text is not None]
    traced = traced or trace(model, features, update.protocol.mode)
    gradient = None if traced is None else output_gradient(update, traced.run.layer)
    if traced is None or gradient is None:
        return Certificate(None, reason="the update holds no linear layer that writes the logits")
    if not traced.run.repeatable:
        return Certificate(None, reason="the client drew random dropout masks, which nobody can draw again")
    if any(minimum_frames(text) > len(logits) for text, logits in zip(texts, traced.run.logits, strict=True)):
        return Certificate(False, reason="a transcript needs more frames than its features give")
    candidate = _Candidate(model, update, tuple(features), tuple(texts), traced, max(precision, FLOAT32), tuple(errors))
    moves = torch.Generator().manual_seed(seed)
    if update.protocol.local_steps == 1:
        return _through_output(candidate, gradient, moves)
    return _as_it_stands(candidate, moves)


@dataclass(frozen=True)
class _Candidate:
    model: nn.Module
    update: ClientUpdate
    features: tuple[Tensor, ...]
    texts: tuple[Text, ...]
    traced: TracedRun
    precision: float
    errors: tuple[Tensor, ...]

    @property
    def run(self) -> OutputRun:
        """The output layer's."""
        return self.traced.run

    def moved(self, moves: torch.Generator) -> Iterator[list[Tensor]]:
        """Its features as they may be wrong; see `moved_features`."""
        return moved_features(self.features, self.precision, self.errors, moves)


def _through_output(candidate: _Candidate, gradient: Float[Tensor, "V C"], moves: torch.Generator) -> Certificate:
    """One step: texts by their occupancies, features by what runs backwards from the output."""
    run, model, update = candidate.run, candidate.model, candidate.update
    moved = candidate.moved(moves)
    again = _traced_again(candidate, next(moved))
    precision, largest = _precision(candidate), _largest_error(candidate, again.run)
    judged = judge_texts(run, gradient, precision, candidate.texts, largest)
    worst = max(judged, key=lambda each: each.residual / each.gap)
    texts_told = Certificate(
        False, text_residual=worst.residual, text_floor=worst.floor, text_gap=worst.gap, precision=candidate.precision
    )
    if not all(each.exact for each in judged):
        reason = f"a text leaves {worst.residual:.1e} of its occupancies, rounding {worst.floor:.1e}"
        return replace(texts_told, reason=reason)
    # No more than CTC's own: what is left over may come from wrong features, and must not excuse them.
    sizes = [min(each.residual, each.rounding) for each in judged]
    known, _ = _rounding_of_ctc(run, gradient, candidate.texts, sizes, precision, largest)
    expected = backwards(model, update, candidate.traced, known)

    def runs() -> Iterator[dict[str, Tensor]]:
        for each in chain([again], (_traced_again(candidate, features) for features in moved)):
            unsure = _rounding_of_ctc(each.run, gradient, candidate.texts, sizes, precision, largest)
            drawn = [
                own + spread @ torch.randn(own.shape, generator=moves, dtype=own.dtype).to(own)
                for own, spread in zip(*unsure, strict=True)
            ]
            yield backwards(model, update, each, drawn)

    found = _compared(candidate, expected, runs())
    return replace(found, text_residual=worst.residual, text_floor=worst.floor, text_gap=worst.gap)


def _traced_again(candidate: _Candidate, features: Sequence[Tensor]) -> TracedRun:
    again = trace(candidate.model, features, candidate.update.protocol.mode, switched=candidate.traced.kinks)
    assert again is not None  # the first run had this layer
    return again


def _largest_error(candidate: _Candidate, moved: OutputRun) -> float:
    """Relative error of the output layer's update that rounding and the features' precision explain."""
    pairs = list(zip(candidate.run.inputs, moved.inputs, strict=True))
    apart = sum(float((one - other).square().sum()) for one, other in pairs)
    whole = sum(float(one.square().sum()) for one, _ in pairs)
    return rounding_of_sums(candidate.run, _precision(candidate)) + (apart / whole if whole else 0.0) ** 0.5


def _rounding_of_ctc(
    run: OutputRun,
    gradient: Float[Tensor, "V C"],
    texts: Sequence[Text],
    sizes: Sequence[float],
    precision: float,
    largest: float,
) -> tuple[list[Float[Tensor, "_ V"]], list[Float[Tensor, "_ _"]]]:
    """softmax - occupancy of each utterance as the client had it, and a square root of what is unknown of it.

    Args:
        run: of the output layer.
        gradient: of that layer.
        texts: what was said.
        sizes: of CTC's rounding, Frobenius norm, at most.
        precision: relative rounding of the update's numbers.
        largest: relative error of the update that is believed.
    """
    evidence = frame_evidence(run, gradient, {}, precision, largest)
    known, unknown = [], []
    for index, text in enumerate(texts):
        each = evidence[index]
        own = occupancies(each.log_probs, [text])[:, 0]
        share = each.log_probs.exp() - own
        likely = sizes[index] ** 2 / max(1, share.numel())
        trust = likely / (likely + each.variances)
        told = each.directions.T @ (own - each.occupancy)
        known.append(share + each.directions @ (trust[:, None] * told))
        unknown.append(each.directions * (trust * each.variances).sqrt())
    return known, unknown


def _as_it_stands(candidate: _Candidate, moves: torch.Generator) -> Certificate:
    """Several steps: the whole update against the whole update."""
    model, update, texts = candidate.model, candidate.update, candidate.texts
    with watched_kinks() as kinks:
        expected = simulate(model, update, candidate.features, texts)

    def runs() -> Iterator[dict[str, Tensor]]:
        for features in candidate.moved(moves):
            with switched_kinks(kinks):
                yield simulate(model, update, features, texts)

    found = _compared(candidate, expected, runs(), FLOAT32 * _largest_loss(candidate))
    gap = _gap(candidate, expected)
    found = replace(found, text_residual=found.relative_difference, text_floor=found.floor, text_gap=gap)
    if found.certified and found.floor is not None and found.floor > gap / 2:
        reason = f"rounding, {found.floor:.1e}, hides the nearest other transcript, {gap:.1e}"
        return replace(found, certified=False, reason=reason)
    return found


def _compared(
    candidate: _Candidate, expected: dict[str, Tensor], moved: Iterator[dict[str, Tensor]], least: float = 0.0
) -> Certificate:
    """Runs of a candidate against what was observed, tensor by tensor, until so many of those moved explain it."""
    update = candidate.update
    observed = update.tensors
    sizes = {name: size(tensor) for name, tensor in observed.items()}
    differences = {name: distance(expected[name], tensor) / (sizes[name] or 1.0) for name, tensor in observed.items()}
    spacings = {name: relative_rounding(candidate.model, update, name) if sizes[name] else 0.0 for name in observed}
    sums = FLOAT32 * sum(len(logits) for logits in candidate.run.logits) ** 0.5
    rounding = {name: sums + ROUNDED_OTHERWISE * spacings[name] / observed[name].numel() ** 0.5 for name in observed}
    squares = dict.fromkeys(observed, 0.0)
    floors: dict[str, float] = {}
    reason = None
    for count, run in enumerate(moved, start=1):
        for name in observed:
            squares[name] += (distance(expected[name], run[name]) / (sizes[name] or 1.0)) ** 2
            floors[name] = max(SPREADS * (squares[name] / count) ** 0.5 + rounding[name], least)
        most = max(observed, key=lambda name: differences[name] / floors[name])
        reason = None
        if differences[most] <= floors[most]:
            break
        reason = f"re-simulated update differs by {differences[most]:.1e} in {most}, {floors[most]:.1e} is explained"
    total = sum(each**2 for each in sizes.values()) ** 0.5 or 1.0

    def over_all(values: dict[str, float]) -> float:
        return sum((values[name] * (sizes[name] or 1.0)) ** 2 for name in values) ** 0.5 / total

    return Certificate(
        reason is None,
        over_all(differences),
        over_all(floors),
        precision=candidate.precision,
        per_tensor=differences,
        per_tensor_floor=floors,
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
        found.append(relative_distance(simulate(model, update, each.features, texts), update.tensors))
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
    return tuple(as_recogniser(model).alphabet.encode(text))


def _fits(model: nn.Module, hypothesis: Hypothesis, texts: Sequence[Text]) -> bool:
    frames = torch.tensor([len(matrix) for matrix in hypothesis.features])
    lengths = as_recogniser(model).output_lengths(frames).tolist()
    return all(minimum_frames(text) <= length for text, length in zip(texts, lengths, strict=True))


@torch.no_grad()
def _largest_loss(candidate: _Candidate) -> float:
    """Negative log-likelihood of the batch's utterances together, nats: an upper bound on that of each."""
    batch = batch_for(candidate.model, candidate.features, candidate.texts)
    with in_mode(candidate.model, candidate.update.protocol.mode):
        return float(recognition_loss(candidate.model, batch)) * batch.size


def _gap(candidate: _Candidate, expected: dict[str, Tensor]) -> float:
    """Relative change of the update by the single edit that the output layer sees least."""
    others = nearest_texts(candidate.run, candidate.texts)
    if others is None:
        return float("inf")
    return relative_distance(simulate(candidate.model, candidate.update, candidate.features, others), expected)
