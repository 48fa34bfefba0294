"""Texts read from either end of occupancies."""

import pytest
import torch
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words import growing_texts, joined_readings, near_prefixes
from overheard.attacks.words.filled_gaps import filled_gaps
from overheard.attacks.words.growing_texts import Reader, Reading
from overheard.attacks.words.joined_readings import readings
from overheard.attacks.words.near_prefixes import DOUBT, Frame, edits
from overheard.attacks.words.occupancy_noise import LEAST, unit_noise
from overheard.attacks.words.prefix_fits import Occupancies, fit_prefixes, left_by_longer
from overheard.attacks.words.prefix_marginals import Prefixes, designs, no_labels, with_tails
from overheard.attacks.words.scored_texts import occupancies

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


def read(evidence: FrameEvidence, hint: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    *_, (start, end) = readings(evidence, list(range(1, 29)), 6, hint)
    return [*start.texts, *end.texts, *joined_readings.joined_readings(start, end)]


def drawn(frames: int, symbols: int, spread: float, seed: int) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(frames, symbols, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=1), generator


def prefix_of(log_probs: Tensor, text: tuple[int, ...]) -> Prefixes:
    return with_tails(no_labels(log_probs), [text], log_probs)


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
        design = designs(prefix_of(log_probs, said), frame, 12, noise, rows, 2 * len(said) + 1)[0][0]
        left = wanted - design @ (torch.linalg.pinv(design) @ wanted)
        assert (float(left.norm()) < 1e-8) == explained


def test_what_tails_leave_is_what_whole_prefixes_leave() -> None:
    log_probs, generator = drawn(14, 5, 1.0, 2)
    noise = 1e5 * torch.randn(14, 5, 5, generator=generator, dtype=torch.float64)
    occupancy = occupancies(log_probs, [(4, 1, 2, 3)])[:, 0]
    target = torch.einsum("tij,tj->ti", noise, occupancy)
    observed = Occupancies(log_probs, noise, target, torch.arange(5))
    stem = prefix_of(log_probs, (4, 1))
    fit = fit_prefixes(observed, stem, 9, 5)
    for tails in ([(2,), (3,), (1,)], [(2, 3), (2, 2), (3, 2), (1, 4)]):
        more = len(tails[0])
        longer = with_tails(stem, tails, log_probs)
        left = left_by_longer(observed, fit, stem, tails, 9, 9)
        torch.testing.assert_close(left, fit_prefixes(observed, longer, 9, 5 + 2 * more).cost, atol=1e-3, rtol=1e-6)
        assert int(left.argmin()) == 0


def test_a_state_that_the_alignment_has_left_costs_nothing_to_leave_out() -> None:
    """States behind all mass of the window add nothing to a fit; those in front of them do."""
    log_probs, _ = drawn(40, 5, 1.0, 4)
    text = (3, 1, 2, 4, 2, 1, 3, 4, 1, 2)
    noise = 1e6 * torch.eye(5, dtype=torch.float64).expand(40, 5, 5)
    target = torch.einsum("tij,tj->ti", noise, occupancies(log_probs, [text])[:, 0])
    observed = Occupancies(log_probs, noise, target, torch.arange(5))
    whole = fit_prefixes(observed, prefix_of(log_probs, text), 39, 21)
    assert float(whole.cost) < 20.0
    now, ever = int(whole.now), int(whole.ever)
    assert now <= ever < 21
    some = fit_prefixes(observed, prefix_of(log_probs, text).newest(ever), 39, now)
    torch.testing.assert_close(some.cost, whole.cost, atol=1.0, rtol=0.0)
    assert float(fit_prefixes(observed, prefix_of(log_probs, text).newest(ever // 2), 39, now).cost) > 100.0


def test_edits_of_the_last_labels() -> None:
    found = edits((1, 2), [1, 2, 3])
    assert {(2, 1), (1,), (2,), (3, 2), (1, 3), (1, 3, 2), (3, 1, 2), (1, 2, 3)} <= set(found)
    assert (1, 2) not in found
    assert len(found) == len(set(found))


def test_errors_become_independent_and_of_size_one() -> None:
    log_probs, generator = drawn(6, 4, 1.0, 3)
    evidence = evidence_of(log_probs, (1, 2), generator)
    unit = unit_noise(evidence, [0, 1, 2, 3], 0.0)
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


def test_labels_that_the_model_finds_next_to_impossible_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are heard only once labels behind them are, and come in by edits of the last labels."""
    log_probs, generator = drawn(40, 29, 5.0, 12)
    text = (5, 9, 3, 12, 7, 3, 1, 3, 20, 6)
    log_probs[:, 3] -= 20.0
    evidence = evidence_of(log_probs.log_softmax(dim=1), text, generator)
    monkeypatch.setattr(joined_readings, "FLOORS", (1e-3,))

    def read_at_first() -> list[tuple[int, ...]]:
        start, end = next(readings(evidence, list(range(1, 29)), 6, ()))
        return [*start.texts, *end.texts]

    assert text in read_at_first()
    monkeypatch.setattr(near_prefixes, "TAIL", 0)
    assert text not in read_at_first()


def test_a_label_that_was_heard_well_is_not_edited_once_the_window_has_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs, generator = drawn(100, 29, 3.0, 6)
    log_probs[:, 0] += 6.0
    text = tuple(torch.randint(1, 29, (18,), generator=generator).tolist())
    evidence = evidence_of(log_probs.log_softmax(dim=1), text, generator, 1e-6)
    assert text in read(evidence)
    monkeypatch.setattr(growing_texts, "LONGEST", 0)
    assert text not in read(evidence)


def test_a_reading_that_goes_astray_is_taken_up_with_another_floor() -> None:
    """One floor takes errors for a hundredth of what they are, the other for what they are."""
    log_probs, generator = drawn(60, 29, 2.0, 5)
    text = tuple(torch.randint(1, 29, (14,), generator=generator).tolist())
    occupancy = evidence_of(log_probs, text, generator, 1e-5).occupancy
    floors = [
        Occupancies(log_probs, size * torch.eye(29).double().expand(60, 29, 29), size * occupancy, torch.arange(29))
        for size in (1e7, 1e5)
    ]
    reader = Reader(floors, list(range(1, 29)), 6, ())
    assert reader.advance()
    assert text not in reader.reading.texts
    while reader.advance():
        pass
    assert text in reader.reading.texts


@pytest.mark.parametrize("error", [0.0, 1e-1])
def test_neither_exact_nor_hopeless_occupancies_break_the_reading(error: float) -> None:
    log_probs, generator = drawn(16, 29, 8.0, 6)
    found = read(evidence_of(log_probs, (4, 4, 9), generator, error))
    assert error or (4, 4, 9) in found
    assert all(len(text) <= 16 for text in found)


def test_readings_are_joined_where_they_share_labels() -> None:
    start, end = Reading([(1, 2, 3, 4, 9)], (1, 2)), Reading([(8, 3, 4, 5, 6)], (5, 6))
    assert (1, 2, 3, 4, 5, 6) in joined_readings.joined_readings(start, end)
    assert joined_readings.joined_readings(Reading([(1, 2)], ()), Reading([(3, 4)], ())) == []


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


def test_a_prefix_goes_on_as_another_text_does_behind_the_same_labels() -> None:
    """Six labels at once, more than are appended one by one; the other text is wrong ahead of them."""
    log_probs, generator = drawn(40, 29, 2.0, 3)
    text = tuple(torch.randint(1, 29, (14,), generator=generator).tolist())
    evidence = evidence_of(log_probs, text, generator)
    noise = unit_noise(evidence, list(range(29)), 0.0)
    target = torch.einsum("tij,tj->ti", noise, evidence.occupancy.clamp(min=0.0))
    observed = Occupancies(log_probs, noise, target, torch.arange(29))
    hint, labels = (7, 7, *text[2:13]), list(range(1, 29))
    frame = next(at for at in range(40) if float(evidence.occupancy[at, text[11]]) > 1e-3)
    prefix = prefix_of(log_probs, text[:6])
    usual = (60.0 - DOUBT) / len(observed.wanted(frame))
    with_hint, without = (Frame(observed, labels, frame, 0, usual, 0, said).explained(prefix)[0] for said in (hint, ()))
    assert with_hint[0].cost <= 60.0 < without[0].cost
    assert with_hint[0].text[:10] == text[:10]
