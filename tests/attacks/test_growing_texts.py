"""Texts read from either end of occupancies."""

import pytest
import torch
from torch import Tensor

from overheard.attacks.filled_gaps import filled_gaps
from overheard.attacks.growing_texts import joined_readings, readings
from overheard.attacks.occupancy_noise import LEAST, unit_noise
from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.prefix_marginals import (
    Prefixes,
    designs,
    designs_of_next,
    extended,
    messages_of_next,
    no_labels,
)
from overheard.attacks.text_search import occupancies

ERROR = 1e-7


def evidence_of(
    log_probs: Tensor, text: tuple[int, ...], generator: torch.Generator, error: float = ERROR
) -> FrameEvidence:
    """Occupancies of a text with white errors."""
    frames, symbols = log_probs.shape
    occupancy = occupancies(log_probs, [text])[:, 0]
    occupancy = occupancy + error * torch.randn(frames, symbols, generator=generator, dtype=torch.float64)
    identity = torch.eye(frames, dtype=torch.float64)
    variances = torch.full((frames,), error**2, dtype=torch.float64)
    rows = torch.ones(symbols, dtype=torch.float64)
    return FrameEvidence(log_probs, occupancy, occupancy, identity, error, identity, variances, rows)


def read(evidence: FrameEvidence) -> list[tuple[int, ...]]:
    starts, ends = readings(evidence, list(range(1, 29)), 6)
    return [*starts, *ends, *joined_readings(starts, ends)]


def drawn(frames: int, symbols: int, spread: float, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(frames, symbols, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=1), generator


def prefix_of(log_probs: Tensor, text: tuple[int, ...]) -> Prefixes:
    prefix = no_labels(log_probs)
    for label in text:
        labels = torch.tensor([label])
        prefix = extended(prefix, labels, messages_of_next(prefix, log_probs, labels)[..., 0])
    return prefix


def test_messages_of_a_label_follow_the_recursion_of_ctc() -> None:
    log_probs, _ = drawn(9, 4, 1.0, 0)
    text = (2, 2, 1)
    forward = prefix_of(log_probs, text).forward[0].exp()  # newest first: blank, 1, blank, 2, blank, 2, blank
    symbols = [0, 2, 0, 2, 0, 1, 0]
    alpha = torch.zeros(9, 7, dtype=torch.float64)
    alpha[0, :2] = log_probs[0, [0, 2]].exp()
    for frame in range(1, 9):
        for state, symbol in enumerate(symbols):
            before = alpha[frame - 1, max(0, state - 1) : state + 1].sum()
            if state == 5:  # the second 2 needs the blank, the 1 does not
                before = before + alpha[frame - 1, 3]
            alpha[frame, state] = log_probs[frame, symbol].exp() * before
    torch.testing.assert_close(forward.flip(1), alpha)


@pytest.mark.parametrize("frame", [3, 11])
def test_occupancies_are_linear_in_where_the_alignment_is(frame: int) -> None:
    """The whole text as its own prefix explains all frames up to any; a text with another label does not."""
    log_probs, _ = drawn(12, 5, 1.0, 1)
    text, wrong = (3, 1, 1, 4), (3, 2, 1, 4)
    occupancy = occupancies(log_probs, [text])[:, 0]
    rows, noise = torch.arange(5), torch.eye(5, dtype=torch.float64).expand(12, 5, 5)
    wanted = occupancy[: frame + 1].flip(0).flatten()
    for said, explained in ((text, True), (wrong, False)):
        design = designs(prefix_of(log_probs, said), frame, 12, noise, rows)[0]
        left = wanted - design @ (torch.linalg.pinv(design) @ wanted)
        assert (float(left.norm()) < 1e-8) == explained


def test_a_label_more_adds_the_columns_of_the_longer_prefix() -> None:
    log_probs, _ = drawn(10, 5, 1.0, 2)
    labels, rows = torch.arange(1, 5), torch.arange(5)
    noise = torch.randn(10, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for text in ((), (2,), (4, 1)):
        prefix = prefix_of(log_probs, text)
        messages = messages_of_next(prefix, log_probs, labels)
        found = designs_of_next(prefix, messages, labels, 8, 6, noise, rows)
        for column, label in enumerate(labels.tolist()):
            whole = designs(prefix_of(log_probs, (*text, label)), 8, 6, noise, rows)
            torch.testing.assert_close(found[..., column], whole[:, :, :2])


def test_errors_become_independent_and_of_size_one() -> None:
    log_probs, generator = drawn(6, 4, 1.0, 3)
    evidence = evidence_of(log_probs, (1, 2), generator)
    unit = unit_noise(evidence, [0, 1, 2, 3])
    covariance = torch.linalg.inv(unit.mT @ unit)
    difference = log_probs.exp() - evidence.occupancy
    apart = covariance[0] - torch.diag(covariance[0].diagonal())
    shared = difference[0][:, None] * difference[0]
    ratio = apart / shared
    torch.testing.assert_close(apart, float(ratio[0, 1]) * (shared - torch.diag(shared.diagonal())))
    assert float(covariance.diagonal(dim1=1, dim2=2).min()) > max(LEAST, ERROR) ** 2


@pytest.mark.parametrize(
    ("text", "seed"), [((), 0), ((3,), 1), ((5, 5, 5), 2), ((1, 2, 3, 4, 5, 6, 7, 7, 1, 28, 3), 3)]
)
def test_short_texts_are_read(text: tuple[int, ...], seed: int) -> None:
    log_probs, generator = drawn(30, 29, 0.5, seed)
    evidence = evidence_of(log_probs, text, generator)
    assert text in read(evidence)


@pytest.mark.parametrize("error", [0.0, 1e-1])
def test_neither_exact_nor_hopeless_occupancies_break_the_reading(error: float) -> None:
    log_probs, generator = drawn(16, 29, 8.0, 6)
    found = read(evidence_of(log_probs, (4, 4, 9), generator, error))
    assert error or (4, 4, 9) in found
    assert all(len(text) <= 16 for text in found)


def test_readings_are_joined_where_they_share_labels() -> None:
    assert (1, 2, 3, 4, 5, 6) in joined_readings([(1, 2, 3, 4, 9)], [(8, 3, 4, 5, 6)])
    assert joined_readings([(1, 2)], [(3, 4)]) == []


def test_the_middle_between_known_ends_is_filled() -> None:
    """Both readings are right but for their last labels."""
    log_probs, generator = drawn(26, 29, 0.5, 5)
    text = tuple(torch.randint(1, 29, (10,), generator=generator).tolist())
    evidence = evidence_of(log_probs, text, generator)
    assert text in filled_gaps(evidence, list(range(1, 29)), (*text[:4], 9), (9, *text[7:]))


@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_texts_of_unsure_and_of_sure_models_are_read(spread: float) -> None:
    log_probs, generator = drawn(32, 29, spread, 4)
    text = tuple(torch.randint(1, 29, (13,), generator=generator).tolist())
    evidence = evidence_of(log_probs, text, generator)
    assert text in read(evidence)
