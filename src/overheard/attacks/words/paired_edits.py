"""Two edits side by side as one: where a text ends in a few wrong labels that no single edit mends.

EASYTH for EASY THE lacks two labels, and either alone leaves more unexplained than both. All texts an edit of the most
doubtful labels away are scored, and all that another edit makes of the best of them.
"""

from overheard.attacks.words.mended_texts import DOUBTFUL, doubtful_stretch
from overheard.attacks.words.near_prefixes import edits
from overheard.attacks.words.scored_texts import Search, Text

MOST = 12
"""Labels of a stretch that is edited so."""

KEPT = 8
"""Texts an edit away that are edited again."""


def twice_edited(search: Search, text: Text) -> Text:
    """A better text, two edits away; the same one where none is found, or more labels are in doubt.

    Args:
        search: of one utterance; `text` is scored.
        text: at which local search ends.
    """
    if not text:
        return text
    first, stop = doubtful_stretch(search.doubt(text).tolist(), DOUBTFUL[0])
    first, stop = max(0, first - 1), min(len(text), stop + 1)
    if stop - first > MOST:
        return text
    once = search.nearest(text, _edited_between(search, text, first, stop), KEPT)
    for other in sorted(once, key=lambda each: once[each])[:KEPT]:
        twice = search.nearest(other, _edited_between(search, other, first, stop + len(other) - len(text)), KEPT)
        best = min(twice, key=lambda each: twice[each], default=text)
        if search.scores[best] < search.scores[text]:
            return best
    return text


def _edited_between(search: Search, text: Text, first: int, stop: int) -> list[Text]:
    return [(*text[:first], *middle, *text[stop:]) for middle in edits(text[first:stop], search.symbols)]
