"""Hypotheses about how long runs of equal frames lasted, and what the output layer would be shown under each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.observation import Observation
from overheard.attacks.output_layer import OutputRun, output_gradient, relative_rounding, run_output_layer

EQUAL = 1e-3
"""Distance of two frames, relative to the features' root mean square, below which they count as equal."""

FORWARDS_AT_ONCE = 8

ALIKE = 1.02
"""Ratio of scores that tell nothing: of such hypotheses the first is taken, the run no longer than it need be."""

Move = tuple[int, int | None]
"""Index of the run that gains frames, and of that which loses as many, if any."""

Scored = Callable[[Sequence[list[int]]], list[float]]
"""Scores of hypotheses, lower where they are better."""


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


class Hypotheses:
    """Hypotheses about the frames that each run lacks.

    Attributes:
        observation: all that the attacker sees.
        features: (T_i, F) of all utterances, runs of equal frames cut short.
        runs: where they are.
        frames: (1, F) the frame of each.
        gradient: of the layer that writes the logits, with its bias; None where it was not shared, or before the first
            of `outputs`.
        precision: relative rounding of that update.
    """

    def __init__(
        self, observation: Observation, features: tuple[Float[Tensor, "_ F"], ...], runs: tuple[EqualFrames, ...]
    ) -> None:
        self.observation, self.features, self.runs = observation, features, runs
        self.gradient: Float[Tensor, "V C"] | None = None
        self.precision = 0.0
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
            self._name_layer(run.layer)
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

    def spread(self, added: list[int], group: list[int], more: int) -> None:
        """Add frames to the runs of a group, evenly, none left without a frame."""
        for place, index in enumerate(group):
            share = (more + place) // len(group)
            added[index] = max(added[index] + share, 1 - self.runs[index].length)

    def _name_layer(self, layer: str) -> None:
        """Take the update of the layer that writes the logits, once it is known."""
        if self.gradient is None:
            update = self.observation.update
            self.gradient = output_gradient(update, layer)
            self.precision = relative_rounding(self.model, update, f"{layer}.weight" if layer else "weight")


def shown_inputs(run: OutputRun, gradient: Float[Tensor, "V C"]) -> Float[Tensor, "P C"]:
    """What the output layer was shown, all frames below each other, with a one where it has a bias."""
    biased = gradient.shape[1] > run.inputs[0].shape[1]
    return torch.cat([nn.functional.pad(inputs, (0, 1), value=1.0) if biased else inputs for inputs in run.inputs])


def moved(added: Sequence[int], move: Move, by: int) -> list[int]:
    """After a move by so many frames."""
    one, other = move
    after = list(added)
    after[one] += by
    if other is not None:
        after[other] -= by
    return after


def best_along(
    scored: Scored,
    added: list[int],
    move: Move,
    limits: tuple[int, int],
    coarse: bool = True,
) -> list[int]:
    """The hypothesis with the lowest score along a move, sought in ever smaller steps.

    Args:
        scored: scores of hypotheses.
        added: where to start.
        move: along which.
        limits: by how many frames at least and at most.
        coarse: start with steps that reach everywhere; otherwise near by alone.
    """
    low, high = limits
    scores: dict[int, float] = {}
    step = max(1, (high - low) // FORWARDS_AT_ONCE) if coarse else 1
    centre = 0
    while True:
        tried = [
            at for at in range(centre - 4 * step, centre + 4 * step + 1, step) if low <= at <= high and at not in scores
        ]
        scores |= dict(zip(tried, scored([moved(added, move, at) for at in tried]), strict=True))
        least = min(scores.values())
        centre = min(at for at in scores if scores[at] <= ALIKE * least)
        if step == 1:
            return moved(added, move, centre)
        step = max(1, step // 3)
