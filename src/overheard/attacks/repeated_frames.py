"""How long runs of equal frames last, which the span does not tell.

Digital silence makes frames equal to the last bit. Once such a run fills a window of k frames, more of it adds nothing
to the span: an utterance comes back with k - 1 or k frames in the place of the run, whatever its length was. Behind the
recurrence more is known, since every frame adds to the output layer's update [dW | db] = sum_t r_t [h_t, 1]',
r_t = p_t - gamma_t.

**How many in all.** The rows of symbols that were not said count frames (`unsaid_symbols`).

**Which run.** Several runs of the same silence share that number. States that have not settled on their way through a
run tell how long it was (`repeat_span`). Where they have, it still decides how the words are aligned: the number is
shared out as explains the occupancies best (`transcript`), one run after the other, with the text found so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from overheard.attacks.observation import Observation
from overheard.attacks.output_layer import OutputRun, frame_evidence
from overheard.attacks.silence.repeat_hypotheses import EqualFrames, Hypotheses, best_along, equal_runs
from overheard.attacks.silence.repeat_span import lengths_by_span
from overheard.attacks.silence.unsaid_symbols import missing_frames
from overheard.attacks.transcript import recover_transcripts
from overheard.attacks.words.scored_texts import Search, Text
from overheard.attacks.words.text_search import SearchConfig
from overheard.recognition.recogniser import as_recogniser

ROUNDS = 4


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
    search = Hypotheses(observation, features, runs)
    totals, told_in_all = missing_frames(search)
    guess = [0] * len(runs)
    for group, total in zip(search.groups(), totals, strict=True):
        search.spread(guess, group, total)
    added = lengths_by_span(search, guess, told_in_all)
    told = added is not None
    if added is None and told_in_all:
        told, added = _by_texts(search, guess)
    added = added or [0] * len(runs)
    return Restored(search.hypothesis(added), runs, tuple(added), None if told else untold)


def _by_texts(search: Hypotheses, added: list[int]) -> tuple[bool, list[int]]:
    """Whether texts tell how many frames each run lacks, and how many that is by the best of them."""

    def misfits(hypotheses: Sequence[list[int]]) -> list[float]:
        return [_misfit(search, run, texts) for run in search.outputs(hypotheses)]

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
        before = added
        for group in search.groups():
            for index in group[:-1]:
                limits = tuple(1 - search.runs[each].length - added[each] for each in (index, group[-1]))
                added = best_along(misfits, added, (index, group[-1]), (limits[0], -limits[1]))
        if added == before:
            break
    return exact, added


def _misfit(search: Hypotheses, run: OutputRun, texts: Sequence[Text]) -> float:
    """How badly the texts explain the occupancies that the update tells under a hypothesis."""
    assert search.gradient is not None  # the counts came from it
    evidence = frame_evidence(run, search.gradient, {}, search.precision)
    total = 0.0
    for index, text in enumerate(texts):
        found = Search(evidence[index], []).score([text])
        total += found.get(text, float("inf")) ** 2
    return total
