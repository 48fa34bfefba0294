"""Windows of very different gradients, as trained models have them: each counts as far as rounding lets it."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from builders import batch_of, observe, small_deepspeech1
from overheard.attacks import sequential
from overheard.attacks.decoding import layer_reader
from overheard.attacks.entries.rounding import by_sizes
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.pointwise import PointwiseLayer, find_pointwise_layer
from overheard.attacks.spans.activated_span import ActivatedSpan, _directions, _known_directions, activated_span
from overheard.attacks.spans.span_solver import SpanSolver, WindowEquations, row_space
from overheard.attacks.spans.window_refinement import mean_hessian, refine
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.benchmarks.closed_form import observed, uneven
from overheard.speech.batching import Batch

FRAMES = 80


def layers_of(model: nn.Module) -> tuple[WindowedLayer, PointwiseLayer]:
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    behind = find_pointwise_layer(model, layer)
    assert behind is not None
    return layer, behind


def relative(found: Tensor, batch: Batch) -> float:
    truth = batch.features[:, 0].double()
    return float((found - truth).square().mean().sqrt() / truth.square().mean().sqrt())


def test_windows_count_as_far_as_their_directions_are_known() -> None:
    batch, model = batch_of(FRAMES), small_deepspeech1(hidden_size=256)
    layer, _ = layers_of(model)
    tensors = observed(model, batch.features[:, 0], uneven(FRAMES)).update.tensors
    rows = tensors[f"{layer.name}.weight"].double()[:, layer.order]
    matrix, scales = by_sizes(torch.cat([rows, tensors[f"{layer.name}.bias"].double()[:, None]], dim=1))
    basis, values = row_space(matrix)
    alike = SpanSolver(basis[:FRAMES], layer, scales).solve((FRAMES,))
    weighed = SpanSolver(basis[:FRAMES], layer, scales, values[:FRAMES]).solve((FRAMES,))
    assert alike is not None
    assert weighed is not None
    error = relative(weighed.features, batch)
    assert error < 0.3 * relative(alike.features, batch)
    assert error / 3 < weighed.likely_error < 3 * error


def test_the_equations_pull_is_half_the_slope_of_their_square() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.float64)).Q.T
    scales, weights = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.5 for size in (7, 4))
    equations = WindowEquations(basis, scales, weights)
    windows = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = functional.pad(windows, (0, 1), value=1.0)
    square = (weights * ((inputs @ equations.projector) * inputs).sum(dim=1)).sum()
    assert equations.square(windows.detach()) == pytest.approx(float(square))
    (slope,) = torch.autograd.grad(square, windows)
    assert torch.allclose(equations.pull(windows.detach()), slope / 2)
    change = torch.ones(4, 6, dtype=torch.float64)
    moved = equations.pull(windows.detach() + change) - equations.pull(windows.detach())
    assert torch.allclose(equations.pull(change, 0.0), moved)


def _span(observation: Observation, **options: int) -> tuple[ActivatedSpan, WindowedLayer]:
    layer, behind = layers_of(observation.model)
    span = activated_span(observation, layer, behind, **options)
    assert span is not None
    return span, layer


def test_both_layers_and_weights_go_to_the_rounding_of_the_strongest_windows() -> None:
    batch, model = batch_of(FRAMES), small_deepspeech1(hidden_size=256)
    observation = observed(model, batch.features[:, 0], uneven(FRAMES))
    span, layer = _span(observation, windows=FRAMES)
    truth = functional.pad(batch.features[:, 0].double(), (0, 0, 2, 2))
    start = truth.clone()
    start[2:-2] += 1e-3 * torch.randn(FRAMES, 26, generator=torch.Generator().manual_seed(0))
    fit = refine(span, start, (2, FRAMES + 2), layer, mean_hessian(span, layer.cut(start)))
    error = relative(fit.rows[2:-2], batch)
    assert error < 1e-6
    assert error / 3 < fit.likely_error < 3 * error
    assert 0.3 < fit.excess < 3


def test_some_units_are_enough() -> None:
    batch, model = batch_of(30), small_deepspeech1(hidden_size=256)
    observation = observe(model, batch)
    span, layer = _span(observation, windows=30, equations=100)
    assert len(span.weight) == 130
    inputs, _ = span.inputs(layer.windows(batch.features[:, 0].double()) @ span.weight.T + span.bias)
    _, left, expected = span.outside(inputs)
    assert float((left / expected).median()) < 3
    whole, _ = _span(observation, windows=30)
    assert len(whole.weight) == 256


def test_a_known_rank_needs_no_full_decomposition() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 20, generator=generator, dtype=torch.float64)).Q for n in (150, 90))
    matrix = left @ torch.diag(torch.logspace(0, -6, 20, dtype=torch.float64)) @ right.T
    matrix += 1e-9 * torch.randn(150, 90, generator=generator, dtype=torch.float64)
    found, basis = _known_directions(matrix, 20)
    vectors, values = row_space(matrix)
    assert found.rank == 20
    assert torch.allclose(found.singular_values[:20], values[:20], rtol=1e-3)
    assert float((basis.T @ basis - vectors[:20].T @ vectors[:20]).norm()) < 1e-3


def test_where_noise_fills_the_gap_more_directions_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 40, generator=generator, dtype=torch.float64)).Q for n in (200, 150))
    strengths = torch.logspace(0, -7, 40, dtype=torch.float64)
    clear = left @ torch.diag(strengths.clamp(min=1e-4)) @ right.T
    noise = 1e-9 * torch.randn(200, 150, generator=generator, dtype=torch.float64)
    found, basis = _directions(clear + noise)
    assert (found.rank, len(basis)) == (40, 40)
    found, basis = _directions(left @ torch.diag(strengths) @ right.T + 10 * noise)
    assert 30 <= found.rank <= 40
    assert len(basis) > 40


def decoded_past(missing: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Reconstruction, Batch]:
    """An utterance so many windows of which hardly count, decoded as if its rank were in doubt."""
    frames = 112
    batch, model = batch_of(frames), small_deepspeech1(hidden_size=320)
    sizes = uneven(frames) ** 0.4
    sizes[50 : 50 + missing] = 1e-12
    # So few windows leave a clear gap all the same.
    monkeypatch.setattr(layer_reader, "CLEAR_MARGIN", math.inf)
    observation = observed(model, batch.features[:, 0], sizes)
    generator = torch.Generator().manual_seed(0)
    return sequential.attack(observation, sequential.SequentialConfig(), generator=generator), batch


def test_decoding_goes_on_past_windows_that_hardly_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found, batch = decoded_past(2, monkeypatch)
    assert found.unique, found.reason
    assert relative(found.features[0], batch) < 1e-4


def test_an_end_that_does_not_fit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three windows lacking are too many to be leapt over here: what is read up to there is no whole utterance."""
    found, batch = decoded_past(3, monkeypatch)
    assert found.unique == (len(found.features[0]) == batch.features.shape[0])


def test_a_step_within_rounding_is_not_taken_on_the_way() -> None:
    batch, model = batch_of(FRAMES), small_deepspeech1(hidden_size=256)
    span, layer = _span(observed(model, batch.features[:, 0], uneven(FRAMES)), windows=FRAMES)
    start = functional.pad(batch.features[:, 0].double(), (0, 0, 2, 2))
    start[2:-2] += 1e-4 * torch.randn(FRAMES, 26, generator=torch.Generator().manual_seed(0))
    block = mean_hessian(span, layer.cut(start))
    exact, rough = (refine(span, start, (2, FRAMES + 2), layer, block, enough=enough) for enough in (1e-3, 3.0))
    assert rough.iterations < exact.iterations
    assert rough.excess < 1.5 * exact.excess
