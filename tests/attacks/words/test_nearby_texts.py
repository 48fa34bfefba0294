"""Occupancies by the lattice about changed labels, against those of the whole text."""

import pytest
import torch
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words import nearby_texts
from overheard.attacks.words.near_prefixes import edits
from overheard.attacks.words.nearby_texts import changed_labels, nearby_occupancies
from overheard.attacks.words.scored_texts import Search, occupancies
from overheard.attacks.words.text_lattice import TextLattice

FRAMES, LABELS = 160, 40


def speech(sure: float) -> tuple[Tensor, tuple[int, ...]]:
    """Log-probabilities of a model that is that sure of its frames, and a text that it does not hear in them."""
    generator = torch.Generator().manual_seed(0)
    log_probs = sure * torch.randn(FRAMES, 29, generator=generator, dtype=torch.float64)
    log_probs[:, 0] += 2 * sure
    return log_probs.log_softmax(dim=1), tuple(torch.randint(1, 29, (LABELS,), generator=generator).tolist())


@pytest.mark.parametrize(("edge", "most"), [(FRAMES, 1e-9), (40, 5e-2)])
@pytest.mark.parametrize("sure", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("place", [0, 17, LABELS - 4])
def test_occupancies_are_those_of_the_whole_text(
    sure: float, place: int, edge: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_probs, text = speech(sure)
    near = [(*text[:place], *other, *text[place + 4 :]) for other in edits(text[place : place + 4], [1, 5, 28])]
    known = TextLattice(log_probs, text)
    monkeypatch.setattr(nearby_texts, "EDGE", edge)
    seen: list[tuple[int, ...]] = []
    for group in nearby_occupancies(log_probs, known, near):
        whole = occupancies(log_probs, group.texts)[group.frames]
        assert (group.found - whole).abs().max() < most
        assert len(group.found) == FRAMES or edge < FRAMES
        seen += group.texts
    assert sorted(seen) == sorted(near)


def test_windows_are_no_wider_than_they_have_to_be() -> None:
    log_probs, text = speech(6.0)
    near = [(*text[:place], 7, *text[place:]) for place in range(LABELS)]
    groups = list(nearby_occupancies(log_probs, TextLattice(log_probs, text), near))
    assert len(groups) > 4
    assert all(len(group.found) < FRAMES / 2 for group in groups)


def test_a_label_may_be_anywhere_in_the_blanks_about_it() -> None:
    """A model that is sure of forty blanks between two labels, and a text that has one more label there."""
    log_probs = torch.full((60, 4), -30.0, dtype=torch.float64)
    log_probs[:, 0] = 0.0
    log_probs[5], log_probs[50] = torch.tensor([[-30.0, 0.0, -30.0, -30.0], [-30.0, -30.0, 0.0, -30.0]]).double()
    log_probs[30, 3] = -20.0
    log_probs = log_probs.log_softmax(dim=1)
    (group,) = nearby_occupancies(log_probs, TextLattice(log_probs, (1, 2)), [(1, 3, 2)])
    whole = occupancies(log_probs, [(1, 3, 2)])
    assert group.frames.start <= 6
    assert group.frames.stop >= 50
    assert torch.allclose(group.found, whole[group.frames], atol=1e-6)


def test_the_nearest_of_many_texts_are_scored_and_no_others() -> None:
    log_probs, text = speech(2.0)
    occupancy, identity = occupancies(log_probs, [text])[:, 0], torch.eye(FRAMES, dtype=torch.float64)
    none, rows = torch.zeros(FRAMES, dtype=torch.float64), torch.ones(29, dtype=torch.float64)
    evidence = FrameEvidence(log_probs, occupancy, occupancy, identity, 1e-4, identity, none, rows)
    search = Search(evidence, [*range(1, 29)])
    wrong = (*text[:20], *text[21:23], 9, *text[23:])
    once = [(*wrong[:18], *other, *wrong[26:]) for other in edits(wrong[18:26], search.symbols)]
    found = search.nearest(wrong, once, 8)
    assert len(found) == 8
    assert len(search.scores) == 8
    exact = sorted(Search(evidence, search.symbols).score(once).values())
    assert min(found.values()) == pytest.approx(exact[0])
    assert sorted(found.values())[3] <= exact[8]
    assert search.effort < len(once) / 5


def test_changed_labels_of_texts() -> None:
    assert changed_labels((1, 2, 3, 4), (1, 5, 3, 4)) == (1, 2, (5,))
    assert changed_labels((1, 2, 3, 4), (1, 4)) == (1, 3, ())
    assert changed_labels((1, 1), (1, 1, 1)) == (2, 2, (1,))
    assert changed_labels((), (3,)) == (0, 0, (3,))
    assert changed_labels((3,), (3,)) == (1, 1, ())
