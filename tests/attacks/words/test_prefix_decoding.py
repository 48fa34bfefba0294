"""Texts from occupancies as a recogniser would read them."""

import torch

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.transcript import _one_text
from overheard.attacks.words.prefix_decoding import prefix_texts
from overheard.attacks.words.scored_texts import occupancies
from overheard.attacks.words.text_search import SearchConfig


def sure(*labels: int) -> torch.Tensor:
    """Occupancies of one path."""
    return torch.nn.functional.one_hot(torch.tensor(labels), 4).double()


def test_one_path_is_one_text() -> None:
    assert prefix_texts(sure(0, 1, 1, 0, 2, 3), 8, 1e-4)[0] == (1, 2, 3)
    assert prefix_texts(sure(0, 0), 8, 1e-4) == [()]


def test_a_repeated_letter_needs_a_blank_between() -> None:
    assert prefix_texts(sure(1, 1), 8, 1e-4)[0] == (1,)
    assert prefix_texts(sure(1, 0, 1), 8, 1e-4)[0] == (1, 1)


def test_a_label_that_is_never_the_likeliest_symbol_is_read() -> None:
    """Greedy decoding loses what is spread over three frames."""
    occupancy = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.6, 0.4, 0.0]], dtype=torch.float64)
    assert (1,) in prefix_texts(occupancy, 4, 1e-4)


def test_texts_of_a_sure_model_are_found_beyond_local_search() -> None:
    """Integer least squares from average symbols, and edits from there, end beside this text."""
    generator = torch.Generator().manual_seed(0)
    log_probs = (4.5 * torch.randn(80, 29, generator=generator, dtype=torch.float64)).log_softmax(dim=1)
    text = tuple(torch.randint(1, 29, (34,), generator=generator).tolist())
    occupancy, identity = occupancies(log_probs, [text])[:, 0], torch.eye(80, dtype=torch.float64)
    evidence = FrameEvidence(
        log_probs, occupancy, occupancy, identity, 1e-4, identity, torch.zeros(80).double(), torch.ones(29).double()
    )
    found = _one_text(evidence, SearchConfig())
    assert found.exact
    assert found.text == text
