"""Words from the output layer, with no known transcript anywhere.

Known features give the inputs of the output layer; its update then gives every frame's occupancy by least squares
(`output_layer`). Which text has these occupancies is first an integer least-squares problem (`lattice_decoding`), then
a local search over edits (`text_search`). Each text is judged by one forward-backward pass of CTC, without the truth.

A text counts as exact by two figures that come out of the problem. The **floor** is what rounding makes of the right
text's score: what the update's own rounding puts into the least squares, read off the part of the update that no text
can explain, and what the client's float32 forward-backward adds, found by running it beside the float64 one. The
**gap** is how far the nearest other text tried lies. A right text scores about the floor, a wrong one about the gap or
more; the found text is exact when its score is nearer to the floor, on a logarithmic scale, where the two differ.

After K steps of local SGD the output layer has moved, so that the mean gradient is not that of the weights the server
sent. The difference is computed by running the K steps on the text found so far and subtracted until the text stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

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
from overheard.attacks.words.lattice_decoding import label_occupancy
from overheard.attacks.words.scored_texts import Search, Text, likely_symbols, occupancies
from overheard.attacks.words.text_search import SearchConfig, from_ends, improve, start_texts
from overheard.federation.client import client_update, settings_of
from overheard.federation.update import ClientUpdate
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.batching import collate

MOST_DRIFT_ROUNDS = 6

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
        reason: why a text is missing or not exact; None when all are exact.
    """

    texts: tuple[str | None, ...]
    exact: tuple[bool, ...]
    residual: tuple[float, ...] = ()
    relative_residual: tuple[float, ...] = ()
    floor: tuple[float, ...] = ()
    gap: tuple[float, ...] = ()
    evaluations: int = 0
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
) -> TranscriptResult:
    """What was said in every utterance of an update.

    Args:
        model: the public model, with the weights that the client started from.
        update: what the client shared.
        features: (T_i, F) of each of its N utterances.
        config: effort of the search.
        run: of these features, where there is one already.
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
    if protocol.local_steps == 1:
        found = _all_texts(run, gradient, precision, config)
    else:
        found = _through_drift(model, update, features, run, gradient, precision, config)
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
        reason=None if all(exact) else f"{exact.count(False)} of {len(exact)} texts do not explain the update",
    )


def _all_texts(
    run: OutputRun, gradient: Float[Tensor, "V C"], precision: float, config: SearchConfig
) -> list[TextEvidence]:
    """Utterance by utterance; where that makes some exact, their share is subtracted and the others tried again."""
    found: dict[int, TextEvidence] = {}
    known: dict[int, Tensor] = {}
    while len(known) < len(run.logits):
        evidence = frame_evidence(run, gradient, known, precision)
        fresh = {index: _one_text(each, config) for index, each in evidence.items()}
        found |= fresh
        exact = {index: _share(run, index, each.text) for index, each in fresh.items() if each.exact}
        known |= exact
        total = sum(len(inputs) for inputs in run.inputs)
        if not exact or total <= gradient.shape[1]:
            break  # with as many equations as frames, utterances do not stand in each other's way
    return [found[index] for index in range(len(run.logits))]


def judge_texts(
    run: OutputRun, gradient: Float[Tensor, "V C"], precision: float, texts: Sequence[Text], largest: float
) -> list[TextEvidence]:
    """What speaks for given texts of all utterances: each is judged with the others' share subtracted, and with no
    more than `largest` believed as the update's relative error."""
    shares = {index: _share(run, index, text) for index, text in enumerate(texts)}
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


def _share(run: OutputRun, index: int, text: Text) -> Float[Tensor, "T V"]:
    log_probs = run.logits[index].log_softmax(dim=-1)
    return log_probs.exp() - occupancies(log_probs, [text])[:, 0]


def _one_text(evidence: FrameEvidence, config: SearchConfig) -> TextEvidence:
    search = Search(evidence, likely_symbols(evidence))

    def settled(text: Text) -> bool:
        """As the final judgement, with the gap that exchanging neighbours leaves to first order."""
        if text != search.best():
            return False
        design = evidence.whitener @ label_occupancy(evidence.log_probs, list(text))
        steps = torch.cat([design.new_zeros(len(design), 1), design], dim=1).diff(dim=1) if text else design
        gap = sqrt(2) * float(steps.norm(dim=0).min()) if text else float(evidence.occupancy.norm())
        score = search.scores[text]
        return score < gap and score <= sqrt(_floor(search, text) * gap)

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
    own = occupancies(evidence.log_probs, [text])[:, 0]
    signal = float((evidence.whitener @ (evidence.log_probs.exp() - own)).norm())
    return TextEvidence(
        text,
        own,
        text == search.best() and floor < gap and residual <= sqrt(floor * gap),
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
    logits = evidence.log_probs.float()[:, None].requires_grad_()
    targets = torch.tensor([text or (0,)], device=logits.device)
    lengths = torch.tensor([len(evidence.log_probs)]), torch.tensor([len(text)])
    with torch.enable_grad():
        loss = functional.ctc_loss(logits.log_softmax(dim=-1), targets, *lengths, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, logits)
    exact = evidence.log_probs.exp() - occupancies(evidence.log_probs, [text])[:, 0]
    seen = float((evidence.whitener @ (gradient[:, 0].double() - exact)).norm())
    # One run is one draw; the spacing of float32 numbers of the loss's size bounds the relative error of a message.
    spacing = torch.finfo(torch.float32).eps * float(loss.detach())
    return max(seen, spacing * float((evidence.whitener @ exact).norm()))


def _through_drift(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Tensor],
    run: OutputRun,
    gradient: Float[Tensor, "V C"],
    precision: float,
    config: SearchConfig,
) -> list[TextEvidence]:
    """Several local steps: search, run the steps on what was found, subtract what the moving weights did, again."""
    corrected, before = gradient, None
    found: list[TextEvidence] = []
    # A text is not worth a long search before its drift is subtracted.
    effort = replace(config, most_read=(0, 0))
    for _ in range(MOST_DRIFT_ROUNDS):
        found = _all_texts(run, corrected, precision, effort)
        texts = [each.text for each in found]
        if texts == before:
            if effort is config or all(each.exact for each in found):
                break
            effort = config
            continue
        before = texts
        stepped = output_gradient(_simulated(model, update, features, texts), run.layer)
        assert stepped is not None  # the observed update has this layer
        still = _gradient_of(run, texts, gradient.shape[1])
        corrected = gradient - (stepped - still)
    return found


def _simulated(
    model: nn.Module, update: ClientUpdate, features: Sequence[Tensor], texts: Sequence[Text]
) -> ClientUpdate:
    protocol = update.protocol
    settings = settings_of(protocol)
    parameter = next(model.parameters())
    batch = collate([matrix.detach().to("cpu", parameter.dtype) for matrix in features], texts).to(parameter.device)
    return client_update(model, batch, settings, protocol.model, protocol.weights)


def _gradient_of(run: OutputRun, texts: Sequence[Text], columns: int) -> Float[Tensor, "V C"]:
    """The output layer's gradient at the weights that the server sent, summed over utterances."""
    total = run.inputs[0].new_zeros(run.logits[0].shape[1], columns)
    for index, text in enumerate(texts):
        share = _share(run, index, text)
        inputs = run.inputs[index]
        total[:, : inputs.shape[1]] += share.T @ inputs
        if columns > inputs.shape[1]:
            total[:, -1] += share.sum(dim=0)
    return total
