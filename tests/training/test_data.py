"""Batches: like durations together, every utterance once, the same for one process as for two in turn."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import MonoCut
from tone_corpus import tiny_model, tone_plan

from overheard.errors import InputError
from overheard.recognition.models import build_model
from overheard.speech.augmentation import AugmentationConfig
from overheard.speech.corpus import load_corpus
from overheard.training.data import FeatureDataset, Heard, bucketing, in_order, training_loader, usable
from overheard.training.settings import TrainingSettings

SETTINGS = TrainingSettings(batch_seconds=4.0, buckets=3)


def names(batches: Iterable[Iterable[MonoCut]]) -> list[list[str]]:
    return [[cut.id for cut in batch] for batch in batches]


def flat(batches: list[list[str]]) -> list[str]:
    return sorted(name for batch in batches for name in batch)


def test_every_utterance_comes_once_in_an_epoch_and_in_another_order_in_the_next(tones: Path) -> None:
    cuts = load_corpus(tones).cuts
    first, second = (names(bucketing(cuts, SETTINGS, epoch)) for epoch in (0, 1))
    assert flat(first) == flat(second) == [cut.id for cut in cuts]
    assert first != second
    assert first == names(bucketing(cuts, SETTINGS, 0))
    by_name = {cut.id: cut for cut in cuts}
    assert all(sum(by_name[name].duration for name in batch) <= 4.0 for batch in first)


def test_batches_grow_behind_a_share_of_the_epochs(tones: Path) -> None:
    cuts = load_corpus(tones).cuts
    growing = replace(SETTINGS, epochs=4, batch_seconds=2.0, grown_batch=(0.5, 4.0))
    assert [growing.batch_seconds_in(epoch) for epoch in range(4)] == [2.0, 2.0, 4.0, 4.0]
    sizes = [len(names(bucketing(cuts, growing, epoch))) for epoch in (1, 2)]
    assert sizes[0] > sizes[1]
    assert names(bucketing(cuts, growing, 2)) == names(bucketing(cuts, SETTINGS, 2))
    for wrong in ((0.0, 4.0), (1.0, 4.0), (0.5, 0.0)):
        with pytest.raises(InputError, match="grown_batch"):
            replace(SETTINGS, grown_batch=wrong)


def test_two_processes_draw_what_one_draws_in_turn(tones: Path) -> None:
    cuts = load_corpus(tones).cuts
    alone = names(bucketing(cuts, SETTINGS, 0))
    pair = [names(bucketing(cuts, SETTINGS, 0, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(pair[0]) == len(pair[1])
    for index, batch in enumerate(alone[: len(alone) // 2 * 2]):
        assert pair[index % 2][index // 2] == batch
    assert sorted(set(flat(pair[0] + pair[1]))) == flat(alone)


def test_a_loader_leaves_out_what_was_learnt_from_already(tones: Path) -> None:
    cuts = load_corpus(tones).cuts
    dataset = FeatureDataset(build_model(tiny_model()))
    whole = [heard.utterances for heard in _loaded(dataset, cuts, 0)]
    assert [heard.utterances for heard in _loaded(dataset, cuts, 2)] == whole[2:]


def test_what_is_drawn_for_an_utterance_is_its_own(tones: Path) -> None:
    """Neither the batch nor the order matters, the epoch does."""
    cuts = load_corpus(tones).cuts
    change = AugmentationConfig(speed=(0.9, 1.1), tempo=(0.9, 1.1), warp=0.1, tilt=0.1, noise=0.1, time_masks=1)
    dataset = FeatureDataset(build_model(tiny_model()), change, seed=3)
    together, alone = dataset[cuts[:3]].batch, dataset[cuts[1:2]].batch
    assert together is not None
    assert alone is not None
    torch.testing.assert_close(together.utterance_features(1), alone.utterance_features(0), rtol=0, atol=0)
    dataset.epoch = 1
    later = dataset[cuts[1:2]].batch
    assert later is not None
    assert later.features.shape != alone.features.shape or not torch.equal(later.features, alone.features)


def test_a_transcript_with_an_unknown_symbol_is_named(tones: Path) -> None:
    cuts = load_corpus(tones).cuts
    fine, problems = usable(build_model(tiny_model(characters="AB ")), cuts)
    assert {problem.utterance for problem in problems} == {
        cut.id for cut in cuts if "C" in (cut.supervisions[0].text or "")
    }
    assert "unknown symbol 'C'" in problems[0].reason
    assert len(fine) + len(problems) == len(cuts)


def test_evaluation_takes_the_longest_first(tones: Path) -> None:
    cuts = load_corpus(tones).cuts
    batches = in_order(cuts, 3.0)
    assert flat(names(batches)) == [cut.id for cut in cuts]
    assert [cut.duration for batch in batches for cut in batch] == sorted((cut.duration for cut in cuts), reverse=True)


def _loaded(dataset: FeatureDataset, cuts: Sequence[MonoCut], skipped: int) -> Iterable[Heard]:
    sampler = bucketing(cuts, tone_plan(Path()).settings, 0)
    return training_loader(dataset, sampler, epoch=0, skipped=skipped, workers=0)
