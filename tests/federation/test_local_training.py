"""A client's round: FedSGD is the gradient of its batch, FedAvg is SGD, and everything follows from the seed."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from lhotse import MonoCut
from tone_corpus import normed_model, tiny_model, write_tones

from overheard.errors import InputError
from overheard.federation.client import ClientSettings, client_update
from overheard.federation.clients import ClientSpeech
from overheard.federation.local_settings import LocalSettings
from overheard.federation.local_training import LocalOutcome, Round, batches, train_locally
from overheard.federation.update import Kind
from overheard.recognition.models import ModelSpec, build_model
from overheard.speech.corpus import load_corpus
from overheard.training.data import FeatureDataset


@pytest.fixture
def speech(tone_cuts: tuple[MonoCut, ...]) -> ClientSpeech:
    """One speaker's six utterances."""
    return ClientSpeech("100", tone_cuts[:6])


def trained(
    speech: ClientSpeech, settings: LocalSettings, spec: ModelSpec | None = None, number: int = 1
) -> LocalOutcome:
    return train_locally(build_model(spec or tiny_model()), speech, settings, Round(number=number))


@pytest.mark.parametrize("kind", ["gradient", "delta"])
def test_one_step_is_what_client_update_computes(speech: ClientSpeech, kind: Kind) -> None:
    settings = LocalSettings(kind=kind, steps=1, batch_size=6, clip_norm=1e9, learning_rate=0.05)
    model = build_model(tiny_model())
    batch = FeatureDataset(model)[speech.cuts].batch
    assert batch is not None
    expected = client_update(model, batch, ClientSettings(kind, "train", 1, 0.05 if kind == "delta" else None), "", "")
    found = trained(speech, settings)
    assert found.update.protocol == replace(expected.protocol)
    for name, tensor in expected.tensors.items():
        assert torch.allclose(found.update.tensors[name], tensor, atol=1e-6), name
    assert found.utterances == 6
    assert found.frames == int(batch.num_frames.sum())


def test_several_steps_on_one_batch_are_plain_descent(speech: ClientSpeech) -> None:
    settings = LocalSettings(steps=3, batch_size=6, learning_rate=0.05, clip_norm=1e9)
    model = build_model(tiny_model())
    batch = FeatureDataset(model)[speech.cuts].batch
    assert batch is not None
    expected = client_update(model, batch, ClientSettings("delta", "train", 3, 0.05), "", "")
    found = trained(speech, settings)
    for name, tensor in expected.tensors.items():
        assert torch.allclose(found.update.tensors[name], tensor, atol=1e-5), name


def test_epochs_take_every_utterance_and_steps_as_many_batches_as_asked(speech: ClientSpeech) -> None:
    for settings, sizes in (
        (LocalSettings(batch_size=4, epochs=2), [4, 2, 4, 2]),
        (LocalSettings(batch_size=4, steps=3), [4, 2, 4]),
        (LocalSettings(batch_size=4, epochs=2, kind="gradient"), [4]),
    ):
        plan = list(batches(speech.cuts, settings, torch.Generator().manual_seed(0)))
        assert [len(each) for each in plan] == sizes
        if settings.epochs == 2 and settings.kind == "delta" and settings.steps is None:
            assert sorted(cut.id for each in plan[:2] for cut in each) == sorted(cut.id for cut in speech.cuts)


def test_a_round_follows_from_seed_round_and_name(speech: ClientSpeech) -> None:
    settings = LocalSettings(batch_size=2, steps=2)
    first, again, later = (trained(speech, settings, number=number).update.tensors for number in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], later[name]) for name in first)


def test_buffers_move_in_training_and_keep_their_types(speech: ClientSpeech) -> None:
    spec = normed_model("batch")
    before = dict(build_model(spec).named_buffers())
    for kind in get_args(Kind):
        after = trained(speech, LocalSettings(kind=kind, batch_size=6), spec).buffers
        assert {name: each.dtype for name, each in after.items()} == {name: each.dtype for name, each in before.items()}
        assert all(not torch.equal(after[name], before[name]) for name in before)
    assert trained(speech, LocalSettings(mode="eval"), spec).buffers.keys() == before.keys()
    assert not trained(speech, LocalSettings(), normed_model("group")).buffers


def test_frozen_layers_send_nothing(speech: ClientSpeech) -> None:
    found = trained(speech, LocalSettings(frozen=("input_layers.0",)))
    assert "input_layers.0.weight" not in found.update.tensors
    assert "input_layers.1.weight" in found.update.tensors
    with pytest.raises(InputError, match=r"frozen: \['nowhere'\] stand for 0 of"):
        trained(speech, LocalSettings(frozen=("nowhere",)))


def test_the_proximal_term_pulls_towards_the_server(speech: ClientSpeech) -> None:
    settings = LocalSettings(batch_size=2, steps=6, learning_rate=0.002)
    free, held = (trained(speech, replace(settings, proximal=mu)).update.tensors for mu in (0.0, 100.0))
    lengths = [sum(float(each.square().sum()) for each in tensors.values()) for tensors in (free, held)]
    assert lengths[1] < 0.8 * lengths[0]


def test_dropout_is_for_models_that_have_it(speech: ClientSpeech) -> None:
    settings = LocalSettings(kind="gradient", batch_size=6)
    plain, dropped = (trained(speech, replace(settings, dropout=share)).update.tensors for share in (0.0, 0.5))
    assert not torch.allclose(plain["output.weight"], dropped["output.weight"])
    with pytest.raises(InputError, match="leaves out no units"):
        trained(speech, replace(settings, dropout=0.5), normed_model("group"))


def test_private_steps_are_bounded_and_refuse_batch_norm(speech: ClientSpeech) -> None:
    pytest.importorskip("opacus", reason="Opacus is not installed: overheard[federated]")
    settings = LocalSettings(batch_size=6, steps=2, noise_multiplier=1e-6, sample_norm=0.01, learning_rate=1.0)
    found = trained(speech, settings, normed_model("group"))
    assert found.rate == 1.0
    assert found.utterances == 12
    length = sum(float(each.square().sum()) for each in found.update.tensors.values()) ** 0.5
    assert 0.002 < length <= 0.0201
    with pytest.raises(InputError, match="batch norm, which mixes utterances"):
        trained(speech, settings, normed_model("batch"))


def test_without_clipping_and_noise_private_steps_are_plain_ones(speech: ClientSpeech) -> None:
    pytest.importorskip("opacus", reason="Opacus is not installed: overheard[federated]")
    plain = LocalSettings(batch_size=6, steps=2, clip_norm=1e9)
    private = replace(plain, noise_multiplier=1e-12, sample_norm=1e6)
    expected, found = (trained(speech, each, normed_model("group")).update.tensors for each in (plain, private))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=2e-5), name


def test_speech_that_cannot_be_used_is_no_update(tmp_path: Path) -> None:
    folder = write_tones(tmp_path, speakers=1, each=2)
    cuts = load_corpus(folder).cuts
    for file in folder.rglob("*.flac"):
        file.write_bytes(b"nothing")
    for kind in get_args(Kind):
        with pytest.raises(InputError, match="corrupt audio"):
            trained(ClientSpeech("broken", cuts), LocalSettings(kind=kind))
