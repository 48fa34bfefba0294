"""Local search over texts: which edit brings the occupancies of a text nearer to the observed ones."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.filled_gaps import filled_gaps
from overheard.attacks.words.growing_texts import joined_readings, readings
from overheard.attacks.words.lattice_decoding import (
    average_label_occupancy,
    label_occupancy,
    nearest_texts,
    rank_lengths,
)
from overheard.attacks.words.prefix_decoding import prefix_texts
from overheard.attacks.words.relaxed_texts import relaxed_texts
from overheard.recognition.ctc import ctc_occupancy
from overheard.speech.alphabet import collapse, minimum_frames

AT_ONCE = 2**20
"""Values of a lattice that are scored at once: what stays in a processor's cache."""

LEAST_OCCUPANCY, MOST_OCCUPANCY = 1e-4, 1e-2
"""Between these is the occupancy that prefix beam search does not tell from none."""

SHORT = 140
"""Output frames up to which an utterance is short."""

APART = 4
"""Labels between two edits that are tried together."""

NEAR = 8
"""Labels between two exchanges that are tried as one edit."""

Text = tuple[int, ...]
Settled = Callable[[Text], bool]
"""Whether a text explains so much that searching on is in vain."""


@dataclass(frozen=True)
class SearchConfig:
    """Effort of the search.

    Attributes:
        beam: partial texts kept in integer least squares.
        ridges: errors of label occupancies that are assumed there, one after the other.
        lengths: numbers of labels that are fitted once, likeliest first.
        prefixes: kept by prefix beam search, before integer least squares and, where nothing else settled it, after.
        edits: of each kind, scored in one round of local search.
        starts: lengths that are refitted, and texts that local search starts from.
        kicks: relaxed solutions from which local search starts again where it has ended beside the text.
        evaluations: texts of a short utterance scored before the search gives up; see `limit`.
        readings: prefixes kept in reading from either end, before the wider beam and where all else has failed.
        most_read: output frames up to which each of them is tried.
        fillings: texts with a gap filled that local search starts from then.
    """

    beam: int = 32
    ridges: tuple[float, ...] = (0.3, 0.1, 0.03)
    lengths: int = 16
    prefixes: tuple[int, int] = (64, 512)
    edits: int = 32
    starts: int = 6
    kicks: int = 12
    evaluations: int = 24000
    readings: tuple[int, int] = (6, 24)
    most_read: tuple[int, int] = (1000, 300)
    fillings: int = 6

    def limit(self, frames: int) -> int:
        """Texts scored at most: of longer utterances fewer, as each takes longer, but no less than half as many."""
        return int(self.evaluations * min(1.0, max(0.5, (SHORT / frames) ** 2)))


@dataclass
class Search:
    """One utterance's search: its evidence, and what has been scored.

    Attributes:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        scores: |W (gamma(y) - gamma_observed)| by text, Frobenius norm.
    """

    evidence: FrameEvidence
    symbols: list[int]
    scores: dict[Text, float] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Output frames."""
        return len(self.evidence.log_probs)

    def score(self, texts: Iterable[Text]) -> dict[Text, float]:
        """Scores of texts; those without a path are left out."""
        wanted = {text: None for text in texts if minimum_frames(text) <= self.frames}
        fresh = sorted((text for text in wanted if text not in self.scores), key=len)
        while fresh:
            rows = max(1, AT_ONCE // (self.frames * (2 * len(fresh[-1]) + 3)))
            batch, fresh = fresh[-rows:], fresh[:-rows]
            misfit = occupancies(self.evidence.log_probs, batch) - self.evidence.occupancy[:, None]
            norms = torch.linalg.vector_norm(self.whiten(misfit), dim=(0, 2))
            self.scores |= dict(zip(batch, norms.tolist(), strict=True))
        return {text: self.scores[text] for text in wanted}

    def whiten(self, values: Tensor) -> Tensor:
        """W along the first dimension."""
        return (self.evidence.whitener @ values.flatten(1)).view_as(values)

    def best(self) -> Text:
        """The best text so far."""
        return min(self.scores, key=lambda text: self.scores[text])


def occupancies(log_probs: Float[Tensor, "T V"], texts: list[Text]) -> Float[Tensor, "T N V"]:
    """gamma of many texts of one utterance."""
    longest = max(1, max(len(text) for text in texts))
    targets = torch.zeros(len(texts), longest, dtype=torch.long, device=log_probs.device)
    for row, text in zip(targets, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    many = log_probs[:, None].expand(-1, len(texts), -1)
    return ctc_occupancy(many, targets, [len(log_probs)] * len(texts), [len(text) for text in texts])


def likely_symbols(evidence: FrameEvidence) -> list[int]:
    """Labels whose expected number of frames, sum_t p_t - db, is more than its own expected error.

    A label that is in the text is expected for about a frame or more; where the error is not well below that, the sums
    tell nothing and every label stays.
    """
    mass = evidence.smoothed.sum(dim=0)
    error = evidence.noise / len(mass) ** 0.5
    every = list(range(1, len(mass)))
    found = [label for label in every if float(mass[label]) > error]
    return found if found and error < 0.25 else every


def start_texts(search: Search, config: SearchConfig, settled: Settled) -> list[Text]:
    """Score texts until one is settled: from prefix beam search, then of every likely length by integer least squares,
    refitted to themselves, then by local search from the best of these, then by reading from either end, then from a
    wider beam, which costs most.

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

    if (
        settles(lambda: search.score([(), tuple(label for label in greedy if label in search.symbols)]))
        or settles(lambda: _from_prefixes(search, few))
        or settles(lambda: _by_lengths(search, config, settled))
        or settled(improve(search, config, search.best(), settled))
        or settles(lambda: from_ends(search, config, False, settled))
        or settles(lambda: _from_prefixes(search, many))
    ):
        return [search.best()]
    ranked = sorted(search.scores, key=lambda text: search.scores[text])
    starts = sorted(best[1:], key=lambda text: search.scores[text])
    return list(dict.fromkeys([*starts, *ranked]))[: config.starts]


def from_ends(search: Search, config: SearchConfig, wide: bool, settled: Settled) -> None:
    """Score readings from either end and of both joined, then local search from texts that fill what lies between them,
    until one is settled; nothing where the utterance is too long for it.

    Args:
        search: of one utterance.
        config: its effort.
        wide: read with the wider beam.
        settled: whether a text is the right one.
    """
    if search.frames > config.most_read[wide]:
        return
    start, end = readings(search.evidence, search.symbols, config.readings[wide])
    search.score([*start.texts, *end.texts, *joined_readings(start, end)])
    if settled(search.best()):
        return
    found = search.score(filled_gaps(search.evidence, search.symbols, start.explained, end.explained))
    for text in sorted(found, key=lambda each: found[each])[: config.fillings]:
        if settled(improve(search, config, text, settled)):
            return


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
    first: dict[int, Text] = {}
    for length in rank_lengths(evidence.log_probs, evidence.smoothed, evidence.whitener)[: config.lengths]:
        design = average_label_occupancy(evidence.log_probs, evidence.smoothed, length)
        text = _fitted(search, config, target, design, config.ridges[0])
        if text is not None:
            first[length] = text
            if settled(text):
                return
    for length in sorted(first, key=lambda length: search.scores[first[length]])[: config.starts]:
        best = first[length]
        for ridge in config.ridges:
            design = label_occupancy(evidence.log_probs, list(best))
            text = _fitted(search, config, target, design, ridge)
            if text is not None and search.scores[text] < search.scores[best]:
                best = text
                if settled(text):
                    return


def _fitted(search: Search, config: SearchConfig, target: Tensor, design: Tensor, ridge: float) -> Text | None:
    """The best of the texts that least squares ranks first; None where none of them has a path."""
    if design.shape[1] == 0:
        return None
    texts = nearest_texts(search.evidence.whitener @ design, target, ridge, config.beam)[:4].tolist()
    found = search.score(tuple(search.symbols[column] for column in text) for text in texts)
    return min(found, key=lambda text: found[text], default=None)


def improve(search: Search, config: SearchConfig, text: Text, settled: Settled) -> Text:
    """Follow the best edit, with others that lie apart from it, until none helps, the text is settled, or the effort is
    spent."""
    while not settled(text) and len(search.scores) < config.limit(search.frames):
        better: list[Text] = []
        for kind in (edits, double_exchanges):  # the second where nothing else helps
            found = search.score(kind(search, text, config.edits))
            better = sorted((each for each in found if found[each] < search.scores[text]), key=lambda each: found[each])
            if better:
                break
        if not better:
            break
        found = {better[0]: found[better[0]]} | search.score(_together(text, better))
        text = min(found, key=lambda each: found[each])
    return text


def kicked(search: Search, config: SearchConfig, text: Text, settled: Settled) -> Text | None:
    """A better text than one at which local search ends, by local search from relaxed solutions near it; None where
    there is none."""
    if not text:
        return None
    misfit = search.whiten(search.evidence.occupancy - occupancies(search.evidence.log_probs, [text])[:, 0])
    design = search.whiten(label_occupancy(search.evidence.log_probs, list(text)))
    doubtful = (design.T.abs() @ misfit.norm(dim=1)).argsort(descending=True)[: config.kicks].tolist()
    found = search.score(relaxed_texts(search.evidence, search.symbols, text, doubtful))
    found.pop(text, None)
    for start in sorted(found, key=lambda each: found[each])[: config.kicks]:
        if len(search.scores) >= config.limit(search.frames):
            break
        other = improve(search, config, start, settled)
        if search.scores[other] < search.scores[text]:
            return other
    return None


def _together(text: Text, better: list[Text]) -> list[Text]:
    """Several edits of a text in one: the first, and those after it that lie apart from all before; a half, a quarter
    and so on of them, too."""
    places: list[tuple[int, int, Text]] = []
    for other in better:
        shortest = min(len(text), len(other))
        start = next((place for place in range(shortest) if text[place] != other[place]), shortest)
        same = next((back for back in range(shortest - start) if text[-1 - back] != other[-1 - back]), shortest - start)
        stop = len(text) - same
        if all(stop + APART <= low or high + APART <= start for low, high, _ in places):
            places.append((start, stop, other[start : len(other) - same]))
    combined = []
    while len(places) > 1:
        changed = text
        for start, stop, instead in sorted(places, key=lambda place: place[:2], reverse=True):
            changed = changed[:start] + instead + changed[stop:]
        combined.append(changed)
        places = places[: len(places) // 2]
    return combined


def edits(search: Search, text: Text, each: int) -> list[Text]:
    """Texts one edit away, of each kind those that promise most.

    With q of the text itself, what a substitution or an exchange does to the misfit E is known to first order:
    labels i and j, of symbols a and b, exchanged change it by (q_i - q_j)(e_b - e_a). Inserting and deleting moves all
    labels behind, which first order does not tell: a symbol is put where E looks like it, and labels are taken out, or
    moved, where E is large.
    """
    doubt, pull, gram = _misfit_by_label(search, text)
    found = [*_substitutions(search, text, pull, gram, each), *_exchanges(text, pull, gram, each)]
    found += _insertions(search, text, pull, each)
    for place in doubt.argsort(descending=True)[:each].tolist():
        rest = text[:place] + text[place + 1 :]
        found.append(rest)
        for other in (place - 3, place - 2, place + 2, place + 3):
            if 0 <= other <= len(rest):
                found.append((*rest[:other], text[place], *rest[other:]))
    return [other for other in dict.fromkeys(found) if other != text]


def _misfit_by_label(search: Search, text: Text) -> tuple[Tensor, Tensor, Tensor]:
    """How large E is at each label, how much it wants each symbol there (L, V), and q' q (L, L), all whitened."""
    evidence = search.evidence
    design = evidence.whitener @ label_occupancy(evidence.log_probs, list(text))  # (T, L)
    current = occupancies(evidence.log_probs, [text])[:, 0]
    misfit = evidence.whitener @ (evidence.occupancy - current)
    return design.T.abs() @ misfit.norm(dim=1), design.T @ misfit, design.T @ design


def _substitutions(search: Search, text: Text, pull: Tensor, gram: Tensor, each: int) -> list[Text]:
    if not text:
        return []
    own = pull.gather(1, torch.tensor(text, device=pull.device)[:, None])  # (L, 1)
    gain = pull[:, search.symbols] - own - gram.diagonal()[:, None]
    order = gain.flatten().argsort(descending=True)[:each].tolist()
    count = len(search.symbols)
    return [(*text[: at // count], search.symbols[at % count], *text[at // count + 1 :]) for at in order]


def _exchanges(text: Text, pull: Tensor, gram: Tensor, each: int) -> list[Text]:
    if len(text) < 2:
        return []
    labels = torch.tensor(text, device=pull.device)
    wants = pull[:, labels]  # (L, L): pull at i towards the symbol of j
    own = wants.diagonal()
    apart = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    gain = wants - own[:, None] + wants.T - own - apart
    gain = gain.masked_fill(labels[:, None] == labels, -torch.inf).triu(1)
    pairs = torch.triu_indices(len(text), len(text), 1, device=pull.device)
    order = gain[pairs[0], pairs[1]].argsort(descending=True)[:each]
    nearby = [(place, place + 1) for place in range(len(text) - 1)]
    found = []
    for left, right in [*pairs[:, order].T.tolist(), *nearby]:
        changed = list(text)
        changed[left], changed[right] = changed[right], changed[left]
        found.append(tuple(changed))
    return found


def _insertions(search: Search, text: Text, pull: Tensor, each: int) -> list[Text]:
    if not text:
        return [(symbol,) for symbol in search.symbols]
    padded = torch.cat([pull[:1], pull, pull[-1:]])
    wants = (padded[:-1] + padded[1:])[:, search.symbols]  # (L + 1, symbols)
    order = wants.flatten().argsort(descending=True)[:each].tolist()
    count = len(search.symbols)
    picked = {(at // count, search.symbols[at % count]) for at in order}
    doubled = pull.gather(1, torch.tensor(text, device=pull.device)[:, None]).squeeze(1)
    picked |= {(place, text[place]) for place in doubled.argsort(descending=True)[:each].tolist()}
    return [(*text[:place], symbol, *text[place:]) for place, symbol in sorted(picked)]


def double_exchanges(search: Search, text: Text, each: int) -> list[Text]:
    """Two pairs of neighbours near each other, both exchanged.

    RAARN for ARRAN moves one label on and the same one back, which changes occupancies as little as either exchange
    alone, and neither helps without the other.
    """
    if len(text) < 4:
        return []
    _, pull, gram = _misfit_by_label(search, text)
    labels = torch.tensor(text, device=pull.device)
    first, second = labels[:-1], labels[1:]
    own = pull.gather(1, labels[:, None]).squeeze(1)
    # <E, D> of each exchange D = (q_i - q_{i+1})(e_b - e_a)', and <D, D'> of any two.
    wants = pull[:-1].gather(1, second[:, None]) + pull[1:].gather(1, first[:, None])
    wants = wants.squeeze(1) - own[:-1] - own[1:]
    steps = gram[:-1, :-1] - gram[:-1, 1:] - gram[1:, :-1] + gram[1:, 1:]
    alike = (first[:, None] == first).to(gram) + (second[:, None] == second).to(gram)
    alike = alike - (first[:, None] == second).to(gram) - (second[:, None] == first).to(gram)
    products = steps * alike
    sizes = products.diagonal()
    gain = 2 * (wants[:, None] + wants) - sizes[:, None] - sizes - 2 * products
    places = torch.arange(len(first), device=pull.device)
    apart = places - places[:, None]
    allowed = (apart > 1) & (apart <= NEAR) & (first != second)[:, None] & (first != second)
    gain = gain.masked_fill(~allowed, -torch.inf)
    found = []
    for at in gain.flatten().topk(min(each, int(allowed.sum()))).indices.tolist():
        one, other = divmod(at, len(first))
        changed = list(text)
        for place in (one, other):
            changed[place], changed[place + 1] = changed[place + 1], changed[place]
        found.append(tuple(changed))
    return found
