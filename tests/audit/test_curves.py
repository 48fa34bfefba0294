"""Curves of error over iterations, from what a matching run saved and a truth that it never saw."""

from pathlib import Path

import pytest
import torch

from builders import batch_of, observe, small_deepspeech1
from overheard.attacks import matching
from overheard.attacks.matching import MatchingConfig
from overheard.attacks.observation import Prior, Reconstruction
from overheard.audit.curves import error_curve
from overheard.errors import InputError
from overheard.metrics.truth import TrueUtterance, Truth


def test_iterates_of_a_run_become_a_curve(tmp_path: Path) -> None:
    model, batch = small_deepspeech1(16), batch_of(12)
    true = batch.utterance_features(0)
    truth = Truth((TrueUtterance("u", None, "AD", true, None),), model.front_end)  # pyright: ignore
    observation = observe(model, batch, prior=Prior(("AD",), (12,)))
    config = MatchingConfig(iterations=4, iterates=str(tmp_path), iterates_every=2, restarts=2)
    near = Reconstruction("other", (true.double() + 0.5,), (None,))
    matching.attack(observation, config, generator=torch.Generator(), start=near)
    curve = error_curve(tmp_path, truth)
    assert [(point.restart, point.iteration) for point in curve] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    for point in curve:
        assert 0.1 < point.mae < 0.9
        assert point.relative_error == pytest.approx(0.5 * (true.numel() ** 0.5) / float(true.norm()), rel=0.5)
        assert point.cpu_seconds > 0.0 < point.distance
    with pytest.raises(InputError, match="2 true"):
        error_curve(tmp_path, Truth(truth.utterances * 2, truth.front_end))
    with pytest.raises(InputError, match="no iterates"):
        error_curve(tmp_path / "elsewhere", truth)
