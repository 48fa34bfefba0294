"""The table of what noise, number formats and local training leave of the exact attack."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders import small_deepspeech1
from overheard.benchmarks.robustness import CASES, RobustnessResult, load_results, measure, summarise
from overheard.errors import InputError
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.corpus import Selection


def result(case: str, utterance: str, mae: float | None, unique: bool) -> RobustnessResult:
    snr = None if mae is None else 60.0
    return RobustnessResult(case, utterance, "1", 40, mae, snr, unique, 1e-4, None, 1.0)


def test_rows_count_what_came_back_and_what_was_promised() -> None:
    results = [result("fp16", "a", 1e-3, True), result("fp16", "b", 0.05, True), result("fp16", "c", None, False)]
    (row,) = summarise(results)
    assert (row.utterances, row.recovered, row.close, row.unique, row.falsely_unique) == (3, 1, 2, 2, 1)
    assert row.snr_db == 60.0


def test_a_case_does_to_the_update_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 100, generator=generator)
    for case, level in (("noise-1e-4", 1e-4), ("noise-1e-3", 1e-3)):
        change = CASES[case][1]
        assert callable(change)
        assert (change(values, generator) - values).square().mean().sqrt() == pytest.approx(level, rel=0.05)
    eight = CASES["8-bit"][1]
    assert callable(eight)
    assert eight(values, generator).unique().numel() <= 255
    assert CASES["sgd-50"][0].local_steps == 50


def test_says_whose_loss_fell() -> None:
    results = [
        replace(result("sgd-10", "a", 1e-3, True), client_loss=3.0, client_loss_after=2.0),
        replace(result("sgd-10", "b", 1e-3, True), client_loss=3.0, client_loss_after=9.0),
        result("none", "a", 1e-3, True),
    ]
    assert [row.learnt for row in summarise(results)] == [None, 1]


def test_on_real_speech_and_again(librispeech: Path, tmp_path: Path) -> None:
    selection = Selection(max_seconds=2.0, limit=1)
    model = small_deepspeech1(hidden_size=512, context=6)
    before = weights_fingerprint(model)
    cases = ("none", "fp16", "sgd-10")
    found = list(measure(model, librispeech, selection, cases, tmp_path))
    assert [each.case for each in found] == list(cases)
    assert found[0].unique
    assert found[0].mae is not None
    assert found[0].mae < 0.01
    assert found[0].client_loss is None
    assert found[2].client_loss is not None
    assert found[2].client_loss_after is not None
    assert found[2].client_loss_after < found[2].client_loss
    assert weights_fingerprint(model) == before
    assert load_results(tmp_path) == found
    assert not list(measure(model, librispeech, selection, cases, tmp_path))


def test_an_unknown_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose from none"):
        list(measure(small_deepspeech1(), tmp_path, Selection(), ("fp8",), tmp_path))
