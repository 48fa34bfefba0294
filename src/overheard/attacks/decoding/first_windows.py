"""The window at one end of an utterance: all its frames but the padding are unknown at once.

Every utterance of the batch is a solution, and which of them Levenberg-Marquardt comes to depends on the guess alone;
a few utterances draw most guesses to themselves. A try is cheap, so that many are made: from both ends of the
utterances (`edges`), about the layer's mean input, and, once an utterance is known, about its own ends, moved by how
its frames differ among themselves: others of the batch were recorded alike.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.edges import Edge
from overheard.attacks.decoding.frame_decoding import is_zero, same_frames
from overheard.attacks.decoding.window_fit import ABOVE_ROUNDING, WRONG, Fit
from overheard.attacks.observation import Observation
from overheard.attacks.rank import layer_matrix
from overheard.attacks.windows import WindowedLayer

NEAR = 1e-2
"""Distance of a fit in float32 from a known solution, relative to its size, at which it is taken to be that one."""

SLOW = 0.1
"""The same of a fit that has not come to rest: near silence steps are slow."""

SIZES = (0.2, 0.4, 0.7, 1.4)
"""By how much of the difference of two frames a guess is moved."""


def first_window(
    edge: Edge, start: Float[Tensor, "K F"], known: Sequence[Float[Tensor, "K F"]]
) -> Float[Tensor, "K F"] | None:
    """Frames of a first window that is none of the known ones; None where this guess leads to none.

    Args:
        edge: from which end of an utterance windows are read.
        start: the guess.
        known: first windows at this edge that were found before.
    """
    padding = torch.zeros(edge.layer.before, edge.layer.num_features)
    fit = edge.firsts.newest(padding, edge.unknown)(start.flatten().float())
    frames = fit.unknowns.view(-1, edge.layer.num_features)
    if _distance(frames, known) <= (NEAR if fit.accepted else SLOW):
        return None
    polished = _polished(edge, fit)
    if polished is None or any(same_frames(polished, other.to(polished)) for other in known):
        return None
    # Zeros ahead of the first frame: more padding than this edge has, so it belongs to another.
    return None if edge.backwards and edge.layer.stride > 1 and is_zero(polished[:1], polished) else polished


def _distance(frames: Float[Tensor, "K F"], known: Sequence[Float[Tensor, "K F"]]) -> float:
    return min((float((frames - other.to(frames)).norm() / other.norm()) for other in known), default=float("inf"))


def _polished(edge: Edge, fit: Fit) -> Float[Tensor, "K F"] | None:
    """A first window in float64, in float32 again; None where it does not lie in the span.

    What a slow start leaves open in float32 would mislead every later window.
    """
    if fit.residual > WRONG * fit.size:
        return None
    layer = edge.layer
    rows = torch.nn.functional.pad(fit.unknowns.view(-1, layer.num_features), (0, 0, layer.before, 0))
    polished = edge.reader.polished(rows, (layer.before, len(rows)), ended=False)
    return polished.rows[layer.before :].to(rows) if float(polished.left.max()) <= ABOVE_ROUNDING else None


def first_guesses(
    edge: Edge,
    public_speech: Sequence[Float[Tensor, "_ F"]],
    mean: Float[Tensor, " F"],
    known: Sequence[Float[Tensor, "_ F"]],
    generator: torch.Generator,
) -> Iterator[Float[Tensor, "K F"]]:
    """Guesses of a first window without end.

    First how public speech begins, then the mean input; after that random ones, every second of them from what is
    known by then.

    Args:
        edge: from which end of an utterance windows are read.
        public_speech: (T_i, F) of the attacker's own.
        mean: of the layer's inputs, a frame.
        known: (T_i, F) of the utterances found so far; read again for each guess.
        generator: of what is random.
    """
    for speech in public_speech:
        if len(speech) >= edge.unknown:
            yield edge.first(speech.float().cpu())
    yield mean.expand(edge.unknown, -1)
    while True:
        yield about_mean(mean, edge.unknown, generator)
        usable = [frames for frames in known if len(frames) > edge.unknown]
        if usable:
            yield _about_known(edge, usable, generator)


def about_mean(mean: Float[Tensor, " F"], count: int, generator: torch.Generator) -> Float[Tensor, "K F"]:
    """Random frames about one frame."""
    noise = torch.randn(1 + count, len(mean), generator=generator)
    return mean * (1 + 0.3 * noise[:1]) + 0.1 * mean.square().mean().sqrt() * noise[1:]


def _about_known(edge: Edge, known: Sequence[Float[Tensor, "_ F"]], generator: torch.Generator) -> Float[Tensor, "K F"]:
    """The mean of a known first window, moved as one frame of the batch differs from another, and as frames move."""

    def drawn(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    one = known[drawn(len(known))].float()
    frames = torch.cat([each.float() for each in known])
    size = SIZES[drawn(len(SIZES))]
    place = drawn(len(one) - edge.unknown + 1)
    passage = one[place : place + edge.unknown]
    share = float(torch.rand((), generator=generator))
    moved = size * (frames[drawn(len(frames))] - frames[drawn(len(frames))])
    return edge.first(one).mean(dim=0) + moved + share * (passage - passage.mean(dim=0))


def mean_frame(observation: Observation, layer: WindowedLayer) -> Float[Tensor, " F"]:
    """A weighted mean of the frames: dW'db / |db|^2 is one of the windows, its weights the gradients of the units."""
    matrix = layer_matrix(observation.update, layer.name, observation.model.get_submodule(layer.name))
    if matrix is None or matrix.shape[1] != len(layer.order) + 1 or not bool(matrix[:, -1].any()):
        return torch.zeros(layer.num_features)
    window = matrix[:, :-1][:, layer.order].T @ matrix[:, -1] / matrix[:, -1].square().sum()
    return window.view(layer.window, layer.num_features)[layer.before].float().cpu()
