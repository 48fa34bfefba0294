"""What came back where: the error of each frame, and which words were read, so that half a recovery shows as half."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

CLOSE = 0.01
"""Mean absolute error below which a frame counts as recovered, in the features' unit; the bound that whole
utterances have."""

Fate = Literal["hit", "substituted", "missed", "inserted"]


@dataclass(frozen=True)
class AlignedWord:
    """One step of the shortest way from what was said to what was read.

    Attributes:
        fate: what became of the word.
        said: the true word; None where one was inserted.
        read: the recovered word; None where one was missed.
    """

    fate: Fate
    said: str | None
    read: str | None


def frame_errors(recovered: Float[Tensor, "R F"], true: Float[Tensor, "T F"]) -> Float[Tensor, " T"]:
    """Mean absolute error of each true frame; a frame that did not come back counts as zeros."""
    found = recovered[: len(true)].double()
    found = pad(found, (0, 0, 0, len(true) - len(found)))
    return (found - true.double()).abs().mean(dim=1)


def frames_close(recovered: Float[Tensor, "R F"], true: Float[Tensor, "T F"]) -> int:
    """True frames whose own mean absolute error is below `CLOSE`; more is better for the attacker."""
    return int((frame_errors(recovered, true) < CLOSE).sum())


def align_words(true: str, recovered: str) -> tuple[AlignedWord, ...]:
    """Words of both transcripts side by side, by jiwer's alignment of fewest edits, whatever their case."""
    said, read = true.split(), recovered.split()
    if not said:
        return tuple(AlignedWord("inserted", None, word) for word in read)
    if not read:
        return tuple(AlignedWord("missed", word, None) for word in said)
    output = jiwer.process_words(" ".join(said).upper(), " ".join(read).upper())
    words: list[AlignedWord] = []
    for chunk in output.alignments[0]:
        ours, theirs = said[chunk.ref_start_idx : chunk.ref_end_idx], read[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            words += [AlignedWord("missed", word, None) for word in ours]
        elif chunk.type == "insert":
            words += [AlignedWord("inserted", None, word) for word in theirs]
        else:
            fate: Fate = "hit" if chunk.type == "equal" else "substituted"
            words += [AlignedWord(fate, one, other) for one, other in zip(ours, theirs, strict=True)]
    return tuple(words)


def count_hits(words: Sequence[AlignedWord]) -> int:
    """True words that were read, in their order."""
    return sum(word.fate == "hit" for word in words)
