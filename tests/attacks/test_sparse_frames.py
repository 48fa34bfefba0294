"""The whole chain on a DeepSpeech 2 of few units, and each of its later steps against the model's own values."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sparse_speech import model_of, spoken
from torch.nn import functional

from builders import observe, small_deepspeech1
from overheard.attacks import sparse_frames
from overheard.attacks.complete import complete
from overheard.attacks.deepspeech2.activation_equations import ActivationEquations
from overheard.attacks.deepspeech2.active_units import decide_active
from overheard.attacks.deepspeech2.conv_features import make_evidence, solve_features
from overheard.attacks.deepspeech2.conv_front import Front, make_front, make_second
from overheard.attacks.deepspeech2.edge_features import preconditioner
from overheard.attacks.deepspeech2.line_up import line_up
from overheard.attacks.observation import Prior, Reconstruction
from overheard.federation.client import ClientSettings
from overheard.recognition.deepspeech2 import DeepSpeech2
from overheard.recognition.normalisation import MaskedBatchNorm
from overheard.speech.batching import collate


def with_activation(activation: Callable[[torch.Tensor], torch.Tensor], **config: object) -> DeepSpeech2:
    model = model_of(**config)
    model.activated = activation  # pyright: ignore[reportAttributeAccessIssue]
    return model


def attack(observation, **options) -> Reconstruction:
    config = sparse_frames.SparseFramesConfig(**options)
    return sparse_frames.attack(observation, config, generator=torch.Generator().manual_seed(0))


def snr(found: torch.Tensor, true: torch.Tensor) -> float:
    return float(-20 * torch.log10((found - true).norm() / true.norm()))


@pytest.mark.parametrize(
    ("num_frames", "config"),
    [(45, {}), (46, {"cell": "lstm"}), (40, {"cell": "tanh"}), (36, {"padding": ((20, 5), (10, 5))})],
)
def test_features_and_words_come_back_from_the_update_alone(num_frames: int, config: dict[str, object]) -> None:
    batch = spoken(num_frames)
    model = model_of(**config)
    observation = observe(model, batch)
    found = complete(observation, attack(observation))
    assert found.reason is None
    assert found.unique
    assert found.features[0].shape == (num_frames, 161)
    assert snr(found.features[0], batch.features[:, 0]) > 40
    assert found.transcripts == (model.alphabet.decode(batch.utterance_labels(0)),)
    assert found.certified


def test_two_utterances_come_back_from_one_update() -> None:
    batch = spoken(27, 36)
    model = model_of()
    observation = observe(model, batch)
    found = complete(observation, attack(observation))
    assert found.reason is None
    assert sorted(len(features) for features in found.features) == [27, 36]
    for features, text in zip(found.features, found.transcripts, strict=True):
        index = int(len(features) == 36)
        assert snr(features, batch.utterance_features(index)) > 40
        assert text == model.alphabet.decode(batch.utterance_labels(index))
    assert found.certified


def test_a_saturated_unit_counts_as_saturated_whatever_rounding_made_of_it() -> None:
    model = model_of(clip=0.3)
    front, second = make_front(model), make_second(model)
    features = spoken(36).features[:, 0].double()
    activations = front.pre_activations(features).clamp(0.0, 0.3)
    before = second.convolve(activations) + second.bias[:, None, None]
    active = (before > 0) & (before < 0.3)
    assert (before > 0.3).any()
    delta = torch.where(active, before, 0.0)
    update = delta.new_zeros(16, 16, 21, 11)
    equations = ActivationEquations(front, delta, update, (activations.shape[1], activations.shape[2]))
    seen = before.clamp(0.0, 0.3) - 1e-6
    trusted = torch.ones(16, 1, before.shape[2], dtype=torch.bool)
    evidence = make_evidence(front, second, equations, seen, active, trusted)
    assert (evidence.frames[before > 0.3] == 0.3).all()
    solved = solve_features(evidence, features, 0, 1e-5)
    assert solved.frame_residual < 1e-5


def test_a_delta_of_one_step_is_a_gradient() -> None:
    batch = spoken(40)
    found = attack(observe(model_of(), batch, ClientSettings(kind="delta", learning_rate=1.0)))
    assert found.features
    assert snr(found.features[0], batch.features[:, 0]) > 10


def test_what_it_is_not_made_for_is_said() -> None:
    model, batch = model_of(), spoken(40)
    assert "DeepSpeech1" in str(attack(observe(small_deepspeech1(), collate([torch.randn(20, 26)], [[1]]))).reason)
    assert "norm" in str(attack(observe(model, batch, ClientSettings(mode="train"))).reason)
    assert "norm" in str(attack(observe(model_of(norm="group"), batch)).reason)
    steps = ClientSettings(kind="delta", learning_rate=0.1, local_steps=2)
    assert "local steps" in str(attack(observe(model, batch, steps)).reason)
    assert "told apart" in str(attack(observe(model_of(hidden_size=20), batch)).reason)
    assert "declared length" in str(attack(observe(model, batch, prior=Prior(num_frames=(99,)))).reason)


def test_a_smooth_front_gives_its_features_away() -> None:
    model, batch = with_activation(torch.tanh, channels=32), spoken(33)
    observation = observe(model, batch)
    found = complete(observation, attack(observation))
    assert found.reason is None
    assert snr(found.features[0], batch.features[:, 0]) > 40
    assert found.transcripts == (model.alphabet.decode(batch.utterance_labels(0)),)


@pytest.mark.parametrize("activation", [functional.gelu, functional.silu, functional.softplus])
def test_frames_need_no_rectifier(activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    found = attack(observe(with_activation(activation), spoken(36)), most_steps=0)
    assert found.diagnostics["frames_by_utterance"] == [13]


def test_a_batch_of_frames_without_zeros_is_refused() -> None:
    model = with_activation(torch.tanh, norm="group")
    assert "told apart by their zeros" in str(attack(observe(model, spoken(32, 39))).reason)


@pytest.mark.parametrize("smooth", [False, True])
def test_fewer_equations_than_features_are_not_enough(smooth: bool) -> None:
    model = with_activation(torch.tanh, channels=8) if smooth else model_of(channels=4)
    assert "too few with" in str(attack(observe(model, spoken(30))).reason)


def test_features_that_frames_do_not_tell_are_not_returned() -> None:
    model = with_activation(torch.tanh, channels=32)
    assert "do not tell the features" in str(attack(observe(model, spoken(30)), most_steps=1).reason)


class Dropped(DeepSpeech2):
    """Its norms stay in evaluation mode, and a third of what the recurrence is given is left out."""

    def train(self, mode: bool = True) -> "Dropped":
        super().train(mode)
        for part in self.modules():
            if isinstance(part, MaskedBatchNorm):
                part.eval()
        return self

    def convolved(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return functional.dropout(super().convolved(features, lengths), 1 / 3, self.training)


def test_features_come_back_from_before_dropout() -> None:
    batch, model = spoken(36), Dropped(model_of().config)
    found = attack(observe(model, batch, ClientSettings(mode="train")))
    assert found.reason is None
    assert snr(found.features[0], batch.features[:, 0]) > 40


def test_another_front_is_named() -> None:
    model = with_activation(lambda values: 10 * values.clamp(min=0.0).square())
    assert "neither smooth" in str(attack(observe(model, spoken(36))).reason)


def test_sums_of_gradients_decide_doubtful_units() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(4, 9, 12, generator=generator, dtype=torch.float64).clamp(min=0.0)
    gradients = torch.randn(4, 9, 12, generator=generator, dtype=torch.float64)
    truth = units > 0
    rounding = 1e-6 * torch.randn(units.shape, generator=generator, dtype=torch.float64)
    seen = torch.where(truth, units, rounding)
    doubtful = truth.nonzero()[[3, 40, 90]].T
    seen[tuple(doubtful)] = torch.tensor([2e-6, 1e-5, 5e-6], dtype=torch.float64)
    bias = (gradients * truth).sum((1, 2)) * (1 + 1e-7)
    found = decide_active(seen, torch.full_like(seen, 1e-6), gradients, bias, clip=20.0)
    assert torch.equal(found.active, truth)
    assert found.changed >= 1


def test_sums_tell_how_far_above_noise_a_unit_must_be() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(8, 9, 30, generator=generator, dtype=torch.float64).clamp(min=0.0)
    gradients = torch.randn(8, 9, 30, generator=generator, dtype=torch.float64)
    noise = 1e-3
    units = torch.where(units > 8 * noise, units, 0.0)
    seen = units + noise * torch.randn(units.shape, generator=generator, dtype=torch.float64)
    found = decide_active(
        seen, torch.full_like(seen, noise), gradients, (gradients * (units > 0)).sum((1, 2)), clip=20.0
    )
    assert torch.equal(found.active, units > 0)


@pytest.mark.parametrize("padding", [((0, 10), (0, 0)), ((20, 5), (10, 5))])
def test_the_equations_hold_for_the_models_own_activations(padding: tuple[tuple[int, int], tuple[int, int]]) -> None:
    model, batch = model_of(padding=padding), spoken(36)
    inside: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.convolutions[1].register_forward_hook(
        lambda _, inputs, output: inside.append((inputs[0], output))  # pyright: ignore[reportArgumentType]
    )
    logits, _ = model(batch.features, batch.num_frames)
    hook.remove()
    [(entering, leaving)] = inside
    weight = model.get_parameter("convolutions.1.weight")
    update, delta = torch.autograd.grad(logits.square().sum(), (weight, leaving))
    activations = entering[0].detach().double()
    front = make_front(model)
    assert torch.allclose(front.pre_activations(batch.features[:, 0].double()).clamp(0.0, 20.0), activations, atol=1e-5)
    equations = ActivationEquations(
        front, delta[0].double(), update.double(), (activations.shape[1], activations.shape[2])
    )
    near = activations + 1e-3 * torch.randn(activations.shape, dtype=torch.float64)
    solved = equations.nearest(near)
    assert float((equations.nearest(activations) - activations).norm() / activations.norm()) < 1e-3
    assert float((solved - activations).norm()) < 0.8 * float((near - activations).norm())


@pytest.mark.parametrize("padding", [((0, 10), (0, 0)), ((20, 5), (10, 5))])
def test_convolutions_and_their_adjoints(padding: tuple[tuple[int, int], tuple[int, int]]) -> None:
    model = model_of(padding=padding)
    front: Front = make_front(model)
    second = make_second(model)
    generator = torch.Generator().manual_seed(0)
    for num_frames in (20, 21):
        features = torch.randn(num_frames, 161, generator=generator, dtype=torch.float64)
        values = front.convolve(features)
        other = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        back = front.convolve_transposed(other, num_frames, 161)
        torch.testing.assert_close((values * other).sum(), (features * back).sum())
        frames = second.convolve(values)
        other = torch.randn(frames.shape, generator=generator, dtype=torch.float64)
        back = second.convolve_transposed(other, (values.shape[1], values.shape[2]))
        torch.testing.assert_close((frames * other).sum(), (values * back).sum())


@pytest.mark.parametrize("padding", [((0, 10), (0, 0)), ((20, 5), (10, 5))])
def test_utterances_in_a_line_do_not_see_each_other(padding: tuple[tuple[int, int], tuple[int, int]]) -> None:
    model, lengths = model_of(padding=padding), (21, 24, 30)
    alone, second = make_front(model), make_second(model)
    utterances = line_up(model.config, lengths, torch.device("cpu"))
    front = make_front(model, utterances)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(utterances.features), 161, generator=generator, dtype=torch.float64)
    together = second.convolve(front.pre_activations(features).clamp(0.0, 20.0))
    expected = [
        second.convolve(alone.pre_activations(features[start:end]).clamp(0.0, 20.0)) for start, end in utterances.spans
    ]
    assert [end - start for start, end in utterances.spans] == list(lengths)
    torch.testing.assert_close(together[..., utterances.outputs], torch.cat(expected, dim=2))


@pytest.mark.parametrize("padding", [((0, 10), (0, 0)), ((20, 5), (10, 5))])
def test_the_fast_adjoint_is_the_slow_one(padding: tuple[tuple[int, int], tuple[int, int]]) -> None:
    front: Front = make_front(model_of(padding=padding))
    rough = replace(front, weight=front.weight.float(), bias=front.bias.float())
    for num_frames in (20, 21):
        values = torch.randn(front.convolve(torch.zeros(num_frames, 161, dtype=torch.float64)).shape)
        slow = front.convolve_transposed(values.double(), num_frames, 161)
        torch.testing.assert_close(rough.convolve_transposed(values, num_frames, 161), slow.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("padding", [((0, 10), (0, 0)), ((20, 5), (10, 5))])
def test_features_at_the_edges_are_solved_for_together(padding: tuple[tuple[int, int], tuple[int, int]]) -> None:
    front: Front = make_front(model_of(padding=padding))
    front = replace(front, weight=front.weight.float(), bias=front.bias.float())
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(27, 161, generator=generator)
    counted = torch.rand(front.convolve(features).shape, generator=generator).round()
    solve = preconditioner(front, counted, 27, 161)
    for edge in (slice(0, 24), slice(137, 161)):
        there = torch.zeros_like(features)
        there[:, edge] = features[:, edge]
        seen = front.convolve_transposed(counted * front.convolve(there), 27, 161)
        torch.testing.assert_close(solve(seen)[:, edge], features[:, edge], rtol=0.05, atol=0.05)
