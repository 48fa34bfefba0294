"""The closed form where gradients differ a millionfold from frame to frame, as a trained model's do.

Against the same equations with all windows alike, whose features are then fitted anew to all that the layer behind
tells, its span found by a full eigendecomposition.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from overheard.attacks import span
from overheard.attacks.entries.rounding import by_sizes
from overheard.attacks.observation import Observation
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.rank import layer_matrix
from overheard.attacks.spans.activated_span import activated_span
from overheard.attacks.spans.span_solver import PRECISE, SpanSolver, row_space
from overheard.attacks.spans.window_refinement import mean_hessian, refine
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.benchmarks.measurement import Measurement, best_of_each, thread_count
from overheard.federation.update import ClientUpdate, Protocol
from overheard.recognition.models import ModelSpec, build_model
from overheard.recognition.recogniser import as_recogniser

WEAKEST = 1e-5
"""Size of the weakest gradient, of the strongest's."""


def measure(threads: int = 1, *, repeats: int = 3, frames: int = 150, units: int = 2048) -> list[Measurement]:
    """Times DeepSpeech 1 with random weights and random gradients, float32, on the CPU.

    Args:
        threads: torch's threads.
        repeats: timed runs of each.
        frames: T.
        units: of DeepSpeech 1.

    Returns:
        Seconds of the closed form against all windows alike, and the features' relative error against what it aims at.
    """
    with thread_count(threads):
        model = build_model(ModelSpec("deepspeech1", {"hidden_size": units}))
        features = _features(frames, as_recogniser(model).front_end.num_features)
        observation = observed(model, features, uneven(frames))
        ours, reference = best_of_each(lambda: _ours(observation), lambda: _alike(observation, frames), repeats=repeats)
        error = _error(_ours(observation), features)
    name = f"closed form, T={frames}, {units} units, uneven gradients"
    return [
        Measurement(f"{name}, against windows alike and the layer behind", ours, reference, "s", 1 / 4),
        Measurement(f"{name}, against the error that is precise enough", error, PRECISE, "relative error", 1.0),
    ]


def uneven(num_windows: int) -> Float[Tensor, " P"]:
    """Sizes of gradients in random order, from the weakest to 1 by equal factors."""
    order = torch.randperm(num_windows, generator=torch.Generator().manual_seed(0))
    return (WEAKEST ** torch.linspace(1, 0, num_windows, dtype=torch.float64))[order]


def observed(model: nn.Module, features: Float[Tensor, "T F"], sizes: Float[Tensor, " P"]) -> Observation:
    """The first two layers' gradient, float32, for random gradients of these sizes behind them, one a window."""
    layer = find_windowed_layer(model, features.shape[1])
    behind = None if layer is None else find_pointwise_layer(model, layer)
    if layer is None or behind is None:
        raise ValueError("the model has no layer that sees windows, or none behind it that is shown its outputs")
    weight, bias = (model.get_parameter(f"{layer.name}.{kind}").detach().double() for kind in ("weight", "bias"))
    windows = layer.windows(features.double())
    activated = behind.activation(windows @ weight[:, layer.order].T + bias)[0]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, inputs in ((layer.name, windows[:, torch.argsort(layer.order)]), (behind.name, activated)):
        rows = len(model.get_parameter(f"{name}.weight"))
        gradients = sizes[:, None] * torch.randn(len(windows), rows, generator=generator, dtype=torch.float64)
        tensors[f"{name}.weight"] = (gradients.T @ inputs).float()
        tensors[f"{name}.bias"] = gradients.sum(dim=0).float()
    return Observation(model, ClientUpdate(tensors, Protocol()))


def _features(frames: int, num_features: int) -> Float[Tensor, "T F"]:
    """Smooth over time, as speech is."""
    noise = torch.randn(frames + 4, num_features, generator=torch.Generator().manual_seed(1))
    return noise.unfold(0, 5, 1).mean(dim=2) * torch.linspace(20.0, 1.0, num_features)


def _ours(observation: Observation) -> Float[Tensor, "T F"]:
    return span.attack(observation, span.SpanConfig(), generator=torch.Generator()).features[0]


def _alike(observation: Observation, num_windows: int) -> Float[Tensor, "T F"]:
    layer = _windowed(observation)
    behind = find_pointwise_layer(observation.model, layer)
    matrix = layer_matrix(observation.update, layer.name, observation.model.get_submodule(layer.name))
    if behind is None or matrix is None:
        raise ValueError("the update holds no layer that sees windows, or none behind it")
    matrix = torch.cat([matrix[:, layer.order], matrix[:, -1:]], dim=1)
    scaled, scales = by_sizes(matrix)
    # Entries alike first: their likely error tells that it takes the other.
    solutions = [
        SpanSolver(row_space(rows)[0][:num_windows], layer, columns).solve(layer.lengths(num_windows))
        for rows, columns in ((matrix, None), (scaled, scales))
    ]
    whole = activated_span(observation, layer, behind)
    if solutions[-1] is None or whole is None:
        raise ValueError("the update does not determine the features")
    rows = functional.pad(solutions[-1].features, (0, 0, layer.before, layer.after))
    last = len(rows) - layer.after
    block = mean_hessian(whole.single_precision(), layer.windows(solutions[-1].features).float())
    return refine(whole, rows, (layer.before, last), layer, block).rows[layer.before : last]


def _windowed(observation: Observation) -> WindowedLayer:
    found = find_windowed_layer(observation.model, as_recogniser(observation.model).front_end.num_features)
    if found is None:
        raise ValueError("the model has no layer that sees windows")
    return found


def _error(found: Float[Tensor, "T F"], features: Float[Tensor, "T F"]) -> float:
    return float((found - features).square().mean().sqrt() / features.square().mean().sqrt())
