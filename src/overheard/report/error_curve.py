"""A matching run's way as a picture: the distance it minimised, and the error that it could not see."""

from collections.abc import Sequence
from pathlib import Path

from overheard.audit.curves import CurvePoint


def draw_error_curve(points: Sequence[CurvePoint], folder: Path) -> list[Path]:
    """Draw distance, MAE and relative error over iterations, a line for each restart.

    Args:
        points: of one run, at least one.
        folder: for curve.png and curve.pdf.
    """
    # Matplotlib takes a second to import, which no other command should pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    measures = (
        ("distance", "distance of the updates"),
        ("mae", "MAE of features"),
        ("relative_error", "|error| / |features|"),
    )
    for axis, (name, title) in zip(figure.subplots(1, len(measures)), measures, strict=True):
        for restart in sorted({point.restart for point in points}):
            run = [point for point in points if point.restart == restart]
            values = [getattr(point, name) for point in run]
            axis.plot([point.iteration for point in run], values, marker="o", ms=3, label=f"restart {restart}")
        axis.set_yscale("log")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration")
        axis.spines[["top", "right"]].set_visible(False)
    if len({point.restart for point in points}) > 1:
        figure.axes[0].legend(frameon=False)
    files = [folder / f"curve.{suffix}" for suffix in ("png", "pdf")]
    for file in files:
        figure.savefig(file, dpi=120)
    return files
