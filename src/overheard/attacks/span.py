"""Closed form: speech from the update of a layer that sees overlapping windows of it.

The layer is shown u_p(X), p = 1..P, windows of the unknown features X (T, F), and shares [dW | db] whose row space is
the span of [u_p, 1]. With Pi the projector on the complement of that span, Pi [u_p(X), 1] = 0 for all p is linear in X
and block-banded; it has one solution while P <= (k - s) F. One singular value decomposition gives Pi, one banded
Cholesky factorisation gives X. The number of positions is the rank.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded
from torch import Tensor

from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.rank import layer_matrix, precision_of, rank_of_spectrum
from overheard.attacks.windows import WindowedLayer, find_windowed_layer


@dataclass(frozen=True)
class SpanConfig:
    """Settings of the closed form.

    Attributes:
        neighbours: how far from the rank the number of positions is sought, to either side.
        tolerance: predicted relative error of the features up to which a solution counts as the only one.
    """

    neighbours: int = 1
    tolerance: float = 1e-2


@dataclass(frozen=True)
class SpanSolution:
    """Features that fit a span, and how well they are determined.

    Attributes:
        features: (T, F).
        residual: root mean square of Pi [u_p, 1], relative to that of [u_p, 1].
        predicted_error: root mean square error that this residual can cause along the worst-determined direction,
            relative to the root mean square of the features.
    """

    features: Float[Tensor, "T F"]
    residual: float
    predicted_error: float


def attack(observation: Observation, config: SpanConfig, *, generator: torch.Generator) -> Reconstruction:
    """One utterance from the first layer's update. `generator` is unused: nothing here is random."""
    del generator
    update = observation.update
    settings = asdict(config)
    layer = find_windowed_layer(observation.model, observation.model.front_end.num_features)  # pyright: ignore
    if layer is None:
        reason = "no layer of this model sees overlapping windows of its input"
        return Reconstruction("span", reason=reason, settings=settings)
    matrix = layer_matrix(update, layer.name, observation.model.get_submodule(layer.name))
    if matrix is None or matrix.shape[1] != len(layer.order) + 1:
        reason = f"the update holds no weight and bias of {layer.name}, the layer that sees windows"
        return Reconstruction("span", reason=reason, settings=settings)
    if update.protocol.num_utterances > 1:
        reason = f"the update is of {update.protocol.num_utterances} utterances; the closed form takes one"
        return Reconstruction("span", reason=reason, settings=settings)
    return _single(observation, config, layer, matrix)


def _single(
    observation: Observation, config: SpanConfig, layer: WindowedLayer, matrix: Float[Tensor, "R C"]
) -> Reconstruction:
    # Units that no frame switched on have rows of zeros: they bound the rank and say nothing.
    alive = matrix[(matrix != 0).any(dim=1)]
    basis, values = row_space(torch.cat([alive[:, layer.order], alive[:, -1:]], dim=1))
    found = rank_of_spectrum(values, precision_of(observation.update, layer.name))
    diagnostics = {
        "layer": layer.name,
        "window": layer.window,
        "stride": layer.stride,
        "capacity": layer.capacity,
        "rank": found.rank,
        "rank_margin": found.margin,
        "spectrum": [float(value) for value in values / values[:1]],
    }
    settings = asdict(config)
    if found.rank == 0:
        return Reconstruction("span", reason="the layer's update is zero", settings=settings, diagnostics=diagnostics)
    if found.rank == len(values):
        reason = f"saturated: the update of {layer.name} has full rank {found.rank}, so it spans more than its inputs"
        return Reconstruction("span", reason=reason, settings=settings, diagnostics=diagnostics)
    best: tuple[int, SpanSolution] | None = None
    for positions in _hypotheses(found.rank, layer, len(values), config.neighbours):
        for num_frames in _lengths(layer, positions, observation):
            solution = solve_span(basis[:positions], layer, num_frames)
            if solution is not None and (best is None or solution.predicted_error < best[1].predicted_error):
                best = positions, solution
    if best is None:
        reason = (
            f"past the capacity: the layer was shown at least {found.rank} windows, "
            f"the closed form is determined up to {min(layer.capacity, len(values) - 1)}"
        )
        return Reconstruction("span", reason=reason, settings=settings, diagnostics=diagnostics)
    positions, solution = best
    unique = solution.predicted_error <= config.tolerance
    diagnostics |= {
        "positions": positions,
        "residual": solution.residual,
        "predicted_error": solution.predicted_error,
    }
    return Reconstruction(
        attack="span",
        features=(solution.features,),
        transcripts=(None,),
        unique=unique,
        reason=None if unique else "the solution is not determined by the span to the stated tolerance",
        settings=settings,
        diagnostics=diagnostics,
    )


def row_space(matrix: Float[Tensor, "R C"]) -> tuple[Float[Tensor, "K C"], Float[Tensor, " K"]]:
    """Right singular vectors, one a row, and singular values, largest first; K = min(R, C)."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = torch.linalg.qr(matrix, mode="r").R
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, values


def _hypotheses(rank: int, layer: WindowedLayer, size: int, neighbours: int) -> list[int]:
    """Numbers of positions near the rank at which the closed form is determined."""
    limit = min(layer.capacity, size - 1)
    near = sorted(range(rank - neighbours, rank + neighbours + 1), key=lambda positions: abs(positions - rank))
    return [positions for positions in near if 1 <= positions <= limit]


def _lengths(layer: WindowedLayer, positions: int, observation: Observation) -> list[int]:
    known = observation.prior.num_frames
    return [length for length in layer.lengths(positions) if known is None or length == known[0]]


def solve_span(basis: Float[Tensor, "P C"], layer: WindowedLayer, num_frames: int) -> SpanSolution | None:
    """Least-squares features whose windows lie in a span; None where the equations leave them undetermined.

    Args:
        basis: orthonormal rows that span [u_p, 1], columns sorted by frame, then feature, then the constant.
        layer: how the windows lie.
        num_frames: T.
    """
    positions, size = basis.shape
    projector = torch.eye(size, dtype=basis.dtype) - basis.T @ basis
    band, right = _normal_equations(projector, layer, num_frames, layer.num_positions(num_frames))
    try:
        factor = (cholesky_banded(band, lower=True, check_finite=False), True)
    except LinAlgError:
        return None
    solution = cho_solve_banded(factor, right, check_finite=False)
    features = torch.from_numpy(solution).view(num_frames, layer.num_features)
    windows = torch.nn.functional.pad(layer.windows(features), (0, 1), value=1.0)
    outside = windows - (windows @ basis.T) @ basis
    residual = float(outside.square().mean().sqrt())
    equations = windows.shape[0] * (size - positions)
    noise = float(outside.square().sum() / max(1, equations - features.numel()))
    worst = (noise / _smallest_eigenvalue(factor, len(right))) ** 0.5
    scale = float(features.square().mean().sqrt())
    return SpanSolution(
        features, residual / float(windows.square().mean().sqrt()), worst / max(scale, torch.finfo(torch.float64).tiny)
    )


def _smallest_eigenvalue(factor: tuple[np.ndarray, bool], size: int, steps: int = 4) -> float:
    """By inverse iteration with the Cholesky factor; an upper bound that a few steps bring close."""
    vector = np.random.default_rng(0).standard_normal(size)
    growth = 1.0
    for _ in range(steps):
        vector /= np.linalg.norm(vector)
        vector = cho_solve_banded(factor, vector, check_finite=False)
        growth = float(np.linalg.norm(vector))
    return 1.0 / growth


def _normal_equations(
    projector: Float[Tensor, "C C"], layer: WindowedLayer, num_frames: int, num_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Band (lower form) and right-hand side of sum_p S_p' Pi S_p x = -sum_p S_p' Pi e, S_p cutting window p out of x.

    Frames whose windows reach over no edge share one block row, so each distinct row is built once.
    """
    window, features = layer.window, layer.num_features
    width = window * features
    blocks = projector[:width, :width].reshape(window, features, window, features)
    constants = projector[:width, width].reshape(window, features)
    band = np.zeros((num_frames, features, width))
    right = np.zeros((num_frames, features))
    rows: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    for frame in range(num_frames):
        # Places at which the frame stands within the windows that hold it.
        places = tuple(
            place
            for place in range(window)
            if (position := frame + layer.before - place) % layer.stride == 0
            and 0 <= position // layer.stride < num_positions
        )
        if places not in rows:
            rows[places] = _block_row(blocks, constants, places)
        band[frame], right[frame] = rows[places]
    return band.reshape(-1, width).T, right.reshape(-1)


def _block_row(
    blocks: Float[Tensor, "K F K F"], constants: Float[Tensor, "K F"], places: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """One frame's row of the normal equations: entry [f, m] couples unknown f with the m-th unknown after it."""
    window, features = constants.shape
    row = torch.zeros(features, window, features, dtype=blocks.dtype)
    for place in places:
        row[:, : window - place] += blocks[place, :, place:]
    wide = torch.nn.functional.pad(row.flatten(1), (0, features))  # (F, KF + F)
    skewed = torch.stack([wide[index, index : index + window * features] for index in range(features)])
    right = -sum((constants[place] for place in places), torch.zeros(features, dtype=blocks.dtype))
    return skewed.numpy(), right.numpy()
