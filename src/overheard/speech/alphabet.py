"""Characters <-> labels. Label 0 is the CTC blank and stands for no character."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from overheard.errors import InputError

BLANK = 0


@dataclass(frozen=True)
class Alphabet:
    """The symbols a recogniser writes, in label order: `characters[i]` has label `i + 1`.

    The default is LibriSpeech's: apostrophe, A to Z, space; with the blank, V = 29.
    """

    characters: str = "'ABCDEFGHIJKLMNOPQRSTUVWXYZ "

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise InputError("alphabet", repr(self.characters), "give each character once, and at least one")

    @property
    def num_symbols(self) -> int:
        """V: the characters and the blank."""
        return len(self.characters) + 1

    def encode(self, text: str, source: str = "transcript") -> list[int]:
        """Labels of a text; letters match whatever their case.

        Raises:
            InputError: the text has a character that the alphabet lacks; names `source` and the character.
        """
        labels = []
        for character in text:
            label = self._label(character)
            if label is None:
                remedy = f"write it with the alphabet's {len(self.characters)} characters {self.characters!r}"
                raise InputError(source, f"unknown symbol {character!r} in {text[:40]!r}", remedy)
            labels.append(label)
        return labels

    def decode(self, labels: Iterable[int]) -> str:
        """Text of labels; blanks are left out."""
        return "".join(self.characters[label - 1] for label in labels if label != BLANK)

    def _label(self, character: str) -> int | None:
        for variant in (character, character.upper(), character.lower()):
            position = self.characters.find(variant)
            if position >= 0 and len(variant) == 1:
                return position + 1
        return None


def collapse(path: Iterable[int]) -> list[int]:
    """Labels of a CTC path: repeats merged, then blanks removed (Graves et al. 2006, the map B)."""
    return [label for label, _ in groupby(path) if label != BLANK]


def adjacent_repeats(labels: Sequence[int]) -> int:
    """How often a label follows itself; each such pair needs a blank between them."""
    return sum(left == right for left, right in pairwise(labels))


def minimum_frames(labels: Sequence[int]) -> int:
    """Output frames below which no CTC path spells the labels: labels plus adjacent repeats."""
    return len(labels) + adjacent_repeats(labels)
