"""Re-identification: ranks, rates, the threshold that errs both ways equally, and back ends by name."""

import pytest
import torch
from a_voice import voice
from hypothesis import given
from hypothesis import strategies as st

from overheard.errors import InputError
from overheard.metrics.identification import Trial, equal_error_rate, re_identification
from overheard.metrics.speaker import ENCODERS, Enrolment, enrol, identify, speaker_encoder


def test_ranks_count_who_is_closer_and_ties() -> None:
    enrolment = Enrolment(("a", "b", "c"), torch.eye(3))
    trial = identify(enrolment, torch.tensor([0.0, 0.6, 0.8]), "b")
    assert trial is not None
    assert (trial.rank, trial.candidates) == (2, 3)
    assert trial.score == pytest.approx(0.6)
    assert trial.others == pytest.approx((0.0, 0.8))
    tied = identify(enrolment, torch.tensor([0.5, 0.5, 0.0]), "a")
    assert tied is not None
    assert tied.rank == 2
    assert identify(enrolment, torch.ones(3), "stranger") is None


def test_rates_come_with_chance() -> None:
    trials = [Trial(rank, 10, 1.0 - rank / 10, (0.3,) * 9) for rank in (1, 1, 4, 9)]
    found = re_identification(trials)
    assert found is not None
    assert (found.top1.successes, found.top5.successes, found.top1.trials) == (2, 3, 4)
    assert found.chance1 == pytest.approx(0.1)
    assert found.chance5 == pytest.approx(0.5)
    assert re_identification([]) is None


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_an_equal_error_rate_is_a_rate(targets: list[float], others: list[float]) -> None:
    found = equal_error_rate(targets, others)
    assert found is not None
    assert 0.0 <= found <= 1.0


@pytest.mark.parametrize(
    ("targets", "others", "rate"),
    [([0.9, 0.8], [0.1, 0.2], 0.0), ([0.1], [0.9], 1.0), ([0.1, 0.9], [0.1, 0.9], 0.5), ([0.4, 0.9], [0.1, 0.5], 0.5)],
)
def test_equal_error_rates_by_hand(targets: list[float], others: list[float], rate: float) -> None:
    assert equal_error_rate(targets, others) == pytest.approx(rate)
    assert equal_error_rate(targets, []) is None


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_knows_a_voice_again(name: str) -> None:
    try:
        encode = speaker_encoder(name)
    except InputError as error:
        pytest.skip(str(error))
    voices = {"low": 90.0, "high": 260.0}
    enrolment = enrol(encode, [(speaker, voice(1.6, pitch)) for speaker, pitch in voices.items()])
    assert enrolment.centres.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    for speaker, pitch in voices.items():
        trial = identify(enrolment, encode(voice(2.0, pitch * 1.05)), speaker)
        assert trial is not None
        assert trial.rank == 1


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(InputError, match="choose one of resemblyzer, timbre"):
        speaker_encoder("ear")
    with pytest.raises(InputError, match="no utterance"):
        enrol(speaker_encoder("timbre"), [])
