"""Logits -> words by the best symbol of each frame, with scores and the times of words."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from overheard.speech.alphabet import Alphabet, collapse


@dataclass(frozen=True)
class Hypothesis:
    """What a decoder believes was said.

    Attributes:
        text: the words.
        score: natural logarithm of a probability; what kind of one, the decoder says.
    """

    text: str
    score: float


def greedy(
    logits: Float[Tensor, "T_out N V"], output_lengths: Int[Tensor, " N"], alphabet: Alphabet
) -> list[Hypothesis]:
    """Each utterance's most probable path, collapsed (Graves et al. 2006, section 3.2); its score is that path's.

    Args:
        logits: what a recogniser returns.
        output_lengths: frames that count.
        alphabet: the recogniser's.
    """
    scores, paths = logits.float().log_softmax(dim=-1).max(dim=-1)  # (T_out, N)
    hypotheses = []
    for index, length in enumerate(output_lengths.tolist()):
        labels = collapse(paths[:length, index].tolist())
        hypotheses.append(Hypothesis(words_of(labels, alphabet), float(scores[:length, index].sum())))
    return hypotheses


def words_of(labels: Sequence[int], alphabet: Alphabet) -> str:
    """Labels as words parted by one space."""
    return " ".join(alphabet.decode(labels).split())
