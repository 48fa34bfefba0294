"""Local search over texts: which edit brings the occupancies of a text nearer to the observed ones."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from overheard.attacks.words.edits import double_exchanges, edits, together
from overheard.attacks.words.filled_gaps import filled_gaps
from overheard.attacks.words.growing_texts import Reading
from overheard.attacks.words.joined_readings import joined_readings, readings
from overheard.attacks.words.lattice_decoding import (
    average_label_occupancy,
    nearest_texts,
    rank_lengths,
)
from overheard.attacks.words.mended_texts import mended
from overheard.attacks.words.paired_edits import twice_edited
from overheard.attacks.words.prefix_decoding import prefix_texts
from overheard.attacks.words.refitted_texts import refitted
from overheard.attacks.words.scored_texts import Search, Text
from overheard.speech.alphabet import collapse

LEAST_OCCUPANCY, MOST_OCCUPANCY = 1e-4, 1e-2
"""Between these is the occupancy that prefix beam search does not tell from none."""

SHORT = 140
"""Output frames up to which an utterance is short."""

LONG = 320
"""Output frames from which on whole texts are dear."""

NEAR, LONG_NEAR = 0.2, 0.1
"""Score, relative to that of no text, below which local search comes before readings; the same of long utterances."""

Settled = Callable[[Text], bool]
"""Whether a text explains so much that searching on is in vain."""


@dataclass(frozen=True)
class SearchConfig:
    """Effort of the search.

    Attributes:
        beam: partial texts kept in integer least squares.
        ridge: error of average symbols' occupancies that is assumed there.
        lengths: numbers of labels that are fitted once, likeliest first.
        prefixes: kept by prefix beam search, before integer least squares and, where nothing else settled it, after.
        edits: of each kind, looked at in one round of local search.
        kept: of these, scored.
        starts: lengths that are refitted, and texts that local search starts from.
        evaluations: texts of a short utterance scored before the search gives up; see `limit` and `spent`.
        readings: prefixes kept in reading from either end, before the wider beam and where all else has failed.
        most_read: output frames up to which each of them is tried.
        fillings: texts that local search starts from then.
        refits: texts with a stretch sought again that are fitted anew.
    """

    beam: int = 32
    ridge: float = 0.3
    lengths: int = 16
    prefixes: tuple[int, int] = (64, 512)
    edits: int = 256
    kept: int = 8
    starts: int = 6
    evaluations: int = 24000
    readings: tuple[int, int] = (6, 24)
    most_read: tuple[int, int] = (1000, 300)
    fillings: int = 3
    refits: int = 4

    def limit(self, frames: int) -> int:
        """Texts scored: of longer utterances fewer, as each takes longer, but no less than half as many."""
        return int(self.evaluations * min(1.0, max(0.5, (SHORT / frames) ** 2)))

    def spent(self, search: Search) -> bool:
        """Whether that many have been, and the last quarter of them in vain; twice as many at most."""
        limit = self.limit(search.frames)
        if not limit <= search.effort < 2 * limit:
            return search.effort >= limit
        return search.effort - search.found_at > limit // 4


def start_texts(search: Search, config: SearchConfig, settled: Settled) -> list[Text]:
    """Score texts until one is settled: from prefix beam search, then of every likely length by integer least squares,
    refitted to themselves; then by local search, if the best of these is near, by reading from either end, by local
    search from the best of all, from a wider beam.

    Returns:
        texts that local search should start from, best first: the best of each way but local search, since texts of one
        way are alike, then the best of all.
    """
    greedy = collapse(search.evidence.smoothed.argmax(dim=1).tolist())
    few, many = config.prefixes
    best: list[Text] = []

    def settles(way: Callable[[], object]) -> bool:
        before = set(search.scores)
        way()
        fresh = [text for text in search.scores if text not in before]
        best.extend(sorted(fresh, key=lambda text: search.scores[text])[:1])
        return settled(search.best())

    def explains_most() -> bool:
        near = NEAR if search.frames < LONG else LONG_NEAR
        return search.scores[search.best()] < near * search.scores[()]

    if (
        settles(lambda: search.score([(), tuple(label for label in greedy if label in search.symbols)]))
        or settles(lambda: _from_prefixes(search, few))
        or settles(lambda: _by_lengths(search, config, settled))
        or (explains_most() and settled(improve(search, config, search.best(), settled)))
        or settles(lambda: from_ends(search, config, False, settled))
        or settled(improve(search, config, search.best(), settled))
        or settles(lambda: _from_prefixes(search, many))
    ):
        return [search.best()]
    ranked = sorted(search.scores, key=lambda text: search.scores[text])
    starts = sorted(best[1:], key=lambda text: search.scores[text])
    return list(dict.fromkeys([*starts, *ranked]))[: config.starts]


def from_ends(search: Search, config: SearchConfig, wide: bool, settled: Settled) -> None:
    """Score readings from either end, both joined, each joined with the best text so far, and texts that fill what lies
    between them; local search from the best of these; and again, with what that found for a hint, until a text is
    settled or none is better; nothing where the utterance is too long for it.

    Args:
        search: of one utterance.
        config: its effort.
        wide: read with the wider beam.
        settled: whether a text is the right one.
    """
    better = search.frames <= config.most_read[wide]
    while better and not _done(search, config, search.best(), settled):
        hint = search.best()
        start, end = _read(search, config.readings[wide], hint, settled)
        if settled(search.best()):
            return
        better, so_far = False, Reading([hint], hint)
        read = [*joined_readings(start, so_far), *joined_readings(so_far, end)]
        gaps = filled_gaps(search.evidence, search.symbols, start.explained, end.explained)
        found = search.score([*read, *gaps])
        for text in sorted(found, key=lambda each: found[each])[: config.fillings]:
            improve(search, config, text, settled)
            better = search.best() != hint
            if better:
                break


def _read(search: Search, beam: int, hint: Text, settled: Settled) -> tuple[Reading, Reading]:
    """Readings from both ends as far as they get, or until both joined are settled."""
    start = end = Reading([()], ())
    for start, end in readings(search.evidence, search.symbols, beam, hint):
        search.score([*start.texts, *end.texts, *joined_readings(start, end)])
        if settled(search.best()):
            break
    return start, end


def _from_prefixes(search: Search, beam: int) -> None:
    """Score texts of prefix beam search."""
    observed = search.evidence.smoothed
    error = search.evidence.noise / observed.numel() ** 0.5
    search.score(prefix_texts(observed, beam, min(max(error, LEAST_OCCUPANCY), MOST_OCCUPANCY)))


def _by_lengths(search: Search, config: SearchConfig, settled: Settled) -> None:
    """Score texts of every likely length by integer least squares, refitted to themselves, until one is settled."""
    evidence = search.evidence
    target = evidence.whitener @ evidence.occupancy[:, search.symbols]
    # A doubled letter takes a frame more than average symbols do, so the length is known to within their number; the
    # first fit is already much better at the right length than beside it.
    first, so_far = list[Text](), search.scores[search.best()]
    for length in rank_lengths(evidence.weighted, evidence.smoothed, evidence.whitener)[: config.lengths]:
        design = average_label_occupancy(evidence.weighted, evidence.smoothed, length)
        text = fitted(search, config, target, design)
        if text is not None:
            first.append(text)
            if settled(text):
                return
    # Where a model is so sure of its frames that average symbols are no help, none of these is nearer than what prefix
    # beam search found, and refits of a long text are dear.
    worth = [text for text in first if search.frames < LONG or search.scores[text] < so_far]
    for text in sorted(worth, key=lambda text: search.scores[text])[: config.starts]:
        if settled(refitted(search, text, 0, len(text))):
            return


def fitted(search: Search, config: SearchConfig, target: Tensor, design: Tensor) -> Text | None:
    """The best of the texts that least squares ranks first; None where none of them has a path."""
    if design.shape[1] == 0:
        return None
    texts = nearest_texts(search.evidence.whitener @ design, target, config.ridge, config.beam)[:4].tolist()
    found = search.score(tuple(search.symbols[column] for column in text) for text in texts)
    return min(found, key=lambda text: found[text], default=None)


def improve(search: Search, config: SearchConfig, text: Text, settled: Settled) -> Text:
    """Fit what is in doubt anew, then follow edits, in turn, until no edit and no two side by side help, the text is
    settled, or the effort is spent."""
    while True:
        before = _mended(search, config, text, settled)
        text = _edited(search, config, before, settled)
        if text == before and not _done(search, config, text, settled):
            text = twice_edited(search, text)
        if text == before or _done(search, config, text, settled):
            return text


def _done(search: Search, config: SearchConfig, text: Text, settled: Settled) -> bool:
    return settled(text) or config.spent(search)


def _mended(search: Search, config: SearchConfig, text: Text, settled: Settled) -> Text:
    """Fitted anew for as long as that helps."""
    while not _done(search, config, text, settled):
        before, text = text, mended(search, text, config.refits)
        if text == before:
            break
    return text


def _edited(search: Search, config: SearchConfig, text: Text, settled: Settled) -> Text:
    """After the best edit, with others that lie apart from it, for as long as one helps."""
    while not _done(search, config, text, settled):
        better: list[Text] = []
        for kind in (edits, double_exchanges):  # the second where nothing else helps
            found = search.nearest(text, kind(search, text, config.edits), config.kept)
            better = sorted((each for each in found if found[each] < search.scores[text]), key=lambda each: found[each])
            if better:
                break
        if not better:
            break
        found = {better[0]: found[better[0]]} | search.score(together(text, better))
        text = min(found, key=lambda each: found[each])
    return text
