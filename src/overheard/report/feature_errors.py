"""Feature error against duration, a point for each attack, drawn on any axes: the page's or a paper's."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from overheard.audit.records import AuditRecord
from overheard.metrics.alignment import CLOSE
from overheard.report.figures import decades
from overheard.report.leakage import MARKERS, Ink
from overheard.report.overview import PAGE, SMALLEST
from overheard.report.summary import grouped
from overheard.report.svg import axes_within, drawing, legend_layout, render
from overheard.report.titles import Titles

POINTS = 1500
"""More are thinned out evenly."""
THRESHOLD = f"recovered below {CLOSE:g}"


def measured(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """Records that have a point: those with an error and a duration."""
    return [record for record in records if record.feature_mae is not None and record.seconds_audio is not None]


def error_plot(name: str, records: Sequence[AuditRecord], titles: Titles) -> Markup | None:
    """The page's picture; None where nothing was recovered.

    Args:
        name: unique in the page.
        records: of any models.
        titles: of their models.
    """
    points = measured(records)
    if not any(record.recovered for record in points):
        return None
    drawn = _thinned(points)
    told = f"{len(drawn):,} of " * (len(drawn) < len(points)) + f"{len(points):,} attacks"
    labels = {_label(record, titles) for record in drawn}
    columns, above = legend_layout([*labels, THRESHOLD], 400)
    with drawing(name, 400, 235 + above) as figure:
        axes = axes_within(figure, left=58, bottom=40, right=8, top=above)
        draw_errors(axes, points, PAGE, titles, 26.0)
        figure.legend(loc="upper left", ncols=columns, handletextpad=0.4, columnspacing=1.2)
        return render(figure, f"Feature error against duration of {told}; the text gives counts and medians.")


def draw_errors(axes: Axes, points: Sequence[AuditRecord], ink: Ink, titles: Titles, size: float) -> None:
    """Points of `measured`, a colour for each model, hollow where not recovered; `size` in square pt."""
    for index, group in enumerate(grouped(_thinned(points), lambda record: record.model).values()):
        colour = ink.series[index % len(ink.series)]
        # Filled ones first in the legend.
        for whole, chosen in sorted(grouped(group, lambda record: record.recovered).items(), reverse=True):
            axes.scatter(
                [record.seconds_audio or 0.0 for record in chosen],
                [max(record.feature_mae or 0.0, SMALLEST) for record in chosen],
                s=size,
                marker=MARKERS[index % len(MARKERS)],
                facecolor=colour if whole else "none",
                edgecolor=colour,
                linewidth=0.8,
                alpha=0.8,
                label=_label(chosen[0], titles),
            )
    decades(axes)
    axes.axhline(CLOSE, color=ink.text, linewidth=0.8, linestyle="--", label=THRESHOLD)
    axes.grid(axis="y", color=ink.grid)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("duration of the utterance (s)")
    axes.set_ylabel("mean absolute error")


def _label(record: AuditRecord, titles: Titles) -> str:
    return titles(record.model) if record.recovered else f"{titles(record.model)}, not recovered"


def _thinned(points: Sequence[AuditRecord]) -> Sequence[AuditRecord]:
    return points[:: -(-len(points) // POINTS) or 1]
