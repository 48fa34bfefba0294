"""Two runs' word error rates over the utterances that each has learnt from, in one figure."""

from collections.abc import Sequence
from pathlib import Path

from lhotse import MonoCut

from overheard.errors import InputError
from overheard.metrics.intervals import ratio_difference
from overheard.recognition.run_folder import MODEL, checkpoint_folders, read_state
from overheard.recognition.weights import load_model
from overheard.training.evaluation import utterance_errors
from overheard.training.tracking import METRICS, read_lines

COMPARISON = "comparison"
LATEST = 3
"""Checkpoints whose error rates are averaged: from one to the next the rate of a small corpus moves by points."""


def error_curve(run: Path, start: Path | None = None) -> list[tuple[int, float]]:
    """(utterances learnt from, word error rate) at each measurement of a run, central or federated.

    Args:
        run: the run's folder.
        start: checkpoint of another run whose weights this one started from; None where it started from none. What had
            been learnt from by then counts, and its error rate stands first.

    Raises:
        InputError: nothing was measured there.
    """
    lines = read_lines(run / METRICS)
    heard = {line["step"]: line["utterances"] for line in lines if line["kind"] == "step"}
    measured = [line for line in lines if line["kind"] == "evaluation" and line.get("wer") is not None]
    if not measured:
        raise InputError(str(run), "no measured word error rate", "name a run of overheard train or federate")
    before = [] if start is None else _until(start)
    learnt = before[-1][0] if before else 0
    return [*before[-1:], *((learnt + heard[line["step"]], line["wer"]) for line in measured)]


def _until(checkpoint: Path) -> list[tuple[int, float]]:
    """The curve of the run that a checkpoint is of, up to it."""
    run = checkpoint.parents[1]
    step = int(checkpoint.name.rpartition("-")[2])
    heard = {line["step"]: line["utterances"] for line in read_lines(run / METRICS) if line["kind"] == "step"}
    return [point for point in error_curve(run) if point[0] <= heard[step]]


def checkpoint_of(model: str | None, run: Path) -> Path | None:
    """The checkpoint of a run that a model's name means; None where it means none."""
    named = None if model is None else Path(model).resolve()
    return named if named in [folder.resolve() for folder in checkpoint_folders(run)] else None


def draw_comparison(run: Path, other: Path, names: tuple[str, str], start: Path | None = None) -> list[Path]:
    """Draw both curves as comparison.png and comparison.pdf into RUN, from where they part.

    Args:
        run: the run's folder.
        other: the folder of the one that it is held against.
        names: of the two, in that order.
        start: checkpoint of `other` that `run` started from.

    Returns:
        The files.
    """
    # Matplotlib takes a second to import, which no other command should pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    own = error_curve(run, start)
    others = [point for point in error_curve(other) if start is None or point[0] >= own[0][0]]
    curves = ((own, names[0], "o"), (others, names[1], "s"))
    for curve, name, marker in curves:
        heard, rates = zip(*curve, strict=True)
        axis.plot(heard, [100 * rate for rate in rates], label=name, marker=marker, ms=3)
    axis.set_xlabel("utterances learnt from")
    axis.set_ylabel("word error rate, greedy, %")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    files = [run / f"{COMPARISON}.{suffix}" for suffix in ("png", "pdf")]
    for file in files:
        figure.savefig(file, dpi=120)
    return files


def gap(run: Path, other: Path, start: Path | None = None) -> str:
    """The run's last measurement against the other's last one of no more utterances, as a sentence."""
    heard, rate = error_curve(run, start)[-1]
    curve = error_curve(other)
    others, against = max((point for point in curve if point[0] <= heard), default=curve[0])
    points = 100 * (rate - against)
    return (
        f"WER {100 * rate:.2f} % after {heard} utterances, against {100 * against:.2f} % after {others}: "
        f"{points:+.2f} points"
    )


def late_gap(
    run: Path, other: Path, cuts: Sequence[MonoCut], start: Path | None = None, batch_seconds: float = 60.0
) -> str:
    """The mean word error rate of a run's last checkpoints against the other's, with the interval of their difference.

    Both are measured here, on the same utterances, so that the bootstrap can draw these and not the two runs apart.

    Args:
        run: the run's folder.
        other: the folder of the one that it is held against; of its checkpoints those count that had learnt from no
            more utterances.
        cuts: what to measure on.
        start: checkpoint of `other` that `run` started from.
        batch_seconds: audio in one batch, s.

    Returns:
        A sentence; one that says so where a run has no such checkpoint, or the cuts no words.
    """
    learnt = 0 if start is None else _learnt(start)
    own = checkpoint_folders(run)[-LATEST:]
    most = learnt + max(map(_learnt, own), default=0)
    others = [folder for folder in checkpoint_folders(other) if _learnt(folder) <= most][-LATEST:]
    if not own or not others:
        return "no checkpoints to be compared"
    (first, words), (second, _) = (_mean_edits(folders, cuts, batch_seconds) for folders in (own, others))
    found = ratio_difference(first, second, words)
    if found is None:
        return "no words to be compared on"
    rates = [f"{100 * sum(edits) / sum(words):.2f} %" for edits in (first, second)]
    return (
        f"last {len(own)} checkpoints: WER {rates[0]} on average, against {rates[1]} of {len(others)} after no more "
        f"utterances: {100 * found.value:+.2f} points (95 % {100 * found.low:+.2f} to {100 * found.high:+.2f}, "
        f"{found.count} utterances)"
    )


def _learnt(checkpoint: Path) -> int:
    """Utterances that a checkpoint's own run had learnt from by then."""
    return int(read_state(checkpoint)["progress"]["utterances"])


def _mean_edits(
    folders: Sequence[Path], cuts: Sequence[MonoCut], batch_seconds: float
) -> tuple[list[float], list[int]]:
    """Word edits of each utterance, averaged over checkpoints, and its words."""
    edits: dict[str, float] = {}
    words: dict[str, int] = {}
    for folder in folders:
        for name, _, own in utterance_errors(load_model(folder / MODEL), cuts, batch_seconds):
            edits[name] = edits.get(name, 0.0) + own.word_edits / len(folders)
            words[name] = own.words
    return [edits[name] for name in sorted(words)], [words[name] for name in sorted(words)]
