"""The training benchmark: the plain model computes what ours does, and a tiny run measures every part."""

import sys
from pathlib import Path

import pytest
import torch
from tone_corpus import write_tones

from overheard.benchmarks.plain_deepspeech2 import PlainDeepSpeech2
from overheard.benchmarks.training import PARTS, TrainingLoad, measure, ratios
from overheard.recognition.deepspeech2 import DeepSpeech2, DeepSpeech2Config


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh"])
def test_without_padding_the_plain_model_is_ours(cell: str) -> None:
    config = DeepSpeech2Config(cell=cell, num_layers=2, hidden_size=12, channels=4)  # pyright: ignore[reportArgumentType]
    ours, plain = DeepSpeech2(config), PlainDeepSpeech2(config)
    values = list(ours.state_dict().values())
    by_shape = sorted(values, key=lambda tensor: tuple(tensor.shape))
    theirs = sorted(plain.state_dict().values(), key=lambda tensor: tuple(tensor.shape))
    assert [tensor.shape for tensor in by_shape] == [tensor.shape for tensor in theirs]
    for index, convolution in enumerate(ours.convolutions):
        plain.convolutions[3 * index].load_state_dict(convolution.state_dict())
        plain.convolutions[3 * index + 1].load_state_dict(ours.convolution_norms[index].state_dict())
    norms = [*ours.recurrence_norms, ours.output_norm]
    for index, recurrence in enumerate(ours.recurrences):
        plain.recurrences[index].load_state_dict(recurrence.state_dict())
        plain.norms[index].load_state_dict(norms[index].state_dict())
    plain.output.load_state_dict(ours.output.state_dict())
    features, lengths = torch.randn(60, 3, 257), torch.tensor([60, 60, 60])
    torch.testing.assert_close(plain(features, lengths), ours(features, lengths), atol=1e-4, rtol=1e-4)


def test_every_part_is_measured(tmp_path: Path) -> None:
    load = TrainingLoad(write_tones(tmp_path), limit=4, batch_seconds=3.0, num_layers=1, hidden_size=16)
    ours, plain = measure(load)
    for epoch in (ours, plain):
        assert epoch.utterances == 4
        assert set(epoch.parts) == set(PARTS)
        assert all(seconds > 0 for seconds in epoch.parts.values())
        assert 0 < epoch.products < 1
        if sys.platform == "linux":
            assert epoch.peak_mb > 1
    time_ratio, cpu_ratio, memory_ratio = ratios(ours, plain, "tiny")
    assert time_ratio.target == "at least 1.3x less"
    assert cpu_ratio.ratio > 0
    assert memory_ratio.ratio > 0
