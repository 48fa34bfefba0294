"""How long runs of equal frames last, which the span does not tell.

Digital silence makes frames equal to the last bit. Once such a run fills a window of k frames, more of it adds nothing
to the span: an utterance comes back with k - 1 or k frames in the place of the run, whatever its length was. Behind the
recurrence more is known, since every frame adds to the output layer's update [dW | db] = sum_t r_t [h_t, 1]',
r_t = p_t - gamma_t.

**How many in all.** A symbol v that was not said has gamma_t(v) = 0, so its row is sum_t p_t(v) [h_t, 1]'. In a run the
states settle, and each frame more adds the same p(v) [h, 1]'. What is missing of the row, as a multiple of that, is the
number of missing frames; a row that is no multiple of it belongs to a symbol that was said.

**Which run.** Several runs of the same silence share that number. Where they lie decides how the words are aligned, so
it is shared out as explains the occupancies best (`transcript`), one run after the other, with the text found so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.observation import Observation
from overheard.attacks.output_layer import (
    OutputRun,
    frame_evidence,
    output_gradient,
    relative_rounding,
    run_output_layer,
)
from overheard.attacks.transcript import recover_transcripts
from overheard.attacks.words.scored_texts import Search, Text
from overheard.attacks.words.text_search import SearchConfig
from overheard.recognition.recogniser import as_recogniser

EQUAL = 1e-3
"""Distance of two frames, relative to the features' root mean square, below which they count as equal."""

SETTLING = 10
"""Frames added to a run so that the states in its middle have settled."""

WHOLE = 0.25
"""How far from a whole number a count may come out."""

ROUNDS = 4
FORWARDS_AT_ONCE = 8


@dataclass(frozen=True)
class EqualFrames:
    """A run of equal frames.

    Attributes:
        utterance: index.
        start: its first frame.
        length: frames found.
    """

    utterance: int
    start: int
    length: int


@dataclass(frozen=True)
class Restored:
    """Features with runs of equal frames as long as they were.

    Attributes:
        features: (T_i, F).
        runs: as they were found.
        added: frames added to each; negative where the span alone gave too many.
        reason: why a run may still be too short or too long; None where all were told.
    """

    features: tuple[Float[Tensor, "_ F"], ...]
    runs: tuple[EqualFrames, ...] = ()
    added: tuple[int, ...] = ()
    reason: str | None = None

    def diagnostics(self) -> dict[str, list[list[int]]]:
        """Utterance, first frame and length found of each run, and the frames added to it; nothing without runs."""
        runs = [[run.utterance, run.start, run.length, more] for run, more in zip(self.runs, self.added, strict=True)]
        return {"equal_frames": runs} if runs else {}


def equal_runs(features: Sequence[Float[Tensor, "_ F"]], shortest: int) -> tuple[EqualFrames, ...]:
    """Runs of at least so many equal frames."""
    found = []
    for index, matrix in enumerate(features):
        scale = float(matrix.square().mean().sqrt())
        equal = (matrix.diff(dim=0).square().mean(dim=1).sqrt() < EQUAL * scale).tolist()
        start = 0
        for frame, same in enumerate([*equal, False]):
            if not same:
                if frame + 1 - start >= shortest:
                    found.append(EqualFrames(index, start, frame + 1 - start))
                start = frame + 1
    return tuple(found)


def restore_repeats(observation: Observation, features: tuple[Float[Tensor, "_ F"], ...], window: int) -> Restored:
    """Find out how long runs of equal frames were.

    Args:
        observation: all that the attacker sees.
        features: (T_i, F) of all utterances, runs of equal frames cut short.
        window: k of the layer whose span they came from.
    """
    runs = equal_runs(features, max(2, window - 1))
    if not runs:
        return Restored(features)
    update = observation.update
    untold = "runs of equal frames fill whole windows; how long they last, the update does not tell"
    if update.protocol.local_steps > 1 or len(features) != update.protocol.num_utterances:
        return Restored(features, runs, (0,) * len(runs), untold)
    search = _Search(observation, features, runs)
    totals = _totals(search)
    if totals is None:
        return Restored(features, runs, (0,) * len(runs), untold)
    added, told = _shared_out(search, totals)
    return Restored(search.hypothesis(added), runs, tuple(added), None if told else untold)


class _Search:
    """Hypotheses about the frames that each run lacks."""

    def __init__(
        self, observation: Observation, features: tuple[Float[Tensor, "_ F"], ...], runs: tuple[EqualFrames, ...]
    ) -> None:
        self.observation, self.features, self.runs = observation, features, runs
        self.frames = [
            features[run.utterance][run.start : run.start + run.length].mean(dim=0, keepdim=True) for run in runs
        ]

    @property
    def model(self) -> nn.Module:
        return self.observation.model

    def groups(self) -> list[list[int]]:
        """Runs of the same frame."""
        groups: list[list[int]] = []
        for index, frame in enumerate(self.frames):
            scale = float(frame.square().mean().sqrt())
            same = (
                group
                for group in groups
                if float((self.frames[group[0]] - frame).square().mean().sqrt()) < EQUAL * scale
            )
            group = next(same, None)
            if group is None:
                groups.append([index])
            else:
                group.append(index)
        return groups

    def hypothesis(self, added: Sequence[int]) -> tuple[Float[Tensor, "_ F"], ...]:
        """Features with so many frames more in each run."""
        parts: list[list[Tensor]] = [[] for _ in self.features]
        after = [0] * len(self.features)
        for run, frame, more in zip(self.runs, self.frames, added, strict=True):
            parts[run.utterance] += [
                self.features[run.utterance][after[run.utterance] : run.start],
                frame.expand(run.length + more, -1),
            ]
            after[run.utterance] = run.start + run.length
        return tuple(torch.cat([*parts[index], matrix[after[index] :]]) for index, matrix in enumerate(self.features))

    def middle(self, index: int, added: Sequence[int]) -> tuple[int, int]:
        """Utterance and frame of the middle of a run under a hypothesis."""
        run = self.runs[index]
        before = sum(
            more
            for other, more in zip(self.runs, added, strict=True)
            if other.utterance == run.utterance and other.start < run.start
        )
        return run.utterance, run.start + before + (run.length + added[index]) // 2

    def outputs(self, hypotheses: Sequence[Sequence[int]]) -> list[OutputRun]:
        """What the output layer is shown under each; several at once where utterances do not influence each other."""
        mode, count = self.observation.update.protocol.mode, len(self.features)
        at_once = FORWARDS_AT_ONCE if mode == "eval" else 1
        found = []
        for start in range(0, len(hypotheses), at_once):
            some = hypotheses[start : start + at_once]
            run = run_output_layer(self.model, [each for added in some for each in self.hypothesis(added)], mode)
            if run is None:
                return []
            found += [
                OutputRun(
                    run.layer,
                    run.inputs[at * count : (at + 1) * count],
                    run.logits[at * count : (at + 1) * count],
                    run.repeatable,
                )
                for at in range(len(some))
            ]
        return found


def _totals(search: _Search) -> list[int] | None:
    """Frames that all runs of each group lack together; None where the output layer does not tell."""
    groups = search.groups()
    added = [SETTLING] * len(search.runs)
    for _ in range(ROUNDS):
        outputs = search.outputs([added])
        gradient = output_gradient(search.observation.update, outputs[0].layer) if outputs else None
        if gradient is None or not outputs[0].repeatable:
            return None
        missing = _missing(search, groups, added, outputs[0], gradient)
        if missing is None:
            return None
        if all(each == 0 for each in missing):
            return [sum(added[index] for index in group) for group in groups]
        for group, more in zip(groups, missing, strict=True):
            _spread(search, added, group, more)
    return None


def _spread(search: _Search, added: list[int], group: list[int], more: int) -> None:
    """Add frames to the runs of a group, evenly, none left without a frame."""
    for place, index in enumerate(group):
        share = (more + place) // len(group)
        added[index] = max(added[index] + share, 1 - search.runs[index].length)


def _missing(
    search: _Search, groups: list[list[int]], added: list[int], run: OutputRun, gradient: Float[Tensor, "V C"]
) -> list[int] | None:
    """Frames that the runs of each group lack, by the rows of the symbols that were not said."""
    biased = gradient.shape[1] > run.inputs[0].shape[1]
    inputs = [nn.functional.pad(each, (0, 1), value=1.0) if biased else each for each in run.inputs]
    probabilities = [logits.softmax(dim=1) for logits in run.logits]
    missing = gradient - sum(
        (share.T @ shown for share, shown in zip(probabilities, inputs, strict=True)), torch.zeros_like(gradient)
    )
    settled = [search.middle(group[0], added) for group in groups]
    rows = torch.stack([inputs[utterance][frame] for utterance, frame in settled])  # (G, C)
    weights = torch.stack([probabilities[utterance][frame] for utterance, frame in settled])  # (G, V)
    amounts = torch.linalg.lstsq(rows.T, missing.T).solution  # (G, V)
    misfit = (missing - amounts.T @ rows).norm(dim=1) / rows.norm(dim=1).min()
    # What was said misses whole occupancies; what was not, the little that states had not settled by.
    relative = misfit / weights.min(dim=0).values
    unsaid = [int(symbol) for symbol in relative.argsort() if symbol > 0][:3]
    if not unsaid:
        return None
    counts = (amounts[:, unsaid] / weights[:, unsaid]).median(dim=1).values
    best = float(relative[unsaid[0]])
    if best > WHOLE * max(1.0, float(counts.abs().max())) or float((counts - counts.round()).abs().max()) > WHOLE:
        return None
    return [int(each) for each in counts.round()]


def _shared_out(search: _Search, totals: list[int]) -> tuple[list[int], bool]:
    """Frames that each run lacks, and whether more than arithmetic speaks for it."""
    groups = search.groups()
    added = [0] * len(search.runs)
    for group, total in zip(groups, totals, strict=True):
        _spread(search, added, group, total)
    if all(len(group) == 1 for group in groups):
        return added, True
    exact = False
    for _ in range(ROUNDS):
        outputs = search.outputs([added])
        found = recover_transcripts(
            search.model,
            search.observation.update,
            search.hypothesis(added),
            SearchConfig(evaluations=5000),
            outputs[0],
        )
        exact = all(found.exact)
        said = [text for text in found.texts if text is not None]
        if exact or len(said) < len(found.texts):
            break
        texts = [tuple(as_recogniser(search.model).alphabet.encode(text)) for text in said]
        before = list(added)
        for group in groups:
            for index in group[:-1]:
                _move(search, added, index, group[-1], texts)
        if added == before:
            break
    return added, exact


def _move(search: _Search, added: list[int], one: int, other: int, texts: Sequence[Text]) -> None:
    """Move frames between two runs as explains the occupancies of the texts best."""
    low, high = 1 - search.runs[one].length - added[one], search.runs[other].length - 1 + added[other]
    scores: dict[int, float] = {}
    step = max(1, (high - low) // FORWARDS_AT_ONCE)
    centre = 0
    while True:
        tried = [
            at for at in range(centre - 4 * step, centre + 4 * step + 1, step) if low <= at <= high and at not in scores
        ]
        hypotheses = []
        for at in tried:
            moved = list(added)
            moved[one], moved[other] = moved[one] + at, moved[other] - at
            hypotheses.append(moved)
        scores |= dict(zip(tried, (_misfit(search, run, texts) for run in search.outputs(hypotheses)), strict=True))
        centre = min(scores, key=lambda at: scores[at])
        if step == 1:
            break
        step = max(1, step // 3)
    added[one], added[other] = added[one] + centre, added[other] - centre


def _misfit(search: _Search, run: OutputRun, texts: Sequence[Text]) -> float:
    """How badly the texts explain the occupancies that the update tells under a hypothesis."""
    update = search.observation.update
    gradient = output_gradient(update, run.layer)
    assert gradient is not None  # the counts came from it
    precision = relative_rounding(search.model, update, f"{run.layer}.weight" if run.layer else "weight")
    evidence = frame_evidence(run, gradient, {}, precision)
    total = 0.0
    for index, text in enumerate(texts):
        found = Search(evidence[index], []).score([text])
        total += found.get(text, float("inf")) ** 2
    return total
