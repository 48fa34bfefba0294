"""How near a matching run came to the truth, iteration by iteration: scored afterwards, from the iterates it saved."""

from dataclasses import dataclass
from pathlib import Path

from overheard.attacks.observation import load_reconstruction
from overheard.errors import InputError
from overheard.metrics.features import match_utterances, score_features
from overheard.metrics.truth import Truth


@dataclass(frozen=True)
class CurvePoint:
    """One saved iterate.

    Attributes:
        restart: counted from 0.
        iteration: of the restart.
        cpu_seconds: of the restart, s.
        distance: between updates, all that the attacker saw.
        mae: mean absolute error of the features, mean over utterances.
        relative_error: norm of the features' error over that of the features, all utterances together.
    """

    restart: int
    iteration: int
    cpu_seconds: float
    distance: float
    mae: float
    relative_error: float


def error_curve(folder: Path, truth: Truth) -> list[CurvePoint]:
    """Score every iterate that a run with `iterates` set has left in a folder, in the order of the run.

    Raises:
        InputError: no iterates there.
    """
    paths = sorted(folder.glob("iterate-*.safetensors"))
    if not paths:
        raise InputError(str(folder), "no iterates", "name the folder of a matching run's setting `iterates`")
    return [_point(path, truth) for path in paths]


def _point(path: Path, truth: Truth) -> CurvePoint:
    found = load_reconstruction(path)
    said = [utterance.features for utterance in truth.utterances]
    pairs = match_utterances(found.features, tuple(said))
    if len(pairs) < len(said):
        raise InputError(str(path), f"{len(pairs)} utterances for {len(said)} true ones", "name the truth of this run")
    scores = [score_features(found.features[pairs[index]], features) for index, features in enumerate(said)]
    energies = [float(features.double().square().sum()) for features in said]
    # An SNR of None is an error of exactly zero.
    noise = sum(
        energy / 10 ** (score.snr_db / 10) if score.snr_db is not None else 0.0
        for energy, score in zip(energies, scores, strict=True)
    )
    row = found.diagnostics
    return CurvePoint(
        restart=row["restart"],
        iteration=row["iteration"],
        cpu_seconds=row["cpu_seconds"],
        distance=row["distance"],
        mae=sum(score.mae for score in scores) / len(scores),
        relative_error=(noise / sum(energies)) ** 0.5,
    )
