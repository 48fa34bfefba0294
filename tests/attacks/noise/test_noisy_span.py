"""Noisy updates: the features of greatest likelihood, an error that is predicted rightly, and no false uniqueness."""

import pytest
import torch

from builders import batch_of, observe, small_deepspeech1, speech_like
from overheard.attacks import span
from overheard.attacks.entries.rounding import by_sizes, grid_step, rounded_as_products, rounding_size, scales_of
from overheard.attacks.noise.layer_fits import NoisyLayer
from overheard.attacks.noise.likelihood import most_likely_features
from overheard.attacks.noise.noisy_span import _hypotheses, _Witness
from overheard.attacks.observation import Observation, Prior, Reconstruction
from overheard.attacks.rank import NumericalRank, rank_above_noise
from overheard.attacks.spans.span_solver import SpanSolver, row_space
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.federation.update import ClientUpdate


def with_noise(observation: Observation, level: float, seed: int = 0) -> Observation:
    """Every tensor with independent noise of `level` times its root mean square."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + level * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in observation.update.tensors.items()
    }
    return Observation(observation.model, ClientUpdate(tensors, observation.update.protocol), observation.prior)


def in_format(observation: Observation, kind: torch.dtype) -> Observation:
    tensors = {name: tensor.to(kind).float() for name, tensor in observation.update.tensors.items()}
    return Observation(observation.model, ClientUpdate(tensors, observation.update.protocol))


def run(observation: Observation, noise: float | None = None) -> Reconstruction:
    config = span.SpanConfig() if noise is None else span.SpanConfig(noise=noise)
    return span.attack(observation, config, generator=torch.Generator().manual_seed(0))


def relative_error(found: Reconstruction, features: torch.Tensor) -> float:
    return float((found.features[0] - features).square().mean().sqrt() / features.square().mean().sqrt())


@pytest.mark.parametrize(("level", "better"), [(1e-5, 1.0), (1e-4, 0.3), (1e-3, 0.2)])
def test_noise_is_met_with_likelihood(level: float, better: float) -> None:
    batch = batch_of(50)
    noisy = with_noise(observe(small_deepspeech1(hidden_size=256), batch), level)
    found = run(noisy, noise=0.0)
    assert found.features[0].shape == (50, 26)
    error = relative_error(found, batch.features[:, 0])
    # The closed form alone is worse, as it cuts a rank, weighs every direction alike and has one layer.
    layer = find_windowed_layer(noisy.model, 26)
    assert layer is not None
    matrix = torch.cat(
        [noisy.update.tensors["input_layers.0.weight"], noisy.update.tensors["input_layers.0.bias"][:, None]], dim=1
    )
    plain = SpanSolver(row_space(matrix.double())[0][:50], layer).solve((50,))
    assert plain is not None
    closed = float((plain.features - batch.features[:, 0]).square().mean().sqrt())
    assert error < better * closed / float(batch.features.square().mean().sqrt())
    # The error is known without the truth.
    (predicted,) = found.diagnostics["likely_errors"]
    assert 0.5 * error < predicted < 2 * error
    assert found.unique == (predicted <= 1e-3)
    assert found.errors[0].shape[1:] == (50, 26)
    size = found.features[0].square().mean().sqrt()
    assert float(found.errors[0].square().mean().sqrt() / size) == pytest.approx(predicted)
    for noise in found.diagnostics["noise"]:
        assert noise == pytest.approx(level, rel=0.05)


@pytest.mark.parametrize(("kind", "worst"), [(torch.float16, 3e-4), (torch.bfloat16, 3e-3)])
def test_rounding_to_half_the_bits_is_weighed_entry_by_entry(kind: torch.dtype, worst: float) -> None:
    batch = batch_of(40)
    observation = observe(small_deepspeech1(hidden_size=256), batch)
    found = run(in_format(observation, kind))
    assert found.diagnostics["rank"] == 40
    error = relative_error(found, batch.features[:, 0])
    assert error < worst
    assert found.diagnostics["likely_errors"][0] < 3 * error


def test_both_layers_tell_more_than_one() -> None:
    batch = batch_of(60)
    model = small_deepspeech1(hidden_size=256)
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    noisy = with_noise(observe(model, batch), 3e-4)
    both = run(noisy, noise=0.0)
    assert both.diagnostics["noisy_layers"] == ["input_layers.0", "input_layers.1"]
    first = _layer(noisy, layer)
    alone = most_likely_features([both.features[0]], [first], layer, torch.Generator().manual_seed(0))
    error = float((alone.features[0] - batch.features[:, 0]).square().mean().sqrt())
    assert relative_error(both, batch.features[:, 0]) < 0.5 * error / float(batch.features.square().mean().sqrt())


def test_the_likelihood_is_at_its_top() -> None:
    """No small change of the features explains the update better: central differences of f about the answer."""
    batch = batch_of(9)
    model = small_deepspeech1(hidden_size=192)
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    first = _layer(with_noise(observe(model, batch), 1e-3), layer)
    found = most_likely_features([batch.features[:, 0]], [first], layer, torch.Generator().manual_seed(0))
    assert found.settled

    def unexplained(features: torch.Tensor) -> float:
        inside = torch.linalg.qr(first.inputs(layer.windows(features))[0].T).Q
        return float((first.matrix - (first.matrix @ inside) @ inside.T).square().sum())

    least = unexplained(found.features[0])
    assert least < unexplained(batch.features[:, 0].double())
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        change = found.predicted_error * torch.randn(9, 26, generator=generator, dtype=torch.float64)
        assert unexplained(found.features[0] + change) > least
        assert unexplained(found.features[0] - change) > least


def test_an_update_of_noise_alone_is_no_speech() -> None:
    observation = observe(small_deepspeech1(), batch_of(30))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in observation.update.tensors.items():
        observation.update.tensors[name] = torch.randn(tensor.shape, generator=generator)
    assert not run(observation).unique


def test_two_utterances_of_known_lengths_come_out_of_noise() -> None:
    batch = batch_of(20, 31)
    observation = observe(small_deepspeech1(hidden_size=256), batch, prior=Prior(num_frames=(20, 31)))
    found = run(with_noise(observation, 1e-4), noise=0.0)
    assert found.unique, found.reason
    for index in range(2):
        assert (found.features[index] - batch.utterance_features(index)).abs().mean() < 2e-2


@pytest.mark.parametrize("rank", [0, 1, 30, 90])
def test_the_rank_above_noise(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(300, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, 100, generator=generator, dtype=torch.float64) * torch.logspace(0, 2, rank)[:, None]
    noise = 0.1 * torch.randn(300, 100, generator=generator, dtype=torch.float64)
    found = rank_above_noise(torch.linalg.svdvals(left @ right + noise), 300)
    assert found.rank == rank
    assert rank == 0 or found.margin > 1


def test_the_size_of_rounding_is_read_off_the_numbers() -> None:
    values = torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    assert rounding_size(values) is None
    for kind in (torch.float16, torch.bfloat16):
        stored = values.to(kind).float()
        sizes = rounding_size(stored)
        assert sizes is not None
        assert ((stored - values) / sizes).square().mean().sqrt() == pytest.approx(1.0, abs=0.05)
    step = 0.03
    stored = (values / step).round() * step
    assert grid_step(stored) == pytest.approx(step, rel=1e-4)
    sizes = rounding_size(stored)
    assert sizes is not None
    assert ((stored - values) / sizes).square().mean().sqrt() == pytest.approx(1.0, abs=0.05)
    assert grid_step(torch.zeros(3, 3)) is None


@pytest.mark.parametrize("level", [1e-8, 1e-5])
def test_errors_of_products_are_told_from_errors_that_are_all_alike(level: float) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, error = (torch.randn(*shape, generator=generator).double() for shape in ((200, 9), (9, 60), (200, 60)))
    matrix = (left * torch.logspace(-3, 0, 200)[:, None]) @ (right * torch.logspace(-2, 0, 9)[:, None])
    sizes = matrix.square().mean(dim=1, keepdim=True).sqrt()
    for alike, rest in ((False, level * sizes * error), (True, level * error)):
        scaled, _ = by_sizes(matrix + rest)
        assert rounded_as_products(matrix + rest, scaled, row_space(scaled)[0][:9]) == (not alike)


def test_of_layers_in_doubt_the_one_of_more_windows_is_tried_first() -> None:
    layer = find_windowed_layer(small_deepspeech1(), 26)
    assert layer is not None

    def ranked(rank: int, margin: float) -> _Witness:
        ones = torch.ones(2, dtype=torch.float64)
        return _Witness("", NoisyLayer(ones[:, None] * ones, 2, True, ones), NumericalRank(rank, margin, ones))

    in_doubt = _hypotheses(ranked(142, 1.02), ranked(145, 1.01), layer, None)
    assert [each for _, each in in_doubt] == [[144, 145, 146, 147], [141, 142, 143, 144]]
    assert _hypotheses(ranked(142, 1.02), ranked(145, 9.0), layer, None)[0] == (9.0, [145])
    assert _hypotheses(ranked(142, 1.02), None, layer, (40, 50)) == [(1.02, [90])]


def test_scales_of_a_product_with_holes() -> None:
    rows, columns = torch.tensor([1.0, 4.0, 0.5, 2.0]).double(), torch.tensor([3.0, 0.1, 7.0]).double()
    sizes = rows[:, None] * columns
    present = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]]).bool()
    found_rows, found_columns = scales_of(sizes, present)
    assert torch.allclose(found_rows[:, None] * found_columns, sizes, rtol=0.05)


def _layer(observation: Observation, layer: WindowedLayer) -> NoisyLayer:
    tensors = observation.update.tensors
    weight = tensors["input_layers.0.weight"][:, layer.order]
    matrix = torch.cat([weight, tensors["input_layers.0.bias"][:, None]], dim=1).double()
    alive = matrix[(matrix != 0).any(dim=1)]
    return NoisyLayer(alive, len(alive), True, torch.ones(matrix.shape[1], dtype=torch.float64))


def test_speech_like_features_are_no_fixed_point_of_chance() -> None:
    """From another utterance's features the fit does not pass for good."""
    batch = batch_of(30)
    model = small_deepspeech1(hidden_size=256)
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    first = _layer(with_noise(observe(model, batch), 1e-4), layer)
    right = most_likely_features([batch.features[:, 0]], [first], layer, torch.Generator().manual_seed(0))
    wrong = most_likely_features([speech_like(30, 26, 9)], [first], layer, torch.Generator().manual_seed(0), 2)
    assert wrong.deviations[0] > 2 * right.deviations[0]
