"""Stretches of a text fitted anew."""

import torch
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.mended_texts import mended
from overheard.attacks.words.paired_edits import twice_edited
from overheard.attacks.words.refitted_texts import refitted, with_more_or_fewer
from overheard.attacks.words.scored_texts import Search, Text, occupancies


def search_of(log_probs: Tensor, text: Text) -> Search:
    """Of occupancies that are a text's own."""
    frames = len(log_probs)
    occupancy, identity = occupancies(log_probs, [text])[:, 0], torch.eye(frames, dtype=torch.float64)
    none, rows = torch.zeros(frames, dtype=torch.float64), torch.ones(log_probs.shape[1], dtype=torch.float64)
    evidence = FrameEvidence(log_probs, occupancy, occupancy, identity, 1e-4, identity, none, rows)
    return Search(evidence, list(range(1, log_probs.shape[1])))


def spoken(frames: int, labels: int) -> tuple[Search, Text]:
    """Indifferent frames, and a text."""
    generator = torch.Generator().manual_seed(0)
    log_probs = (0.3 * torch.randn(frames, 29, generator=generator, dtype=torch.float64)).log_softmax(dim=1)
    text = tuple(torch.randint(1, 29, (labels,), generator=generator).tolist())
    return search_of(log_probs, text), text


def test_exchanges_all_over_a_text_are_one_step() -> None:
    search, text = spoken(160, 30)
    wrong = list(text)
    for place in (4, 10, 16, 22):
        wrong[place], wrong[place + 1] = wrong[place + 1], wrong[place]
    search.score([tuple(wrong)])
    assert refitted(search, tuple(wrong), 0, len(wrong)) == text


def test_a_label_too_few_and_others_a_place_late_are_mended() -> None:
    search, text = spoken(160, 30)
    late = list(text[:10] + text[11:])
    for place in (12, 16, 20, 24):
        late[place], late[place + 1] = late[place + 1], late[place]
    search.score([tuple(late)])
    assert mended(search, tuple(late), 4) == text


def test_a_wrong_stretch_is_found_and_mended_and_what_is_right_stays() -> None:
    search, text = spoken(120, 40)
    wrong = (*text[:15], 3, 3, 9, 1, *text[20:])
    search.score([wrong])
    assert mended(search, wrong, 4) == text
    assert mended(search, text, 4) == text


def test_two_edits_side_by_side_are_one_step() -> None:
    """A label too few and one too many behind it."""
    search, text = spoken(240, 30)
    wrong = (*text[:12], text[13], text[14], 3, *text[15:])
    search.score([wrong])
    assert twice_edited(search, wrong) == text
    assert twice_edited(search, ()) == ()


def test_no_text_and_no_stretch_are_left_alone() -> None:
    search, text = spoken(60, 8)
    search.score([(), text])
    assert mended(search, (), 4) == ()
    assert refitted(search, text, 3, 3) == text


def test_labels_are_repeated_and_left_out() -> None:
    assert with_more_or_fewer((5, 6, 7), [1], [1, -1, -2]) == [(5, 6, 6, 7), (5, 7), (5,)]
