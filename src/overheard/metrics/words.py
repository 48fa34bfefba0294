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


@dataclass(frozen=True)
class WordErrors:
    """Edits and lengths summed over a corpus, so that long utterances weigh more than short ones."""

    word_edits: int = 0
    words: int = 0
    character_edits: int = 0
    characters: int = 0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(
            self.word_edits + other.word_edits,
            self.words + other.words,
            self.character_edits + other.character_edits,
            self.characters + other.characters,
        )

    @property
    def wer(self) -> float | None:
        """Word error rate; None without words."""
        return self.word_edits / self.words if self.words else None

    @property
    def cer(self) -> float | None:
        """Character error rate, spaces included; None without characters."""
        return self.character_edits / self.characters if self.characters else None


def count_errors(recognised: str, true: str) -> WordErrors:
    """Substitutions, deletions and insertions of one utterance, words and characters."""
    guess, truth = normalised(recognised), normalised(true)
    if not truth:
        # jiwer refuses an empty reference; everything said into it is inserted.
        return WordErrors(len(guess.split()), 0, len(guess), 0)
    words, characters = jiwer.process_words(truth, guess), jiwer.process_characters(truth, guess)
    return WordErrors(
        words.substitutions + words.deletions + words.insertions,
        words.hits + words.substitutions + words.deletions,
        characters.substitutions + characters.deletions + characters.insertions,
        characters.hits + characters.substitutions + characters.deletions,
    )
