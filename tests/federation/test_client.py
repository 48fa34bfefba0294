"""What a client shares is the gradient of CTC, or the change of its weights, and its model is left as it was."""

from pathlib import Path

import pytest
import torch

from builders import batch_of, small_deepspeech1, small_deepspeech2
from overheard.errors import InputError
from overheard.federation.client import ClientSettings, client_update, settings_of
from overheard.federation.update import ClientUpdate, Kind, Protocol, check_fits, load_update
from overheard.recognition.loss import check_feasible, recognition_loss
from overheard.speech.batching import collate


def test_the_gradient_is_that_of_the_loss() -> None:
    model, batch = small_deepspeech1(hidden_size=8).double(), batch_of(12, 9)
    batch = collate([batch.utterance_features(index).double() for index in range(2)], [[1, 2], [3, 4]])
    update = client_update(model, batch, ClientSettings(), "m", "w")
    name, parameter = "output.bias", model.get_parameter("output.bias")
    step = 1e-6
    with torch.no_grad():
        parameter[3] += step
        above = recognition_loss(model, batch)
        parameter[3] -= 2 * step
        below = recognition_loss(model, batch)
    assert float((above - below) / (2 * step)) == pytest.approx(float(update.tensors[name][3]), rel=1e-6)


def test_the_loss_is_a_mean_over_utterances() -> None:
    model, both = small_deepspeech1(hidden_size=8).eval(), batch_of(12, 9)
    alone = [collate([both.utterance_features(i)], [both.utterance_labels(i)]) for i in range(2)]
    with torch.no_grad():
        together = float(recognition_loss(model, both))
        apart = [float(recognition_loss(model, each)) for each in alone]
    assert together == pytest.approx(sum(apart) / 2, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_delta_is_client_minus_server(steps: int) -> None:
    model, batch = small_deepspeech1(hidden_size=8), batch_of(12)
    settings = ClientSettings(kind="delta", local_steps=steps, learning_rate=0.01)
    update = client_update(model, batch, settings, "m", "w")
    reference = small_deepspeech1(hidden_size=8)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        recognition_loss(reference.eval(), batch).backward()
        optimiser.step()
    for name, parameter in reference.named_parameters():
        expected = parameter.detach() - model.get_parameter(name).detach()
        assert torch.allclose(update.tensors[name], expected, atol=1e-7), name
    gradient = client_update(model, batch, ClientSettings(), "m", "w")
    if steps == 1:
        assert torch.allclose(update.gradient("output.bias"), gradient.gradient("output.bias"), atol=1e-4)


def test_momentum_decay_and_clipping_are_those_of_torch() -> None:
    model, batch = small_deepspeech1(hidden_size=8), batch_of(12)
    settings = ClientSettings("delta", "eval", 4, 0.05, momentum=0.9, weight_decay=0.01, clip_norm=0.5)
    update = client_update(model, batch, settings, "m", "w")
    reference = small_deepspeech1(hidden_size=8)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        optimiser.zero_grad()
        recognition_loss(reference.eval(), batch).backward()
        assert torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5) > 0.5
        optimiser.step()
    for name, parameter in reference.named_parameters():
        expected = parameter.detach() - model.get_parameter(name).detach()
        assert torch.allclose(update.tensors[name], expected, atol=1e-6), name
    assert settings_of(update.protocol) == settings


def test_decay_is_taken_out_of_a_delta() -> None:
    """What is left spans no more than the gradients do: without it, the weights themselves are in there."""
    model, batch = small_deepspeech1(hidden_size=64).double(), batch_of(12)
    batch = collate([batch.utterance_features(0).double()], [[1, 2]])
    settings = ClientSettings("delta", "eval", 3, 0.05, momentum=0.9, weight_decay=0.1)
    update = client_update(model, batch, settings, "m", "w")
    name = "input_layers.0.weight"
    raw = torch.linalg.matrix_rank(update.gradient(name), rtol=1e-9)
    without = torch.linalg.matrix_rank(update.gradient_without_decay(name, model.get_parameter(name)), rtol=1e-9)
    assert int(raw) > int(without) == 12


@pytest.mark.parametrize("kind", ["gradient", "delta"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(kind: Kind, training: bool) -> None:
    model = small_deepspeech2().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rate = 0.1 if kind == "delta" else None
    settings = ClientSettings(kind=kind, mode="train", learning_rate=rate)
    client_update(model, batch_of(60, 51, num_features=257), settings, "m", "w")
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_eval_and_train_mode_differ_where_a_norm_is() -> None:
    model, batch = small_deepspeech2(), batch_of(60, 51, num_features=257)
    eval_update, train_update = (
        client_update(model, batch, ClientSettings(mode=m), "m", "w") for m in ("eval", "train")
    )
    assert not torch.allclose(eval_update.tensors["output.weight"], train_update.tensors["output.weight"])


def test_an_update_survives_its_file(tmp_path: Path) -> None:
    settings = ClientSettings(kind="delta", local_steps=2, learning_rate=0.5, mode="train")
    update = client_update(small_deepspeech1(hidden_size=4), batch_of(9), settings, "name", "weights")
    update.save(tmp_path / "update.safetensors")
    loaded = load_update(tmp_path / "update.safetensors")
    assert loaded.protocol == update.protocol
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in update.tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["update.safetensors"]


def test_an_impossible_transcript_is_named() -> None:
    model, batch = small_deepspeech1(hidden_size=4), collate([torch.zeros(5, 26)], [[1, 1, 1, 2]])
    with pytest.raises(InputError, match=r"u1: too short: 5 frames give 5 output frames, its transcript needs 6"):
        check_feasible(model, batch, ["u1"])


def test_an_infinite_loss_is_no_update() -> None:
    model, batch = small_deepspeech1(hidden_size=4), collate([torch.zeros(2, 26)], [[1, 2, 3]])
    with pytest.raises(InputError, match="loss: inf"):
        client_update(model, batch, ClientSettings(), "m", "w")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_utterances": 0}, "num_utterances: 0"),
        ({"local_steps": 0}, "local_steps: 0"),
        ({"kind": "delta"}, "learning_rate: None"),
        ({"kind": "delta", "learning_rate": float("nan")}, "learning_rate: nan"),
        ({"kind": "delta", "learning_rate": -1.0}, "learning_rate: -1.0"),
        ({"local_steps": 3}, "several steps"),
        ({"momentum": -0.1}, "momentum: -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay: nan"),
        ({"clip_norm": 0.0}, "clip_norm: 0.0"),
        ({"momentum": 0.9}, "a gradient with momentum"),
    ],
)
def test_a_protocol_checks_itself(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Protocol(**fields)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"nowhere.weight": torch.zeros(1)}, "which the model lacks"),
        ({"a.weight": torch.zeros(3, 3)}, r"shape \(3, 3\), the model's has \(2, 3\)"),
        ({"a.weight": torch.zeros(2, 3, dtype=torch.long)}, "type torch.int64"),
    ],
)
def test_an_update_of_another_model_is_refused(tensors: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_fits(ClientUpdate(tensors, Protocol()), {"a.weight": (2, 3)}, "update.safetensors")
