"""Two runs' word error rates over the utterances that each has learnt from, in one figure."""

from pathlib import Path

from overheard.errors import InputError
from overheard.training.tracking import METRICS, read_lines

COMPARISON = "comparison"


def error_curve(run: Path) -> list[tuple[int, float]]:
    """(utterances learnt from, word error rate) at each measurement of a run, central or federated.

    Raises:
        InputError: nothing was measured there.
    """
    lines = read_lines(run / METRICS)
    heard = {line["step"]: line["utterances"] for line in lines if line["kind"] == "step"}
    measured = [line for line in lines if line["kind"] == "evaluation" and line.get("wer") is not None]
    if not measured:
        raise InputError(str(run), "no measured word error rate", "name a run of overheard train or federate")
    return [(heard[line["step"]], line["wer"]) for line in measured]


def draw_comparison(run: Path, other: Path, names: tuple[str, str]) -> list[Path]:
    """Draw both curves as comparison.png and comparison.pdf into RUN.

    Args:
        run: the run's folder.
        other: the folder of the one that it is held against.
        names: of the two, in that order.

    Returns:
        The files.
    """
    # Matplotlib takes a second to import, which no other command should pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for folder, name, marker in ((run, names[0], "o"), (other, names[1], "s")):
        heard, rates = zip(*error_curve(folder), strict=True)
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


def gap(run: Path, other: Path) -> str:
    """What the last measurements of the two say, as a sentence."""
    (heard, rate), (others, against) = error_curve(run)[-1], error_curve(other)[-1]
    points = 100 * (rate - against)
    return (
        f"WER {100 * rate:.2f} % after {heard} utterances, against {100 * against:.2f} % after {others}: "
        f"{points:+.2f} points"
    )
