"""How close a recovered transcript is to the true one: jiwer on upper-case words and single spaces."""

from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class WordScore:
    """Edits per unit of the true transcript; 0 is perfect, more than 1 is possible. None where that is empty."""

    cer: float | None
    wer: float | None


def score_words(recovered: str, true: str) -> WordScore:
    """Character and word error rate (substitutions, insertions, deletions over the true length)."""
    guess, truth = normalised(recovered), normalised(true)
    if not truth:
        return WordScore(None, None)
    return WordScore(float(jiwer.cer(truth, guess)), float(jiwer.wer(truth, guess)))


def normalised(text: str) -> str:
    """Upper case, words parted by one space."""
    return " ".join(text.upper().split())
