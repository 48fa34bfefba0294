"""Past the first layer's capacity: right up to the next layer's, silent beyond it, never sure without reason."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from builders import batch_of, observe, small_deepspeech1, small_deepspeech2, speech_like
from overheard.attacks import sequential
from overheard.attacks.decoding.edges import edges_of
from overheard.attacks.decoding.first_windows import first_guesses, first_window
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.registry import run_attack
from overheard.attacks.spans.activated_span import ActivatedSpan, activated_span
from overheard.attacks.spans.window_refinement import _gather, banded_factor, mean_hessian, refine
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.audit.steps import make_batch
from overheard.federation.client import ClientSettings
from overheard.federation.update import ClientUpdate
from overheard.recognition.weights import resolve_model
from overheard.speech.alphabet import Alphabet
from overheard.speech.batching import Batch, collate
from overheard.speech.corpus import Selection, load_corpus, load_utterance, select

PAST_CAPACITY = 112


def wide_deepspeech1(hidden_size: int = 320) -> nn.Module:
    """The closed form is determined up to 104 frames; the layer behind spans three times as many."""
    return small_deepspeech1(hidden_size=hidden_size)


def run(observation: Observation, seed: int = 0):
    return sequential.attack(observation, sequential.SequentialConfig(), generator=torch.Generator().manual_seed(seed))


def mean_error(found, batch: Batch, index: int = 0) -> float:
    length = int(batch.num_frames[index])
    assert len(found.features[index]) == length
    return float((found.features[index] - batch.features[:length, index]).abs().mean())


def noisy(observation: Observation, size: float) -> Observation:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: tensor + size * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in observation.update.tensors.items()
    }
    return dataclasses.replace(observation, update=ClientUpdate(tensors, observation.update.protocol))


@pytest.mark.parametrize("num_frames", [10, PAST_CAPACITY, 125])
def test_features_and_length_come_back(num_frames: int) -> None:
    batch = batch_of(num_frames)
    found = run(observe(wide_deepspeech1(), batch))
    assert found.unique
    assert found.reason is None
    assert mean_error(found, batch) < 1e-2
    assert found.diagnostics["rank"] == num_frames


def test_the_predicted_error_bounds_the_true_one() -> None:
    batch = batch_of(PAST_CAPACITY)
    found = run(observe(wide_deepspeech1(), batch))
    truth = batch.features[:, 0]
    error = float((found.features[0] - truth).square().mean().sqrt() / truth.square().mean().sqrt())
    assert error <= found.diagnostics["predicted_errors"][0] < 1e3 * error
    assert found.errors[0].shape[1:] == truth.shape
    drawn = float(found.errors[0].square().mean().sqrt() / truth.square().mean().sqrt())
    assert drawn == pytest.approx(found.diagnostics["likely_errors"][0], rel=1e-3)


def test_a_delta_of_one_step_and_public_speech() -> None:
    batch = batch_of(PAST_CAPACITY)
    settings = ClientSettings(kind="delta", local_steps=1, learning_rate=0.1)
    observation = observe(wide_deepspeech1(), batch, settings)
    found = run(dataclasses.replace(observation, public_speech=(speech_like(40, 26, seed=9),)))
    assert mean_error(found, batch) < 1e-2


@pytest.mark.parametrize("size", [1e-6, 1e-4])
def test_noise_on_the_update_is_borne(size: float) -> None:
    batch = batch_of(PAST_CAPACITY)
    found = run(noisy(observe(wide_deepspeech1(), batch), size))
    assert mean_error(found, batch) < 1e-1


def test_noise_that_drowns_the_span_is_no_success() -> None:
    found = run(noisy(observe(wide_deepspeech1(), batch_of(PAST_CAPACITY)), 1.0))
    assert not found.unique
    assert found.reason


def test_past_its_own_capacity_nothing_is_made_up() -> None:
    found = run(observe(small_deepspeech1(hidden_size=160), batch_of(150)))
    assert not found.features
    assert "past the capacity" in str(found.reason)
    found = run(observe(small_deepspeech1(hidden_size=96), batch_of(150)))
    assert not found.features
    assert found.reason


def test_two_utterances_are_decoded_one_by_one() -> None:
    batch = batch_of(70, 50)
    found = run(observe(wide_deepspeech1(hidden_size=320), batch))
    assert sorted(len(matrix) for matrix in found.features) == [50, 70]
    for matrix in found.features:
        truth = batch.features[: len(matrix), 0 if len(matrix) == 70 else 1]
        assert (matrix - truth).abs().mean() < 1e-2


@pytest.mark.parametrize("lengths", [(20, 20), (25, 33, 25)])
def test_utterances_of_equal_length_are_told_apart(lengths: tuple[int, ...]) -> None:
    """In the first layer's span every affine combination of them fits; behind a rectifier none but themselves does."""
    batch = batch_of(*lengths)
    found = run_attack(observe(wide_deepspeech1(), batch))
    assert found.unique, found.reason
    left = list(found.features)
    for index in range(len(lengths)):
        truth = batch.utterance_features(index)
        same = [matrix for matrix in left if len(matrix) == len(truth) and (matrix - truth).abs().mean() < 1e-2]
        assert len(same) == 1
        left = [matrix for matrix in left if matrix is not same[0]]


@pytest.mark.parametrize(("stride", "num_frames"), [(1, 30), (3, 61), (3, 62), (3, 63)])
def test_an_utterance_is_read_from_its_end(stride: int, num_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stride, each length leaves another number of padding rows behind the last window."""
    model = TwoLayers(nn.ReLU(), units=400, kernel=7 if stride > 1 else 5, stride=stride)
    batch = batch_of(num_frames)
    batch.features.mul_(0.1)
    monkeypatch.setattr(sequential, "edges_of", lambda *args: edges_of(*args)[1:])
    alike = batch.features[:, 0] + 0.1 * torch.randn(num_frames, 26, generator=torch.Generator().manual_seed(2))
    found = run(dataclasses.replace(observe(model, batch), public_speech=(alike,)))
    assert found.unique
    assert found.diagnostics["backwards"] == [True]
    assert mean_error(found, batch) < 1e-2


def test_an_utterance_lost_from_both_ends_is_not_sought_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = sequential.decode_frames

    def lost(*args):
        found = decode(*args)
        return dataclasses.replace(found, features=found.features[:-5], complete=False)

    monkeypatch.setattr(sequential, "decode_frames", lost)
    found = run(observe(wide_deepspeech1(), batch_of(60)))
    assert not found.unique
    assert len(found.features[0]) == 55
    assert found.diagnostics["guesses"] < sequential.SequentialConfig().guesses


def test_guesses_turn_to_what_is_known() -> None:
    edge = edges_of(*_span_of(wide_deepspeech1(), batch_of(30)), torch.Generator().manual_seed(0))[1]
    mean, speech = torch.ones(26), speech_like(20, 26)
    known: list[torch.Tensor] = []
    guesses = first_guesses(edge, (speech, speech[:2]), mean, known, torch.Generator().manual_seed(0))
    assert torch.equal(next(guesses), speech.flip(0)[:3])
    assert torch.equal(next(guesses), mean.expand(3, -1))
    known.append(1e6 + speech)
    sizes = [float(next(guesses).abs().max()) for _ in range(6)]
    assert [size > 1e5 for size in sizes] == [False, True] * 3


def test_a_known_first_window_is_not_found_again() -> None:
    batch = batch_of(30)
    edge = edges_of(*_span_of(wide_deepspeech1(), batch), torch.Generator().manual_seed(0))[0]
    truth = batch.features[:3, 0]
    found = first_window(edge, truth, [])
    assert found is not None
    assert (found - truth).abs().mean() < 1e-2
    assert first_window(edge, truth, [truth + 1e-3]) is None


def test_silence_that_repeats_is_left_and_its_length_told() -> None:
    """Eleven equal frames fill seven windows with one direction; the output layer tells how many there were."""
    speech = speech_like(PAST_CAPACITY, 26)
    speech[60:71] = speech[60]
    found = run(observe(wide_deepspeech1(), collate([speech], [[3, 4]])))
    assert found.unique
    assert found.diagnostics["equal_frames"] == [[0, 60, 5, 6]]
    assert len(found.features[0]) == PAST_CAPACITY
    assert (found.features[0] - speech).abs().mean() < 1e-2


def test_models_without_windows_or_pointwise_layers_are_told() -> None:
    assert "no layer" in str(run(observe(small_deepspeech2(), batch_of(30, num_features=257))).reason)
    assert "activation alone" in str(run(observe(TwoLayers(nn.LayerNorm(96)), batch_of(30))).reason)
    silent = observe(wide_deepspeech1(hidden_size=64), batch_of(20))
    for tensor in silent.update.tensors.values():
        tensor.zero_()
    assert "zero" in str(run(silent).reason)


class TwoLayers(nn.Module):
    """Windows of frames every `stride`, an activation, a wide layer, symbols."""

    def __init__(self, between: nn.Module, units: int = 96, kernel: int = 5, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv1d(26, units, kernel, stride, kernel // 2)
        self.between = between
        self.second = nn.Linear(units, units)
        self.output = nn.Linear(units, 29)
        self.front_end = small_deepspeech1(hidden_size=4).front_end
        self.alphabet = Alphabet()

    def output_lengths(self, num_frames: torch.Tensor) -> torch.Tensor:
        kernel = self.front.kernel_size[0]
        return (num_frames + 2 * (kernel // 2) - kernel) // self.front.stride[0] + 1

    def forward(self, features: torch.Tensor, num_frames: torch.Tensor):
        hidden = self.between(self.front(features.permute(1, 2, 0)).permute(2, 0, 1))
        return self.output(functional.gelu(self.second(hidden))), self.output_lengths(num_frames)


@pytest.mark.parametrize(("activation", "stride"), [(nn.Tanh(), 1), (nn.GELU(), 2), (nn.ReLU(), 3)])
def test_other_activations_and_strided_convolutions(activation: nn.Module, stride: int) -> None:
    model = TwoLayers(activation, units=300, kernel=7 if stride > 1 else 5, stride=stride)
    batch = batch_of(20 * stride + 1)
    batch.features.mul_(0.1)
    found = run(observe(model, batch))
    assert mean_error(found, batch) < 1e-2


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardtanh(0.0, 20.0), nn.Tanh(), nn.Sequential(nn.SiLU())])
def test_activations_are_read_off_the_running_model(activation: nn.Module) -> None:
    model = TwoLayers(activation).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    behind = find_pointwise_layer(model, layer)
    assert behind is not None
    assert behind.name == "second"
    values = torch.randn(2, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 15
    found, slopes = behind.activation(values)
    values.requires_grad_()
    expected = activation(values)
    assert torch.equal(found, expected.detach())
    assert torch.allclose(slopes, torch.autograd.grad(expected.sum(), values)[0])
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _span_of(model: nn.Module, batch: Batch) -> tuple[ActivatedSpan, WindowedLayer]:
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    behind = find_pointwise_layer(model, layer)
    assert behind is not None
    span = activated_span(observe(model, batch), layer, behind)
    assert span is not None
    return span, layer


def test_gathering_is_the_transpose_of_cutting() -> None:
    layer = WindowedLayer("x", torch.arange(12) // 3, torch.arange(12) % 3, 4, 2, 0, 0, 3)
    generator = torch.Generator().manual_seed(0)
    rows, windows = torch.randn(10, 3, generator=generator), torch.randn(4, 12, generator=generator)
    assert torch.allclose((layer.cut(rows) * windows).sum(), (rows * _gather(windows, layer, 10)).sum(), atol=1e-5)


def test_refinement_finds_the_truth_from_beside_it() -> None:
    batch = batch_of(PAST_CAPACITY)
    span, layer = _span_of(wide_deepspeech1(), batch)
    rows = functional.pad(batch.features[:, 0].double(), (0, 0, 2, 2))
    start = rows.clone()
    start[2:-2] += 1e-2 * torch.randn(PAST_CAPACITY, 26, generator=torch.Generator().manual_seed(0))
    block = mean_hessian(span, layer.cut(start))
    fit = refine(span, start, (2, 2 + PAST_CAPACITY), layer, block)
    assert (fit.rows - rows).abs().mean() < 1e-3
    assert torch.equal(fit.rows[:2], rows[:2])
    assert 0.3 < fit.excess < 3


def test_a_slow_start_is_no_obstacle(librispeech: Path) -> None:
    # Near silence the first frames barely change: float32 alone leaves the first window open, and every later one lost.
    cuts, _ = select(load_corpus(librispeech), Selection(utterances=("3005-163389-0006",)))
    said = load_utterance(cuts[0])
    model = resolve_model('{"name": "deepspeech1", "config": {"hidden_size": 1024}}', seed=0)
    beginning = dataclasses.replace(said, waveform=said.waveform[:64000], transcript="HE SAYS")
    batch, _ = make_batch(model, [beginning])
    found = run(observe(model, batch))
    assert len(found.features) == 1
    assert mean_error(found, batch) < 1e-2


def test_a_hessian_that_rounding_left_indefinite_is_factorised() -> None:
    band = np.zeros((2, 50))
    band[0], band[0, 7] = 1.0, -1e-8
    assert np.isfinite(banded_factor(band)).all()
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        banded_factor(-band)
