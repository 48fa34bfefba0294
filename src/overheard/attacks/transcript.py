"""Words from the output layer, with no known transcript anywhere.

Known features give the inputs of the output layer; its update then gives every frame's occupancy by least squares
(`output_layer`). Which text has these occupancies is first an integer least-squares problem (`lattice_decoding`), then
a local search over edits (`text_search`). Each text is judged by one forward-backward pass of CTC, without the truth.

A text counts as exact by two figures that come out of the problem. The **floor** is what rounding makes of the right
text's score: what the update's own rounding puts into the least squares, read off the part of the update that no text
can explain, and what the client's float32 forward-backward adds, found by running it beside the float64 one. The
**gap** is how far the nearest other text tried lies. A right text scores about the floor, a wrong one about the gap or
more; the found text is exact when its score is nearer to the floor, on a logarithmic scale, where the two differ.

After K steps of local SGD the update is the sum of K gradients at weights that nobody saw. The steps are run on the
text found so far, moved so that they end where the client did (`local_steps.path`), and a text is judged by its
occupancies at all of them, until it stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from overheard.attacks.local_steps.path import take_steps
from overheard.attacks.local_steps.seen_output import SeenOutput, seen_along_steps
from overheard.attacks.output_layer import (
    FLOAT32,
    FrameEvidence,
    OutputRun,
    frame_evidence,
    output_gradient,
    relative_rounding,
    run_output_layer,
)
from overheard.attacks.words.edits import edits
from overheard.attacks.words.scored_texts import Search, Text, likely_symbols, mean_occupancies, occupancies
from overheard.attacks.words.sketched_texts import sketch
from overheard.attacks.words.text_search import SearchConfig, Settled, from_ends, improve, start_texts
from overheard.federation.update import ClientUpdate
from overheard.recognition.recogniser import as_recogniser

MOST_ROUNDS, PATIENCE = 20, 6
"""Of several local steps, run on the text found so far; rounds that may end no nearer to where the client did."""

TOLD_APART = 1.01
"""Score of the nearest other text over a text's own from which on errors do not hide which is the right one."""

NEAREST = 32
"""Texts an edit away, of each kind and of all of those scored, that tell the gap."""


@dataclass(frozen=True)
class TranscriptResult:
    """Texts of all utterances of an update, in the order of the features.

    Attributes:
        texts: None where nothing was found.
        exact: of each text; see the module.
        residual: of each text's occupancies, whitened Frobenius norm.
        relative_residual: the same over the norm of softmax minus occupancy.
        floor: what rounding makes of a right text's residual.
        gap: residual that the nearest other text tried would leave if the found one were right.
        evaluations: texts scored.
        apart: how far the output layer's delta of these texts is from the observed one, relative to it; None behind one
            step.
        reason: why a text is missing or not exact; None when all are exact.
    """

    texts: tuple[str | None, ...]
    exact: tuple[bool, ...]
    residual: tuple[float, ...] = ()
    relative_residual: tuple[float, ...] = ()
    floor: tuple[float, ...] = ()
    gap: tuple[float, ...] = ()
    evaluations: int = 0
    apart: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class TextEvidence:
    """One utterance's text and what speaks for it; the fields are those of `TranscriptResult`.

    Attributes:
        text: labels.
        occupancy: (T_out, V) of this text.
        rounding: of CTC in float32, as the residual shows it.
    """

    text: Text
    occupancy: Float[Tensor, "T V"]
    exact: bool
    residual: float
    relative: float
    floor: float
    gap: float
    evaluations: int
    rounding: float


def recover_transcripts(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    config: SearchConfig | None = None,
    run: OutputRun | None = None,
    guess: Sequence[Text] | None = None,
) -> TranscriptResult:
    """What was said in every utterance of an update.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared.
        features: (T_i, F) of each of its N utterances.
        config: effort of the search.
        run: of these features, where there is one already.
        guess: labels of each that are about right, where there are such, for several local steps.
    """
    config = config or SearchConfig()
    missing = TranscriptResult((None,) * len(features), (False,) * len(features))
    protocol = update.protocol
    if len(features) != protocol.num_utterances:
        reason = f"features of {len(features)} of the update's {protocol.num_utterances} utterances"
        return replace(missing, reason=f"{reason}; the output layer tells words where all are known")
    run = run or run_output_layer(model, features, protocol.mode)
    if run is None:
        return replace(missing, reason="no linear layer of this model writes its logits")
    if not run.repeatable:
        return replace(missing, reason="the client drew random dropout masks, which hide the output layer's inputs")
    gradient = output_gradient(update, run.layer)
    if gradient is None:
        return replace(missing, reason=f"the update holds no weight of {run.layer}, the layer that writes the logits")
    precision = relative_rounding(model, update, f"{run.layer}.weight" if run.layer else "weight")
    apart = None
    if protocol.local_steps == 1 and not protocol.weight_decay:
        found = _all_texts(SeenOutput(run, gradient, precision), config)
    else:
        texts = list(guess) if guess is not None else [()] * len(features)
        found, apart = _along_steps(model, update, features, run.layer, precision, config, texts)
    alphabet = as_recogniser(model).alphabet
    exact = tuple(each.exact for each in found)
    return TranscriptResult(
        texts=tuple(alphabet.decode(each.text) for each in found),
        exact=exact,
        residual=tuple(each.residual for each in found),
        relative_residual=tuple(each.relative for each in found),
        floor=tuple(each.floor for each in found),
        gap=tuple(each.gap for each in found),
        evaluations=sum(each.evaluations for each in found),
        apart=apart,
        reason=None if all(exact) else f"{exact.count(False)} of {len(exact)} texts do not explain the update",
    )


def _all_texts(seen: SeenOutput, config: SearchConfig) -> list[TextEvidence]:
    """Utterance by utterance; where that makes some exact, their share is subtracted and the others tried again."""
    found: dict[int, TextEvidence] = {}
    known: dict[int, Tensor] = {}
    while len(known) < len(seen.run.logits):
        fresh = {index: _one_text(each, config) for index, each in seen.evidence(known).items()}
        found |= fresh
        exact = {index: seen.share(index, each.text) for index, each in fresh.items() if each.exact}
        known |= exact
        total = sum(len(inputs) for inputs in seen.run.inputs)
        if not exact or total <= seen.gradient.shape[1]:
            break  # with as many equations as frames, utterances do not stand in each other's way
    return [found[index] for index in range(len(seen.run.logits))]


def _along_steps(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Tensor],
    layer: str,
    precision: float,
    config: SearchConfig,
    texts: list[Text],
) -> tuple[list[TextEvidence], float]:
    """Several local steps: search, take the steps anew with what was found, again, until it stays; the texts whose
    steps end nearest to where the client's did, and how near.

    Steps are a text's own, or those along the path known so far where the text's own end farther off than others' did
    and those do not. A text that comes again is seen along that path in any case, as its own steps led back to it.
    """
    nearest, judged, stalled = float("inf"), list[TextEvidence](), 0
    tried: list[list[Text]] = []
    thorough, path = False, None
    name = f"{layer}.weight" if layer else "weight"
    for _ in range(MOST_ROUNDS):
        again = path is not None and texts in tried
        steps = take_steps(model, update, features, texts, path if again else None)
        if path and steps.apart(update, name) >= nearest:
            along = take_steps(model, update, features, texts, path)
            steps = min(steps, along, key=lambda each: each.apart(update, name))
        tried.append(texts)
        apart = steps.apart(update, name)
        seen, path = seen_along_steps(model, update, features, texts, layer, precision, steps)
        searches = [Search(each, likely_symbols(each)) for _, each in sorted(seen.evidence({}).items())]
        for search, text in zip(searches, texts, strict=True):
            search.score([(), text])
        # A text is not worth a long search before the steps are about right.
        fresh = [
            improve(search, config, text, _settled(search)) if thorough else sketch(search, config, text)
            for search, text in zip(searches, texts, strict=True)
        ]
        stalled += 1
        if apart < nearest:
            nearest, stalled = apart, 0
            judged = [_judged(search, config, text) for search, text in zip(searches, texts, strict=True)]
        if fresh == texts:
            if thorough or all(each.exact for each in judged):
                break
            thorough = again or path is None
        if stalled == PATIENCE:
            break
        texts = fresh
    return judged, nearest


def judge_texts(
    run: OutputRun, gradient: Float[Tensor, "V C"], precision: float, texts: Sequence[Text], largest: float
) -> list[TextEvidence]:
    """What speaks for given texts of all utterances: each is judged with the others' share subtracted, and with no
    more than `largest` believed as the update's relative error."""
    seen = SeenOutput(run, gradient, precision)
    shares = {index: seen.share(index, text) for index, text in enumerate(texts)}
    judged = []
    for index, text in enumerate(texts):
        others = {other: share for other, share in shares.items() if other != index}
        evidence = frame_evidence(run, gradient, others, precision, largest)[index]
        search = Search(evidence, list(range(1, gradient.shape[0])))
        search.score([text])
        judged.append(_judged(search, SearchConfig(), text))
    return judged


def rounding_of_sums(run: OutputRun, precision: float) -> float:
    """Relative error of sums over all frames, each addition of which rounds in float32: it grows as a random walk does.
    What the update was rounded to afterwards, as weights that were subtracted or as half precision, comes once."""
    return hypot(FLOAT32 * sqrt(sum(len(inputs) for inputs in run.inputs)), precision)


def _settled(search: Search) -> Settled:
    """As the final judgement, with the gap that exchanging neighbours leaves to first order."""
    evidence = search.evidence

    def settled(text: Text) -> bool:
        if text != search.best():
            return False
        design = search.whiten(search.lattice(text).label_occupancy)
        steps = torch.cat([design.new_zeros(len(design), 1), design], dim=1).diff(dim=1) if text else design
        gap = sqrt(2) * float(steps.norm(dim=0).min()) if text else float(evidence.occupancy.norm())
        score = search.scores[text]
        return score < gap and score <= sqrt(_floor(search, text) * gap)

    return settled


def _one_text(evidence: FrameEvidence, config: SearchConfig) -> TextEvidence:
    search = Search(evidence, likely_symbols(evidence))
    settled = _settled(search)

    def explored(text: Text, config: SearchConfig) -> TextEvidence:
        return _judged(search, config, improve(search, config, text, settled))

    tried: list[TextEvidence] = []
    for start in start_texts(search, config, settled):
        tried.append(explored(start, config))
        if tried[-1].exact or config.spent(search):
            break
    if search.frames <= config.most_read[True] and not any(each.exact for each in tried):
        more = replace(config, evaluations=4 * config.evaluations)
        from_ends(search, more, True, settled)
        tried.append(explored(search.best(), more))
    return min(tried, key=lambda each: each.residual)


def _judged(search: Search, config: SearchConfig, text: Text) -> TextEvidence:
    evidence = search.evidence
    residual, floor = search.scores[text], _floor(search, text)
    others = search.nearest(text, edits(search, text, NEAREST), NEAREST)
    # Against a right text, which the observed occupancies equal, another's score is its distance.
    gap = min(others.values(), default=float("inf"))
    own = mean_occupancies(evidence.weighted, [text])[:, 0]
    signal = float((evidence.whitener @ (evidence.log_probs.exp() - own)).norm())
    return TextEvidence(
        text,
        own,
        text == search.best() and floor < gap and TOLD_APART * residual < gap and residual <= sqrt(floor * gap),
        residual,
        residual / max(signal, torch.finfo(torch.float64).tiny),
        floor,
        gap,
        len(search.scores),
        _rounding(search, text),
    )


def _floor(search: Search, text: Text) -> float:
    return sqrt(search.evidence.noise**2 + _rounding(search, text) ** 2)


def _rounding(search: Search, text: Text) -> float:
    """What float32 makes of CTC's own gradient for this text; PyTorch adds logarithms as large as the loss."""
    evidence = search.evidence
    found = 0.0
    for share, log_probs in evidence.weighted:
        logits = log_probs.float()[:, None].requires_grad_()
        targets = torch.tensor([text or (0,)], device=logits.device)
        lengths = torch.tensor([len(log_probs)]), torch.tensor([len(text)])
        with torch.enable_grad():
            loss = functional.ctc_loss(logits.log_softmax(dim=-1), targets, *lengths, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, logits)
        exact = log_probs.exp() - occupancies(log_probs, [text])[:, 0]
        seen = float((evidence.whitener @ (gradient[:, 0].double() - exact)).norm())
        # One run is one draw; the spacing of float32 numbers of the loss's size bounds the relative error of a message.
        spacing = torch.finfo(torch.float32).eps * float(loss.detach())
        found += share * max(seen, spacing * float((evidence.whitener @ exact).norm()))
    return found
