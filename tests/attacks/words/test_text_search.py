"""Edits of local search."""

import torch

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.edits import double_exchanges, together
from overheard.attacks.words.scored_texts import Search, occupancies
from overheard.attacks.words.text_search import SearchConfig, improve


def test_two_exchanges_are_tried_as_one_edit() -> None:
    """Two labels moved in opposite directions, far down a text of which all else is right."""
    generator = torch.Generator().manual_seed(0)
    log_probs = (0.3 * torch.randn(120, 29, generator=generator, dtype=torch.float64)).log_softmax(dim=1)
    text = tuple(torch.randint(1, 29, (40,), generator=generator).tolist())
    wrong = list(text)
    for place in (20, 23):
        wrong[place], wrong[place + 1] = wrong[place + 1], wrong[place]
    occupancy, identity = occupancies(log_probs, [text])[:, 0], torch.eye(120, dtype=torch.float64)
    none, rows = torch.zeros(120, dtype=torch.float64), torch.ones(29, dtype=torch.float64)
    search = Search(
        FrameEvidence(log_probs, occupancy, occupancy, identity, 1e-4, identity, none, rows), [*range(1, 29)]
    )
    search.score([tuple(wrong)])
    assert text in double_exchanges(search, tuple(wrong), 4)
    assert improve(search, SearchConfig(), tuple(wrong), lambda found: found == text) == text
    assert double_exchanges(search, (3, 3, 3, 3), 4) == []


def test_edits_that_lie_apart_are_tried_together() -> None:
    text = tuple(range(1, 21))
    first, beside, second, third = (9, *text[1:]), (text[0], 9, *text[2:]), (*text[:10], *text[11:]), (*text, 21)
    assert together(text, [first, beside, second, third]) == [(9, *text[1:10], *text[11:], 21)]
    assert together(text, [first, beside]) == []
    assert together((1, 1, 1), [(1, 1), (1, 1, 1, 1)]) == []


def test_a_search_that_still_gets_nearer_goes_on_for_longer() -> None:
    log_probs = torch.zeros(140, 3, dtype=torch.float64).log_softmax(dim=1)
    none, identity = torch.zeros(140, dtype=torch.float64), torch.eye(140, dtype=torch.float64)
    evidence = FrameEvidence(log_probs, log_probs, log_probs, identity, 1e-4, identity, none, torch.ones(3))
    config = SearchConfig(evaluations=100)
    for scored, best, spent in ((99, 0, False), (100, 90, False), (100, 10, True), (150, 140, False), (200, 199, True)):
        assert config.spent(Search(evidence, [1, 2], effort=float(scored), found_at=float(best))) == spent
