"""Speech past the first layer's capacity: frame after frame out of the span that a deeper layer gives away.

An utterance of more windows than the closed form of `span` can take saturates the first layer, yet the next, wider one
still spans one direction for each window while there are fewer than its inputs. Its equations are not linear in the
speech, but each window adds few unknowns to those before it (`frame_decoding`); all frames are then fitted together
(`window_refinement`). The length shows itself by the padding behind the utterance. The utterances of a batch each have
padding of their own at both ends (`edges`), and are decoded one by one, from the end that shows first. Where that layer
has few equations left, the states of a recurrent layer behind it give more (`state_span`): to first windows, and
to all where it is saturated too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.edges import Edge, edges_of, known_firsts
from overheard.attacks.decoding.first_windows import about_mean, first_guesses, first_window, mean_frame
from overheard.attacks.decoding.frame_decoding import DecodedFrames, decode_frames, same_frames
from overheard.attacks.decoding.layer_reader import LayerReader
from overheard.attacks.decoding.lost_windows import recounted
from overheard.attacks.observation import Observation, Reconstruction, errors_of
from overheard.attacks.pointwise import find_pointwise_layer
from overheard.attacks.repeated_frames import Restored, restore_repeats
from overheard.attacks.spans.activated_span import ActivatedSpan, activated_span
from overheard.attacks.spans.input_span import InputSpan
from overheard.attacks.spans.state_span import StateSpans, state_spans
from overheard.attacks.spans.window_refinement import Refinement
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.recognition.recogniser import as_recogniser

NAME = "sequential"

ENOUGH = 2.75
"""Equations for each unknown of a window from which on most guesses of it lead somewhere."""
TOLD = 2.0
"""Margin of a rank below which it is a guess."""
FAR = 2
"""Windows that a first window has to have led over to be taken for the right one."""

WORSE = 1.05
"""Ratio of excesses up to which another number of frames, which windows about the lost ones fit better, is no worse on
the whole: those that are lost leave as much with the right number."""
MORE_STARTS = 24
"""Random frames that are tried where a decoder's own guesses of the next one fail."""


@dataclass(frozen=True)
class SequentialConfig:
    """Settings of the sequential decoder.

    Attributes:
        guesses: of a first window, at most, for each utterance of the batch.
        tolerance: predicted relative error of the features up to which a solution counts as the only one.
    """

    guesses: int = 96
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
    if span.found.rank == 0:
        return Reconstruction(NAME, reason=f"the update of {behind.name} is zero", settings=settings)
    later, states = _enough(observation, layer, span, generator)
    name, read = (behind.name, span) if later is not None or states is None else (states.name, states.forwards)
    diagnostics: dict[str, Any] = {
        "layer": name,
        "layer_of_first_windows": behind.name if states is None else states.name,
        "windowed_layer": layer.name,
        "rank": read.found.rank,
        "rank_margin": read.found.margin,
    }
    failure = _beyond_reach(read, span if states is None else states.forwards, layer, name)
    if failure is not None:
        return Reconstruction(NAME, reason=failure, settings=settings, diagnostics=diagnostics)
    edges = edges_of(later, layer, generator, states)
    return _decode(observation, config, edges, generator, diagnostics)


def _enough(
    observation: Observation, layer: WindowedLayer, span: ActivatedSpan, generator: torch.Generator
) -> tuple[ActivatedSpan | None, StateSpans | None]:
    """What later windows and first windows are read off beside each other.

    First windows want states, where they tell how many there are, unless the layer behind has equations enough; later
    ones want that layer, whose equations are linear but for its activation, unless it is saturated or nearly so.
    """
    if span.num_moving >= ENOUGH * layer.first_unknowns:
        return span, None
    states = state_spans(observation, layer, generator)
    if states is None or states.margin < TOLD:
        return span, None
    windows = max(span.found.rank, states.num_positions(observation.update.protocol.num_utterances))
    enough = span.seen - windows >= ENOUGH * layer.stride * layer.num_features
    return (span if enough and windows < len(span.found.singular_values) else None), states


def _beyond_reach(span: InputSpan, firsts: InputSpan, layer: WindowedLayer, name: str) -> str | None:
    """Why decoding cannot be tried, or None.

    Args:
        span: what later windows are read off.
        firsts: what first windows are.
        layer: the windowed layer.
        name: of the layer that gives the span away.
    """
    if span.found.rank >= min(len(span.found.singular_values), span.seen):
        return f"past the capacity: the update of {name} has full rank {span.found.rank}, more than its inputs span"
    if layer.before == 0:
        return f"no padding ahead of an utterance marks the first window of {layer.name}"
    if firsts.num_moving <= layer.first_unknowns:
        return (
            f"past the capacity: {name} was shown {span.found.rank} windows, which leaves {firsts.num_moving} "
            f"equations for the {layer.first_unknowns} unknowns of the first"
        )
    return None


def _decode(
    observation: Observation,
    config: SequentialConfig,
    edges: list[Edge],
    generator: torch.Generator,
    diagnostics: dict[str, Any],
) -> Reconstruction:
    size = observation.update.protocol.num_utterances
    found, guesses = _find_utterances(observation, config, edges, generator)
    decoded, refined = [each.decoded for each in found], [each.refined for each in found]
    complete = [one for one, frames in zip(refined, decoded, strict=True) if frames.complete]
    unique = len(complete) == size and max(one.predicted_error for one in complete) <= config.tolerance
    unique = unique and all(each.counted for each in found)
    features = tuple(each.features for each in found)
    restored = restore_repeats(observation, features, edges[0].layer.window) if unique else Restored(features)
    diagnostics |= {
        "lengths": [len(features) for features in restored.features],
        "complete": [frames.complete for frames in decoded],
        "backwards": [each.edge.backwards for each in found],
        "guesses": guesses,
        **restored.diagnostics(),
        "refits": [frames.refits for frames in decoded],
        "residuals": [one.residual for one in refined],
        "residuals_over_rounding": [one.excess for one in refined],
        "predicted_errors": [one.predicted_error for one in refined],
        "likely_errors": [one.likely_error for one in refined],
        "iterations": [one.iterations for one in refined],
    }
    return Reconstruction(
        attack=NAME,
        features=restored.features,
        transcripts=(None,) * len(features),
        unique=(unique and restored.reason is None) if found else None,
        reason=_reason(decoded, size, unique) or restored.reason,
        settings=asdict(config),
        diagnostics=diagnostics,
        errors=errors_of(restored.features, [each.errors for each in found]),
    )


@dataclass(frozen=True)
class _Utterance:
    """One utterance, as it came from one edge."""

    edge: Edge
    decoded: DecodedFrames
    refined: Refinement
    counted: bool = True
    """Whether the number of frames is told wherever the span lacks windows."""

    @property
    def features(self) -> Float[Tensor, "T F"]:
        before = self.edge.layer.before
        return self.edge.turned(self.refined.rows[before : before + len(self.decoded.features)])

    @property
    def errors(self) -> Float[Tensor, "D T F"]:
        """Draws of the error of `features`."""
        return torch.stack([self.edge.turned(each) for each in self.refined.errors])


def _counted(found: _Utterance, size: int) -> _Utterance:
    """An utterance that is alone, with another number of frames where windows are lacking, if that fits better."""
    reader = found.edge.reader
    if size > 1 or not found.decoded.complete or reader.clear or not isinstance(reader, LayerReader):
        return found
    again = recounted(reader, found.refined.rows, found.refined.left)
    if len(again.rows) == len(found.refined.rows):
        return replace(found, counted=again.certain)
    features = again.rows[reader.layer.before : len(again.rows) - reader.layer.after]
    decoded = replace(found.decoded, features=features.double())
    refined = _refine_whole(found.edge, decoded)
    if refined.excess > WORSE * found.refined.excess:
        return replace(found, counted=False)
    once_more = recounted(reader, refined.rows, refined.left)
    certain = once_more.certain and len(once_more.rows) == len(again.rows)
    return _Utterance(found.edge, decoded, refined, certain)


def _lost_from_all(edges: list[Edge], lost: list[_Utterance]) -> bool:
    """Whether an utterance that is alone was lost from every edge; first windows that fit by chance do not lead far."""
    far = {each.edge.backwards for each in lost if len(each.features) > FAR * each.edge.layer.window}
    return far >= {edge.backwards for edge in edges}


def _find_utterances(
    observation: Observation,
    config: SequentialConfig,
    edges: list[Edge],
    generator: torch.Generator,
) -> tuple[list[_Utterance], int]:
    """Utterances, whole ones first, at most as many as the batch has; and how many guesses it took.

    Each guess is of the first window at one edge, the edges taking turns. What is lost on its way from one edge may
    come from the other.
    """
    size = observation.update.protocol.num_utterances
    layer = edges[0].layer
    mean = mean_frame(observation, layer)
    whole: list[_Utterance] = []
    lost: list[_Utterance] = []
    known: list[Tensor] = []
    guesses = [first_guesses(edge, observation.public_speech, mean, known, generator) for edge in edges]
    frames = [mean[None], *(about_mean(mean, layer.window - layer.before, generator)[-1:] for _ in range(MORE_STARTS))]
    frames = [each.expand(layer.stride, -1) for each in frames]
    tried = 0
    for edge, own in cycle(zip(edges, guesses, strict=True)):
        if len(whole) == size or tried == config.guesses * size or (size == 1 and _lost_from_all(edges, lost)):
            break
        tried += 1
        firsts = known_firsts(edge, known) + [edge.first(each.features) for each in lost if each.edge is edge]
        first = first_window(edge, next(own), firsts)
        if first is None:
            continue
        # Equal frames are one direction of the span and many positions, so the rank is no bound; twice it is generous.
        windows = edge.reader.rank if size == 1 and edge.reader.hides_repeats else None
        decoded = decode_frames(edge.reader, first, 2 * edge.reader.rank + layer.window, lambda: frames, windows)
        if not decoded.complete and len(decoded.features) == edge.unknown:
            continue  # it leads nowhere, as those do that fit by chance
        each = _counted(_Utterance(edge, decoded, _refine_whole(edge, decoded)), size)
        if any(_equal(each.features, other) for other in known):
            continue
        if decoded.complete:
            whole.append(each)
            known.append(each.features)
        else:
            lost.append(each)
    return (whole + _longest_first(lost))[:size], tried


def _equal(one: Float[Tensor, "T F"], other: Float[Tensor, "S F"]) -> bool:
    """Whether an utterance has come back again: near silence its first window may come out a little different."""
    return one.shape == other.shape and same_frames(one, other)


def _longest_first(utterances: Sequence[_Utterance]) -> list[_Utterance]:
    return sorted(utterances, key=lambda each: len(each.decoded.features), reverse=True)


def _refine_whole(edge: Edge, found: DecodedFrames) -> Refinement:
    """All frames together, with the padding behind them where it was reached."""
    layer = edge.layer
    rows = torch.nn.functional.pad(found.features, (0, 0, layer.before, layer.after if found.complete else 0))
    return edge.reader.polished(rows, (layer.before, layer.before + len(found.features)), found.complete)


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
