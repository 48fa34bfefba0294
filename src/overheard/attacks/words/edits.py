"""Texts an edit away from one, those first that promise most, and several edits in one."""

import torch
from torch import Tensor

from overheard.attacks.words.nearby_texts import changed_labels
from overheard.attacks.words.scored_texts import Search, Text

APART = 4
"""Labels between two edits that are tried together."""

NEAR = 8
"""Labels between two exchanges that are tried as one edit."""


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
    design = search.whiten(search.lattice(text).label_occupancy)
    misfit = search.misfit(text)
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


def together(text: Text, better: list[Text]) -> list[Text]:
    """Several edits of a text in one: the first, and those after it that lie apart from all before; a half, a quarter
    and so on of them, too."""
    places: list[tuple[int, int, Text]] = []
    for other in better:
        start, stop, instead = changed_labels(text, other)
        if all(stop + APART <= low or high + APART <= start for low, high, _ in places):
            places.append((start, stop, instead))
    combined = []
    while len(places) > 1:
        changed = text
        for start, stop, instead in sorted(places, key=lambda place: place[:2], reverse=True):
            changed = changed[:start] + instead + changed[stop:]
        combined.append(changed)
        places = places[: len(places) // 2]
    return combined
