"""The closed form: right where it is determined, silent where it is not."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from builders import batch_of, observe, small_deepspeech1, small_deepspeech2, speech_like
from overheard.attacks import span
from overheard.attacks.observation import Prior
from overheard.attacks.spans.length_scan import length_scan
from overheard.attacks.spans.refined_span import refined
from overheard.attacks.spans.span_equations import normal_equations
from overheard.attacks.spans.span_solver import SpanSolution, SpanSolver, projector_on_complement, row_space
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.federation.client import ClientSettings
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import MFCC_26


def run(observation, **options):
    return span.attack(observation, span.SpanConfig(**options), generator=torch.Generator())


@pytest.mark.parametrize("num_frames", [3, 5, 20, 60, 103])
def test_features_and_length_come_back(num_frames: int) -> None:
    batch = batch_of(num_frames)
    found = run(observe(small_deepspeech1(), batch))
    assert found.unique
    assert found.features[0].shape == (num_frames, 26)
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-2
    assert found.diagnostics["rank"] == num_frames


def test_the_predicted_error_bounds_the_true_one() -> None:
    batch = batch_of(80)
    found = run(observe(small_deepspeech1(), batch))
    scale = batch.features.square().mean().sqrt()
    error = (found.features[0] - batch.features[:, 0]).square().mean().sqrt() / scale
    (predicted,) = found.diagnostics["predicted_errors"]
    assert error <= predicted
    assert predicted < 1e3 * error, "a bound that says nothing"


@pytest.mark.parametrize("num_frames", [20, 80, 100])
def test_the_likely_error_is_about_the_true_one(num_frames: int) -> None:
    batch = batch_of(num_frames)
    found = run(observe(small_deepspeech1(), batch))
    scale = batch.features.square().mean().sqrt()
    error = float((found.features[0] - batch.features[:, 0]).square().mean().sqrt() / scale)
    (likely,) = found.diagnostics["likely_errors"]
    assert error / 3 < likely < 10 * error


def test_a_delta_gives_the_same_as_a_gradient() -> None:
    batch = batch_of(40)
    settings = ClientSettings(kind="delta", local_steps=1, learning_rate=0.1)
    found = run(observe(small_deepspeech1(), batch, settings))
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        ClientSettings("delta", "eval", 10, 0.01),
        ClientSettings("delta", "eval", 10, 0.01, momentum=0.9, weight_decay=1e-3, clip_norm=1.0),
        ClientSettings("delta", "train", 5, 0.01),
    ],
    ids=["plain", "momentum, decay and clipping", "dropout"],
)
def test_local_training_keeps_the_span(settings: ClientSettings) -> None:
    batch = batch_of(40)
    found = run(observe(small_deepspeech1(hidden_size=256, dropout=0.2), batch, settings))
    assert found.unique, found.reason
    assert found.features[0].shape == (40, 26)
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-2


@pytest.mark.parametrize(
    "client", [ClientSettings(), ClientSettings("delta", "eval", 1, 0.1)], ids=["gradient", "delta"]
)
def test_entries_are_weighed_as_they_were_rounded(client: ClientSettings) -> None:
    """Small rows of a gradient hold what large ones drown; weights that were subtracted are rounded all alike."""
    batch, model = batch_of(90), small_deepspeech1(hidden_size=256)
    with torch.no_grad():
        model.get_parameter("input_layers.1.weight").mul_(torch.logspace(-3, 0, 256))
    observation = observe(model, batch, client)
    found = run(observation)
    assert found.diagnostics["weighed"] == (client.kind == "gradient")
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    rows = [observation.update.tensors[f"input_layers.0.{name}"].double().view(256, -1) for name in ("weight", "bias")]
    plain = SpanSolver(row_space(torch.cat(rows, dim=1))[0][:90], layer).solve((90,))
    assert plain is not None
    error, of_plain = (
        float((each - batch.features[:, 0]).abs().mean()) for each in (found.features[0], plain.features)
    )
    assert error < (0.3 if client.kind == "gradient" else 1.01) * of_plain


def test_the_layer_behind_makes_uncertain_features_certain() -> None:
    batch, model = batch_of(60), small_deepspeech1(hidden_size=256)
    observation = observe(model, batch)
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    truth = batch.features[:, 0].double()
    near = truth + 1e-3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    unsure = SpanSolution(near, 0.0, 1e-2, 1e-3, torch.zeros(1, *near.shape, dtype=near.dtype))
    (better,) = refined(observation, layer, [unsure])
    size = float(truth.square().mean().sqrt())
    error = float((better.features - truth).square().mean().sqrt()) / size
    assert error < 1e-4
    assert error / 5 < better.likely_error < 5 * error
    drawn = float(better.errors.square().mean().sqrt()) / size
    assert drawn == pytest.approx(better.likely_error, rel=1e-3)
    sure = replace(unsure, likely_error=1e-9)
    short = replace(unsure, features=near[:-1], errors=unsure.errors[:, :-1])
    for other in (sure, short):
        assert refined(observation, layer, [other]) == [other]


def test_past_the_capacity_nothing_is_made_up() -> None:
    found = run(observe(small_deepspeech1(hidden_size=256), batch_of(125)))
    assert not found.features
    assert "past the capacity" in str(found.reason)


def test_other_known_length_gives_nothing() -> None:
    found = run(observe(small_deepspeech1(), batch_of(30), prior=Prior(num_frames=(29,))), neighbours=0)
    assert not found.features


def test_a_model_without_windows_is_told() -> None:
    batch = batch_of(30, num_features=257)
    found = run(observe(small_deepspeech2(), batch))
    assert not found.features
    assert "no layer" in str(found.reason)


def test_features_unrelated_to_the_update_do_not_pass_as_unique() -> None:
    """A span of random directions has no windows in it; the solver's own test must say so."""
    layer = find_windowed_layer(small_deepspeech1(), 26)
    assert layer is not None
    random = torch.linalg.qr(torch.randn(131, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    solution = SpanSolver(random, layer).solve((40,))
    assert solution is None or solution.predicted_error > 1e-2


@given(
    window=st.integers(2, 5), stride=st.integers(1, 2), before=st.integers(0, 2), after=st.integers(0, 2),
    num_frames=st.integers(6, 14),
)  # fmt: skip
def test_banded_equations_equal_the_dense_ones(
    window: int, stride: int, before: int, after: int, num_frames: int
) -> None:
    num_features = 3
    columns = torch.arange(window * num_features)
    layer = WindowedLayer(
        "x", columns // num_features, columns % num_features, window, stride, before, after, num_features
    )
    positions = layer.num_positions(num_frames)
    if positions < 1:
        return
    generator = torch.Generator().manual_seed(window * 100 + num_frames)
    size = window * num_features + 1
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    projector = root @ root.T
    weights = torch.rand(positions, generator=generator, dtype=torch.float64)
    band, right = normal_equations(projector, layer, num_frames, weights)
    dense = torch.zeros(num_frames * num_features, num_frames * num_features, dtype=torch.float64)
    constant = torch.zeros(num_frames * num_features, dtype=torch.float64)
    for position in range(positions):
        cut = torch.zeros(size - 1, num_frames * num_features, dtype=torch.float64)
        for place in range(window):
            frame = position * stride - before + place
            if 0 <= frame < num_frames:
                for feature in range(num_features):
                    cut[place * num_features + feature, frame * num_features + feature] = 1.0
        dense += weights[position] * cut.T @ projector[:-1, :-1] @ cut
        constant -= weights[position] * cut.T @ projector[:-1, -1]
    assert torch.allclose(torch.from_numpy(right), constant, atol=1e-10)
    unknowns = num_frames * num_features
    for offset in range(band.shape[0]):
        if offset < unknowns:
            below = torch.from_numpy(band[offset, : unknowns - offset].copy())
            assert torch.allclose(below, dense.diagonal(-offset), atol=1e-10)
    assert not dense.tril(-band.shape[0]).any()


class StridedEncoder(nn.Module):
    """A convolution over time, as in Transformer encoders, then symbols."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.front = nn.Conv1d(26, 220, kernel, stride, padding)
        self.output = nn.Linear(220, 29)
        self.front_end, self.alphabet = MFCC_26, Alphabet()
        self.stride = stride

    def output_lengths(self, num_frames: torch.Tensor) -> torch.Tensor:
        kernel, padding = self.front.kernel_size[0], int(self.front.padding[0])
        return (num_frames + 2 * padding - kernel) // self.stride + 1

    def forward(self, features: torch.Tensor, num_frames: torch.Tensor):
        hidden = self.front(features.permute(1, 2, 0)).permute(2, 0, 1)
        return self.output(torch.nn.functional.gelu(hidden)), self.output_lengths(num_frames)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 3, 3), (5, 2, 0), (3, 1, 1)])
def test_strided_convolutions_are_found_and_inverted(kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    model = StridedEncoder(kernel, stride, padding)
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    assert (layer.name, layer.window, layer.stride, layer.before, layer.after) == (
        "front", kernel, stride, padding, padding,
    )  # fmt: skip
    num_frames = layer.stride * 30 + kernel - 2 * padding
    batch = batch_of(num_frames)
    found = run(observe(model, batch))
    assert found.features[0].shape == (num_frames, 26)
    assert (found.features[0] - batch.features[:, 0]).abs().mean() < 1e-2


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = small_deepspeech1().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_windowed_layer(model, 26)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_windows_match_what_the_model_splices() -> None:
    model = small_deepspeech1()
    layer = find_windowed_layer(model, 26)
    assert layer is not None
    assert (layer.window, layer.stride, layer.before, layer.after, layer.capacity) == (5, 1, 2, 2, 104)
    assert layer.lengths(17) == [17]
    assert layer.windows(speech_like(9, 26)).shape == (9, 130)


def test_a_zero_update_and_a_saturated_one_are_told_apart() -> None:
    observation = observe(small_deepspeech1(hidden_size=8), batch_of(20))
    assert "saturated" in str(run(observation).reason)
    for tensor in observation.update.tensors.values():
        tensor.zero_()
    assert "zero" in str(run(observation).reason)


@pytest.mark.parametrize("lengths", [(20, 31), (31, 20), (9, 14, 25, 33)])
def test_a_batch_is_taken_apart_by_its_padding(lengths: tuple[int, ...]) -> None:
    batch = batch_of(*lengths)
    found = run(observe(small_deepspeech1(), batch))
    assert found.unique, found.reason
    by_length = {len(features): features for features in found.features}
    assert sorted(by_length) == sorted(lengths)
    for index, length in enumerate(lengths):
        assert (by_length[length] - batch.utterance_features(index)).abs().mean() < 1e-2


def test_utterances_of_equal_length_mix_and_are_not_passed_off() -> None:
    found = run(observe(small_deepspeech1(), batch_of(20, 20)))
    assert not found.unique
    assert "not told apart" in str(found.reason)


@given(lengths=st.lists(st.integers(4, 20), min_size=1, max_size=3, unique=True))
def test_the_length_scan_equals_solving_for_each_length(lengths: list[int]) -> None:
    """Against the slow way: the least value of the dense equations, one length after the other."""
    layer = find_windowed_layer(small_deepspeech1(hidden_size=4), 26)
    assert layer is not None
    windows = torch.cat([layer.windows(speech_like(length, 26, seed)) for seed, length in enumerate(lengths)]).double()
    basis, _ = row_space(torch.nn.functional.pad(windows, (0, 1), value=1.0))
    projector = projector_on_complement(basis[: sum(lengths)])
    scan = length_scan(projector, layer, 22)
    assert sorted(scan) == list(range(1, 23))
    for length, value in scan.items():
        solution = SpanSolver(basis[: sum(lengths)], layer).solve((length,))
        if solution is None:
            continue
        shown = torch.nn.functional.pad(layer.windows(solution.features), (0, 1), value=1.0)
        slow = float((shown @ projector).square().sum() / layer.num_positions(length))
        assert value == pytest.approx(slow, rel=1e-4, abs=1e-8)
    for length in lengths:
        assert scan[length] < 1e-6
