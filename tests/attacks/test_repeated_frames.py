"""Runs of equal frames come back as long as they were; where that cannot be told, it is said."""

import pytest
import torch
from torch import Tensor

from builders import observe, small_deepspeech1, speech_like
from overheard.attacks.complete import complete
from overheard.attacks.registry import run_attack
from overheard.attacks.silence.repeat_hypotheses import EqualFrames, equal_runs
from overheard.federation.client import ClientSettings
from overheard.speech.batching import collate

LABELS = [3, 4, 3, 9, 1, 20]


def with_silence(*runs: tuple[int, int]) -> Tensor:
    """Speech of 60 frames with runs of one frame put in: before which frame, and how many."""
    speech = speech_like(60, 26)
    silence = 0.3 * speech[5]
    parts, start = [], 0
    for place, count in runs:
        parts += [speech[start:place], silence.expand(count, -1)]
        start = place
    return torch.cat([*parts, speech[start:]])


RUNS = {
    "within": [(30, 14)],
    "just a window": [(30, 5)],
    "less than a window": [(30, 4)],
    "ahead": [(0, 12)],
    "behind": [(60, 17)],
    "two within": [(20, 14), (45, 11)],
    "both ends": [(0, 8), (60, 20)],
}


@pytest.mark.parametrize("name", RUNS)
def test_silence_comes_back_in_full_length(name: str) -> None:
    speech = with_silence(*RUNS[name])
    observation = observe(small_deepspeech1(hidden_size=320), collate([speech], [LABELS]))
    found = run_attack(observation)
    assert found.unique, found.reason
    assert len(found.features[0]) == len(speech)
    assert (found.features[0] - speech).abs().mean() < 1e-3
    # Draws of the error are of the length that the span gave.
    assert all(len(found.features[0]) == errors.shape[1] for errors in found.errors)
    assert complete(observation, found).certified is True


def test_runs_come_back_where_symbols_are_unlikely_in_silence() -> None:
    """As with trained weights: errors of the probabilities in speech then weigh as much as frames of silence do."""
    model = small_deepspeech1(hidden_size=320)
    with torch.no_grad():
        model.get_parameter("output.weight").mul_(30.0)
    speech = with_silence(*RUNS["two within"])
    found = run_attack(observe(model, collate([speech], [LABELS])))
    assert found.unique, found.reason
    assert len(found.features[0]) == len(speech)
    assert (found.features[0] - speech).abs().mean() < 1e-3


def test_lengths_behind_local_steps_are_not_made_up() -> None:
    settings = ClientSettings("delta", "eval", 3, 1e-3)
    speech = with_silence((30, 14))
    found = run_attack(observe(small_deepspeech1(hidden_size=320), collate([speech], [LABELS]), settings))
    assert not found.unique
    assert "how long they last" in str(found.reason)


def test_runs_are_found_where_frames_are_equal() -> None:
    speech = with_silence((20, 14), (45, 4))
    nearly = speech + 1e-6 * torch.randn(speech.shape, generator=torch.Generator().manual_seed(0))
    assert equal_runs([nearly], 5) == (EqualFrames(0, 20, 14),)
    assert equal_runs([nearly, nearly[:30]], 4) == (
        EqualFrames(0, 20, 14), EqualFrames(0, 59, 4), EqualFrames(1, 20, 10),
    )  # fmt: skip
    assert equal_runs([speech_like(30, 26)], 2) == ()
