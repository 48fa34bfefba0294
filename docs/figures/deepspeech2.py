"""Draw the steps of the attack on DeepSpeech 2 from one real utterance into docs/images/deepspeech2-*.png.

python docs/figures/deepspeech2.py CORPUS UTTERANCE
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from overheard.attacks import sparse_frames
from overheard.attacks.active_units import decide_active
from overheard.attacks.conv_features import solve_features, start_features
from overheard.attacks.frame_order import Timeline, Way, order_frames
from overheard.attacks.joint_frames import fit_frames
from overheard.attacks.line_up import line_up
from overheard.attacks.rank import layer_matrix, precision_of
from overheard.attacks.row_span import find_row_span
from overheard.attacks.sparse_rays import make_cone, zeros_of
from overheard.attacks.trajectory import Direction
from overheard.audit.steps import make_batch, share
from overheard.federation.client import ClientSettings
from overheard.recognition.deepspeech2 import DeepSpeech2, DeepSpeech2Config
from overheard.speech.corpus import Selection, load_corpus, load_utterance, select

IMAGES = Path(__file__).resolve().parents[1] / "images"
LAYER = sparse_frames.LAYER


def main(corpus: Path, utterance: str) -> None:
    """Follow the attack step by step and keep what each one sees."""
    model = DeepSpeech2(DeepSpeech2Config(hidden_size=256, num_layers=3)).eval()
    [cut], _ = select(load_corpus(corpus), Selection(utterances=(utterance,)))
    batch, truth = make_batch(model, [load_utterance(cut)])
    update = share(model, batch, ClientSettings(), "", "")
    config, generator = sparse_frames.SparseFramesConfig(), torch.Generator().manual_seed(0)

    matrix, precision = layer_matrix(update, LAYER, model.recurrences[0]), precision_of(update, LAYER)
    assert matrix is not None
    span = find_row_span(matrix, precision, generator)
    basis, found = span.basis, span.rank
    draw_rank(found.singular_values, found.rank)

    ways = sparse_frames._ways(model, update, span)
    cone = make_cone(basis, config.zero_share, span.blur)
    timeline = order_frames(basis, cone, ways, config.state_tolerance, generator)
    assert isinstance(timeline, Timeline)
    fitted = fit_frames(matrix / span.row_noise[:, None], basis, timeline, ways)
    timeline = replace(timeline, coordinates=fitted.coordinates)
    draw_zeros(basis, zeros_of(cone, timeline.coordinates))
    draw_order(timeline.coordinates, [misfits(way.direction, basis, rows) for way, rows in directed(ways, timeline)])

    shape = (model.config.channels, model.config.num_frequencies, found.rank)
    units, gradients = sparse_frames._frames_and_gradients(model, matrix, basis, timeline.coordinates, shape)
    bias = update.gradient("convolutions.1.bias")
    decided = decide_active(units, fitted.noise.T.reshape(shape), gradients, bias, model.config.clip)
    draw_active(units, decided.active)

    true = truth.utterances[0].features
    utterances = line_up(model.config, (len(true),), true.device)
    evidence = sparse_frames._evidence(model, update, units, gradients, decided, utterances)
    start = start_features(evidence, len(true), true.shape[1])
    draw_features(true, start.float(), solve_features(evidence, start, config.most_steps, config.tolerance).features)


def draw_rank(values: torch.Tensor, rank: int) -> None:
    """Singular values of dW_ih, its rows divided by their noise, and where they fall off."""
    figure, axes = canvas(4.5, 2.6)
    axes.semilogy(range(1, len(values) + 1), values / values[0], ".", markersize=3)
    axes.axvline(rank + 0.5, color="tab:red", linewidth=1, label=f"rank {rank} = output frames")
    axes.set(xlabel="singular value of dW_ih", ylabel="relative to the largest", ylim=(1e-10, 2), xlim=(0, 3 * rank))
    axes.legend(frameon=False)
    save(figure, "rank")


def draw_zeros(basis: torch.Tensor, zeros: torch.Tensor) -> None:
    """Zeros of the frames found, beside those that a ray of the cone has in general."""
    figure, axes = canvas(4.5, 2.6)
    axes.hist(zeros.tolist(), bins=20, label="frames")
    axes.axvline(len(basis) - 1, color="tab:red", linewidth=1, label="any other extreme ray")
    axes.set(xlabel=f"exact zeros among {basis.shape[1]} units", ylabel="frames", xlim=(0, basis.shape[1]))
    axes.legend(frameon=False)
    save(figure, "zeros")


def directed(ways: tuple[Way, Way], timeline: Timeline) -> tuple[tuple[Way, torch.Tensor], ...]:
    """Frames as each direction heard them."""
    return (ways[0], timeline.coordinates), (ways[1], timeline.coordinates.flip(0))


def misfits(direction: Direction, basis: torch.Tensor, rows: torch.Tensor) -> list[float]:
    """Part of the state behind each frame outside the span of states that were carried on."""
    state, parts = direction.start(), []
    for row in rows:
        state = direction.step(row @ basis @ direction.into_gates.T, state)
        parts.append(float(direction.outside_part(state).norm()))
    return parts


def draw_order(coordinates: torch.Tensor, parts: list[list[float]]) -> None:
    """Likeness of frames in order, and what the chain of states leaves of each."""
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    ordered = torch.nn.functional.normalize(coordinates, dim=1)
    axes = figure.add_subplot(1, 2, 1)
    axes.imshow((ordered @ ordered.T).abs().sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
    axes.set_title("likeness of frames", fontsize=10)
    axes.set(xlabel="frame", ylabel="frame")
    axes = figure.add_subplot(1, 2, 2)
    for each, label in zip(parts, ("forward", "backward"), strict=True):
        axes.semilogy(range(1, len(each) + 1), each, ".", markersize=4, label=label)
    axes.set_title("state outside the span", fontsize=10)
    axes.set(xlabel="steps from the end that it starts at", ylim=(1e-9, 1))
    axes.legend(frameon=False, fontsize=8)
    save(figure, "order")


def draw_active(units: torch.Tensor, active: torch.Tensor) -> None:
    """Sizes of the units taken for active and for zero."""
    figure, axes = canvas(4.5, 2.6)
    sizes = units.abs().clamp(min=1e-12).log10()
    edges = torch.linspace(-10, 1.5, 60).tolist()
    axes.hist([sizes[active].tolist(), sizes[~active].tolist()], edges, label=["active", "zero"], stacked=True)
    axes.set(xlabel="log10 |unit of H|, rounding included", ylabel="units")
    axes.legend(frameon=False)
    save(figure, "active")


def draw_features(true: torch.Tensor, start: torch.Tensor, found: torch.Tensor) -> None:
    """Features, true and recovered, and the errors of the convex start and at the end."""
    figure = Figure(figsize=(8.5, 2.6), layout="constrained")
    scale = float(true.square().mean().sqrt())
    left = [((each - true).abs() / scale).clamp(min=1e-8).log10() for each in (start, found)]
    spoken = (float(true.min()), float(true.max()))
    images = (
        (true, "true", spoken),
        (found, "recovered", spoken),
        (left[0], "log10 error, convex start", (-6, 0)),
        (left[1], "log10 error, recovered", (-6, 0)),
    )
    for place, (features, title, (low, high)) in enumerate(images, start=1):
        axes = figure.add_subplot(1, 4, place)
        drawn = axes.imshow(features.T.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="frame", ylabel="bin" if place == 1 else "")
    figure.colorbar(drawn)
    save(figure, "features")


def canvas(width: float, height: float) -> tuple:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, name: str) -> None:
    """Write one of the images."""
    figure.savefig(IMAGES / f"deepspeech2-{name}.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
