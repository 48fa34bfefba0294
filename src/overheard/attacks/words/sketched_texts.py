"""A text that is about right, where what is known of the occupancies is not exact yet.

What is wrong with them passes for noise, and the more labels a text has, the more of that it explains. So labels have a
price, that of a code for them: a label costs the logarithm of the number of symbols, a misfit its square over twice
the noise's variance (Rissanen 1978). The number of labels is not what looks likeliest by how much is spoken in all,
as wrong probabilities change that sum, but where texts fitted for it are cheapest.
"""

from math import log

from overheard.attacks.words.lattice_decoding import average_label_occupancy, rank_lengths
from overheard.attacks.words.refitted_texts import refitted
from overheard.attacks.words.scored_texts import Search, Text
from overheard.attacks.words.text_search import SearchConfig, fitted

GRID = (0.4, 0.5, 0.63, 0.8, 1.0, 1.25, 1.6)
"""Lengths that are fitted first, relative to what looks likeliest."""

REFITTED = 3
"""Texts that are fitted anew with their own alignment."""


def sketch(search: Search, config: SearchConfig, start: Text) -> Text:
    """The cheapest text of those that integer least squares finds.

    Args:
        search: of one utterance.
        config: effort of integer least squares.
        start: what the text was taken for before.
    """
    evidence = search.evidence
    variance = evidence.noise**2 / evidence.occupancy.numel()
    price = 2.0 * variance * log(len(search.symbols) + 1)
    target = evidence.whitener @ evidence.occupancy[:, search.symbols]
    costs: dict[int, float] = {}

    def cost(text: Text) -> float:
        return search.scores[text] ** 2 + price * len(text)

    def fit(length: int) -> None:
        if length not in costs and 1 <= length <= search.frames:
            design = average_label_occupancy(evidence.weighted, evidence.smoothed, length)
            text = fitted(search, config, target, design)
            costs[length] = float("inf") if text is None else cost(text)

    search.score([start])
    likely = rank_lengths(evidence.weighted, evidence.smoothed, evidence.whitener)[0]
    for factor in GRID:
        fit(max(1, round(factor * likely)))
    step = max(1, likely // 8)
    while costs:
        best = min(costs, key=lambda length: costs[length])
        fit(best - step)
        fit(best + step)
        if costs[best] <= min(costs.values()):
            if step == 1:
                break
            step //= 2
    for text in sorted(search.scores, key=cost)[:REFITTED]:
        refitted(search, text, 0, len(text))
    # What is not exact yet may hide all of a text, but no text is no start.
    return min((text for text in search.scores if text), key=cost, default=())
