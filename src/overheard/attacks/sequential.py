"""Speech past the first layer's capacity: frame after frame out of the span that a deeper layer gives away.

An utterance of more windows than the closed form of `span` can take saturates the first layer, yet the next, wider one
still spans one direction for each window while there are fewer than its inputs. Its equations are not linear in the
speech, but each window adds few unknowns to those before it (`frame_decoding`); all frames are then fitted together
(`window_refinement`). The length shows itself by the padding behind the utterance. The utterances of a batch each start
with a padding of their own, and are decoded one by one.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.activated_span import ActivatedSpan, activated_span
from overheard.attacks.first_windows import first_windows
from overheard.attacks.frame_decoding import DecodedFrames, decode_frames, step_problem
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.rank import layer_matrix
from overheard.attacks.repeated_frames import Restored, restore_repeats
from overheard.attacks.window_refinement import Refinement, mean_hessian, refine
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.recognition.recogniser import as_recogniser

NAME = "sequential"


@dataclass(frozen=True)
class SequentialConfig:
    """Settings of the sequential decoder.

    Attributes:
        starts: random guesses of a first window for each utterance, after those from public speech and the mean input.
        tolerance: predicted relative error of the features up to which a solution counts as the only one.
    """

    starts: int = 24
    tolerance: float = 1e-2


def attack(observation: Observation, config: SequentialConfig, *, generator: torch.Generator) -> Reconstruction:
    """Every utterance of the batch from the update of the layer behind the one that sees windows.

    Args:
        observation: all that the attacker sees; public speech gives good first guesses.
        config: its settings.
        generator: of the guesses, and of the equations that single steps use.
    """
    settings = asdict(config)
    layer = find_windowed_layer(observation.model, as_recogniser(observation.model).front_end.num_features)
    if layer is None:
        reason = "no layer of this model sees overlapping windows of its input"
        return Reconstruction(NAME, reason=reason, settings=settings)
    behind = find_pointwise_layer(observation.model, layer)
    if behind is None:
        reason = f"no layer behind {layer.name} is shown its outputs through an activation alone"
        return Reconstruction(NAME, reason=reason, settings=settings)
    span = activated_span(observation, layer, behind)
    if span is None:
        return Reconstruction(NAME, reason=f"the update holds no weight of {behind.name}", settings=settings)
    diagnostics: dict[str, Any] = {
        "layer": behind.name,
        "windowed_layer": layer.name,
        "rank": span.found.rank,
        "rank_margin": span.found.margin,
    }
    failure = _beyond_reach(span, layer, behind.name)
    if failure is not None:
        return Reconstruction(NAME, reason=failure, settings=settings, diagnostics=diagnostics)
    return _decode(observation, config, layer, span, generator, diagnostics)


def _beyond_reach(span: ActivatedSpan, layer: WindowedLayer, name: str) -> str | None:
    """Why decoding cannot be tried, or None."""
    if span.found.rank == 0:
        return f"the update of {name} is zero"
    if span.found.rank >= len(span.found.singular_values):
        return f"past the capacity: the update of {name} has full rank {span.found.rank}, more than its inputs span"
    if layer.before == 0:
        return f"no padding ahead of an utterance marks the first window of {layer.name}"
    unknowns = (layer.window - layer.before) * layer.num_features
    if span.num_equations <= unknowns:
        return (
            f"past the capacity: {name} was shown {span.found.rank} windows, which leaves {span.num_equations} "
            f"equations for the {unknowns} unknowns of the first"
        )
    return None


def _decode(
    observation: Observation,
    config: SequentialConfig,
    layer: WindowedLayer,
    span: ActivatedSpan,
    generator: torch.Generator,
    diagnostics: dict[str, Any],
) -> Reconstruction:
    size = observation.update.protocol.num_utterances
    problem = step_problem(span, layer, generator)
    starts = _first_starts(observation, layer, config.starts * size, generator)

    def more_starts() -> list[Tensor]:
        return [start[-1:].expand(layer.stride, -1).float() for start in starts]

    decoded: list[DecodedFrames] = []
    refined: list[Refinement] = []
    for first in first_windows(problem, span, layer, starts, size):
        # Equal frames are one direction of the span and many positions, so the rank is no bound; twice it is generous.
        windows = span.found.rank if size == 1 else None
        frames = decode_frames(problem, layer, first, 2 * span.found.rank + layer.window, more_starts, windows)
        decoded.append(frames)
        refined.append(_refine_whole(span, layer, frames))
    complete = [one for one, frames in zip(refined, decoded, strict=True) if frames.complete]
    unique = len(complete) == size and max(one.predicted_error for one in complete) <= config.tolerance
    found = tuple(
        one.rows[layer.before : layer.before + len(frames.features)]
        for one, frames in zip(refined, decoded, strict=True)
    )
    restored = restore_repeats(observation, found, layer.window) if unique else Restored(found)
    diagnostics |= {
        "lengths": [len(features) for features in restored.features],
        "complete": [frames.complete for frames in decoded],
        **restored.diagnostics(),
        "refits": [frames.refits for frames in decoded],
        "residuals": [one.residual for one in refined],
        "residuals_of_rounding": [one.expected for one in refined],
        "predicted_errors": [one.predicted_error for one in refined],
        "likely_errors": [one.likely_error for one in refined],
        "iterations": [one.iterations for one in refined],
    }
    return Reconstruction(
        attack=NAME,
        features=restored.features,
        transcripts=(None,) * len(found),
        unique=(unique and restored.reason is None) if found else None,
        reason=_reason(decoded, size, unique) or restored.reason,
        settings=asdict(config),
        diagnostics=diagnostics,
    )


def _reason(decoded: list[DecodedFrames], size: int, unique: bool) -> str | None:
    """Why not all came back; None when all did."""
    if not decoded:
        return "no first window was found: from every guess the residual stayed above that of rounding"
    if len(decoded) < size:
        return f"{size - len(decoded)} of {size} utterances not found: their first windows did not come out"
    lost = [len(frames.features) for frames in decoded if not frames.complete]
    if lost:
        return f"lost before the end, after {', '.join(map(str, lost))} frames"
    return None if unique else "the solution is not determined by the span to the stated tolerance"


def _refine_whole(span: ActivatedSpan, layer: WindowedLayer, found: DecodedFrames) -> Refinement:
    """All frames together, with the padding behind them where it was reached."""
    behind = layer.after if found.complete else 0
    rows = torch.nn.functional.pad(found.features, (0, 0, layer.before, behind))
    windows = rows.unfold(0, layer.window, layer.stride).transpose(1, 2).flatten(1)
    block = mean_hessian(span.single_precision(), windows.float())
    return refine(span, rows, (layer.before, layer.before + len(found.features)), layer, block)


def _first_starts(
    observation: Observation, layer: WindowedLayer, count: int, generator: torch.Generator
) -> list[Float[Tensor, "K F"]]:
    """Guesses of a first window: how public speech starts, then the layer's mean input, then random frames about it."""
    length = layer.window - layer.before
    starts = [speech[:length].float().cpu() for speech in observation.public_speech if len(speech) >= length]
    mean = _mean_frame(observation, layer)
    starts.append(mean.expand(length, -1))
    for _ in range(count):
        noise = torch.randn(1 + length, layer.num_features, generator=generator)
        starts.append(mean * (1 + 0.3 * noise[:1]) + 0.1 * mean.square().mean().sqrt() * noise[1:])
    return starts


def _mean_frame(observation: Observation, layer: WindowedLayer) -> Float[Tensor, " F"]:
    """A weighted mean of the frames: dW'db / |db|^2 is one of the windows, its weights the gradients of the units."""
    matrix = layer_matrix(observation.update, layer.name, observation.model.get_submodule(layer.name))
    if matrix is None or matrix.shape[1] != len(layer.order) + 1 or not bool(matrix[:, -1].any()):
        return torch.zeros(layer.num_features)
    window = matrix[:, :-1][:, layer.order].T @ matrix[:, -1] / matrix[:, -1].square().sum()
    return window.view(layer.window, layer.num_features)[layer.before].float().cpu()
