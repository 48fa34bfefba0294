"""When each word was said: the most probable CTC path that spells a text (Viterbi over blanks and labels)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.speech.alphabet import BLANK, Alphabet, minimum_frames


@dataclass(frozen=True)
class TimedWord:
    """A word and its stretch of the utterance, s, to within one output frame."""

    word: str
    start: float
    end: float


def align(log_probs: Float[Tensor, "T V"], labels: Sequence[int]) -> list[tuple[int, int]]:
    """First frame of each label and the frame after its last, on the best path (Graves et al. 2006, section 4.1).

    Args:
        log_probs: of one utterance.
        labels: to be spelt, blanks left out.

    Raises:
        InputError: more labels than the frames can spell.
    """
    frames = len(log_probs)
    if frames < minimum_frames(labels):
        found = f"{frames} output frames for {len(labels)} labels"
        raise InputError("labels", found, f"{minimum_frames(labels)} frames are needed")
    if not labels:
        return []
    states = torch.full((2 * len(labels) + 1,), BLANK)
    states[1::2] = torch.tensor(labels)
    # A label may follow the one before it without a blank between, unless the two are equal.
    skips = torch.zeros(len(states), dtype=torch.bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs.detach().double().cpu()[:, states]  # (T, states)
    nothing = -torch.inf
    scores = torch.full((len(states),), nothing, dtype=torch.float64)
    scores[:2] = emitted[0, :2]
    came_from = torch.zeros(frames, len(states), dtype=torch.long)
    for frame in range(1, frames):
        one = torch.cat([scores.new_full((1,), nothing), scores[:-1]])
        two = torch.cat([scores.new_full((2,), nothing), scores[:-2]]).masked_fill(~skips, nothing)
        best, came_from[frame] = torch.stack([scores, one, two]).max(dim=0)
        scores = best + emitted[frame]
    state = len(states) - 1 if scores[-1] >= scores[-2] else len(states) - 2
    path = [state]
    for frame in range(frames - 1, 0, -1):
        state -= int(came_from[frame, state])
        path.append(state)
    path.reverse()
    spans = []
    for index in range(len(labels)):
        first = path.index(2 * index + 1)
        spans.append((first, first + path.count(2 * index + 1)))
    return spans


def word_times(log_probs: Float[Tensor, "T V"], text: str, alphabet: Alphabet, seconds: float) -> tuple[TimedWord, ...]:
    """Start and end of every word.

    Args:
        log_probs: of one utterance.
        text: words parted by one space.
        alphabet: the recogniser's.
        seconds: duration of the utterance, over which its output frames lie evenly.
    """
    spans = align(log_probs, alphabet.encode(text))
    each = seconds / max(1, len(log_probs))
    words, place = [], 0
    for word in text.split():
        last = place + len(word) - 1
        words.append(TimedWord(word, round(spans[place][0] * each, 3), round(spans[last][1] * each, 3)))
        place = last + 2
    return tuple(words)
