"""Texts whose most doubtful stretch is fitted anew, with labels more or fewer.

What a text does not explain lies in the frames of its wrong labels, and these stand together. A short stretch is sought
again as if nothing were known of it (`filled_gaps`); in a longer one labels are repeated or left out at a few places,
as all others fall into place from there (`refitted_texts`).
"""

from overheard.attacks.words.edits import APART
from overheard.attacks.words.filled_gaps import refilled
from overheard.attacks.words.refitted_texts import refitted, with_more_or_fewer
from overheard.attacks.words.scored_texts import Search, Text

DOUBTFUL = (0.3, 0.1, 0.03)
"""Misfit at a label, relative to the largest, from which on the label is in doubt, one after the other."""

SHORT_STRETCH = 43
"""Labels that are sought again as if nothing were known of them."""

PLACES, DIFFERENCES = 6, (1, -1, 2, -2)
"""At which labels are repeated or left out in a longer stretch, and how many."""

WIDER = 6
"""Labels by which a stretch is fitted wider, either side."""


def mended(search: Search, text: Text, refits: int) -> Text:
    """A better text; the same one where none is found.

    Args:
        search: of one utterance; `text` is scored.
        text: to start from.
        refits: texts that are fitted anew for each stretch.
    """
    doubt = search.doubt(text).tolist() if text else []
    for first, stop in dict.fromkeys(doubtful_stretch(doubt, share) for share in DOUBTFUL if doubt):
        if stop - first <= SHORT_STRETCH:
            texts = refilled(search.evidence, search.symbols, text, first, stop)
        else:
            places = range(first, stop, (stop - first) // PLACES)
            texts = with_more_or_fewer(text, places, DIFFERENCES)
        found = search.score([text]) | search.nearest(text, texts, refits)
        fitted = {
            refitted(search, start, max(0, first - WIDER), min(len(start), stop + len(start) - len(text) + WIDER))
            for start in sorted(found, key=lambda each: found[each])[:refits]
        }
        best = min(fitted, key=lambda each: search.scores[each])
        if search.scores[best] < search.scores[text]:
            return best
    return text


def doubtful_stretch(doubt: list[float], share: float) -> tuple[int, int]:
    """The first label, and the one behind the last, of those about the most doubtful that are in doubt, too."""
    most = max(doubt)
    places = [place for place, each in enumerate(doubt) if each > share * most]
    first = last = doubt.index(most)
    for place in reversed(places):
        first = place if first - APART <= place < first else first
    for place in places:
        last = place if last < place <= last + APART else last
    return first, last + 1
