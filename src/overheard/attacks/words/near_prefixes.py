"""Prefixes that explain a window where those of a beam do not.

Four rules keep a beam on its way. Where several labels explain a window alike, none is taken: the prefix stays as it is
until a later frame tells them apart. Where no label more explains a window, the last few labels are edited: a label
that the model finds next to impossible is not heard before one behind it is, and has to be put in front of that. An
edited prefix has to explain the frames in which those labels were heard, too, since a window that has left them behind
would bear any in their place. Where that fails as well, what another text has behind the same labels is tried.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from overheard.attacks.words.prefix_fits import WINDOW, Fit, Occupancies, fit_prefixes, left_by_longer
from overheard.attacks.words.prefix_marginals import Prefixes, with_tails

Text = tuple[int, ...]

DOUBT = 30.0
"""Chi-square above what is usual up to which a prefix explains a window."""

LABEL_COST = 15.0
"""Chi-square that a label more has to explain."""

CHILDREN = 8
"""Texts, of the many near a prefix, that are fitted."""

HOLDING = 3
"""Edited prefixes that explain what was heard before the window, too; more are not looked for."""

EXPANSIONS = 5
"""Prefixes, in one frame, that others are sought near."""

TAIL = 4
"""Labels at a prefix's end that are edited."""

SHARED = 4
"""Labels behind which another text's are tried."""

BORROWED = 6
"""Of these, at most."""

ALIKE = 5
"""Texts that explain a window alike, one of which is no better than a guess."""


@dataclass
class Node:
    """A prefix and how it explains a window.

    Attributes:
        stem: one prefix, or what the labels of `tail` are put behind.
        cost: chi-square, of the better text that it may become where that is not settled yet.
        tail: labels; none where the fit is known.
        fit: of the whole.
    """

    stem: Prefixes
    cost: float
    tail: Text = ()
    fit: Fit | None = None

    @property
    def text(self) -> Text:
        """Its labels."""
        return self.stem.texts[0] + self.tail

    @property
    def rank(self) -> float:
        """Chi-square with the labels' own."""
        return self.cost + LABEL_COST * len(self.text)


def labels_before(text: Text, states: Tensor) -> int:
    """Labels before the newest states."""
    return len(text) - (int(states) + 1) // 2


@dataclass(frozen=True)
class Frame:
    """The window that ends in a frame.

    Attributes:
        observed: what is to be explained.
        labels: that a text may hold.
        frame: the window's last.
        settled: labels that the alignment has left behind by then.
        usual: chi-square, for each number, that explained windows leave.
        heard: frames back to where the last few labels began to be heard; a text with others in their place has to
            explain all of these.
        hint: a text that may be right in parts.
    """

    observed: Occupancies
    labels: list[int]
    frame: int
    settled: int
    usual: float
    heard: int
    hint: Text = ()

    @property
    def enough(self) -> float:
        """Chi-square at which the window counts as explained."""
        return DOUBT + self.usual * len(self.observed.wanted(self.frame))

    def explained(self, beam: Prefixes) -> tuple[list[Node], int]:
        """Prefixes that explain the window or come near it, best first, and how many were edited to find them."""
        edited = 0
        found, known, done = self._nodes(beam), set(beam.texts), set[Text]()
        first = min(found, key=lambda each: each.rank)
        for _ in range(EXPANSIONS):
            found.sort(key=lambda each: each.rank)
            node = next((each for each in found if each.text not in done), None)
            if node is None or found[0].cost <= self.enough:
                break
            done.add(node.text)
            fresh = self._longer(node, known)
            if not any(each.cost <= self.enough for each in fresh):
                fresh += self._edited(node, known | {each.text for each in fresh})
                edited += 1
            fresh.sort(key=lambda each: each.rank)
            if self._alike(fresh):
                node.cost = min(node.cost, fresh[0].rank - LABEL_COST * len(node.text))
            else:
                known |= {each.text for each in fresh}
                found += fresh
        best = min(found, key=lambda each: each.rank)
        if best.cost > self.enough:
            found += self._borrowed(first, known) + self._borrowed(best, known)
        return sorted(found, key=lambda each: each.rank), edited

    def _alike(self, ranked: list[Node]) -> bool:
        """Whether the next frames have to tell which of several texts is meant."""
        many = len(ranked) >= ALIKE and ranked[0].cost <= self.enough
        return many and ranked[ALIKE - 1].rank < ranked[0].rank + LABEL_COST

    def _nodes(self, prefixes: Prefixes) -> list[Node]:
        fit = fit_prefixes(self.observed, prefixes, self.frame, self._columns(prefixes))
        rows = range(len(prefixes.texts))
        return [Node(prefixes.take([row]), float(fit.cost[row]), (), fit.take([row])) for row in rows]

    def whole(self, node: Node) -> tuple[Prefixes, Fit]:
        """A node's prefix with its tail, and the fit of it."""
        if node.fit is None:
            node.stem, node.tail = with_tails(node.stem, [node.tail], self.observed.log_probs), ()
            node.fit = fit_prefixes(self.observed, node.stem, self.frame, self._columns(node.stem))
        return node.stem, node.fit

    def _columns(self, prefixes: Prefixes) -> int:
        return 2 * max(0, max(len(text) for text in prefixes.texts) - self.settled) + 1

    def _longer(self, node: Node, known: set[Text]) -> list[Node]:
        """Prefixes with one label more."""
        tails = [(label,) for label in self.labels]
        return self._best(*self.whole(node), tails, known, node.cost - LABEL_COST / 2)

    def _edited(self, node: Node, known: set[Text]) -> list[Node]:
        """Prefixes whose last labels are an edit away."""
        prefix, _ = self.whole(node)
        depth = min(TAIL, len(node.text), (prefix.symbols.shape[1] - 1) // 2)
        stem = prefix.without(depth)
        fit = fit_prefixes(self.observed, stem, self.frame, self._columns(stem))
        by_length: dict[int, list[Text]] = {}
        for tail in edits(node.text[len(node.text) - depth :], self.labels):
            by_length.setdefault(len(tail), []).append(tail)
        found = [
            each
            for length, tails in by_length.items()
            for each in self._best(stem, fit, tails, known, node.cost + LABEL_COST * (depth - length) - LABEL_COST)
        ]
        return self._looking_back(found)

    def _looking_back(self, nodes: list[Node]) -> list[Node]:
        """The best few, with what they do not explain of the frames before the window in which the last labels were
        heard."""
        window = WINDOW + self.heard
        more = len(self.observed.wanted(self.frame, window)) - len(self.observed.wanted(self.frame))
        found, holding = list[Node](), 0
        for node in sorted(nodes, key=lambda each: each.rank)[:CHILDREN]:
            prefix, _ = self.whole(node)
            fit = fit_prefixes(self.observed, prefix, self.frame, self._columns(prefix), window)
            added = max(0.0, float(fit.cost) - node.cost - DOUBT - self.usual * more)
            found.append(replace(node, cost=node.cost + added))
            holding += added == 0.0
            if holding == HOLDING:
                break
        return found

    def _borrowed(self, node: Node, known: set[Text]) -> list[Node]:
        """Prefixes that go on as the hint does, from where both have the same labels, the last few left out or not."""
        found: list[Node] = []
        prefix, _ = self.whole(node)
        for left_out in range(min(TAIL, len(node.text) - SHARED, (prefix.symbols.shape[1] - 1) // 2) + 1):
            stem = prefix.without(left_out)
            shared = stem.texts[0][-SHARED:]
            places = [end for end in range(SHARED, len(self.hint)) if self.hint[end - SHARED : end] == shared]
            tails = {self.hint[end : end + count] for end in places for count in range(1, BORROWED + 1)}
            fresh = [tail for tail in sorted(tails) if stem.texts[0] + tail not in known]
            known |= {stem.texts[0] + tail for tail in fresh}
            for count in sorted({len(tail) for tail in fresh}):
                alike = [tail for tail in fresh if len(tail) == count]
                found += self._looking_back(self._nodes(with_tails(stem, alike, self.observed.log_probs)))
        return [each for each in found if each.cost <= self.enough]

    def _best(self, stem: Prefixes, fit: Fit, tails: list[Text], known: set[Text], below: float) -> list[Node]:
        """The stem with those tails that explain most, where they leave less than some chi-square."""
        tails = [tail for tail in tails if stem.texts[0] + tail not in known]
        if not tails or not tails[0]:
            return []
        left = left_by_longer(self.observed, fit, stem, tails, self.frame, self.heard)
        best = [row for row in left.argsort().tolist() if left[row] < below][:CHILDREN]
        return [Node(stem, float(left[row]), tails[row]) for row in best]


def edits(tail: Text, labels: list[int]) -> list[Text]:
    """All texts that a label inserted, replaced or left out, or two neighbours exchanged, make of one."""
    found = [(*tail[:place], label, *tail[place:]) for place in range(len(tail) + 1) for label in labels]
    for place in range(len(tail)):
        found += [(*tail[:place], label, *tail[place + 1 :]) for label in labels]
        found.append(tail[:place] + tail[place + 1 :])
    for place in range(1, len(tail)):
        found.append((*tail[: place - 1], tail[place], tail[place - 1], *tail[place + 1 :]))
    return [each for each in dict.fromkeys(found) if each != tail]
