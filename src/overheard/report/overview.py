"""The page's pictures of a whole run, price against leakage and rates by duration, and of one utterance's frames."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from overheard.audit.records import AuditRecord
from overheard.metrics.alignment import CLOSE, frame_errors
from overheard.report.figures import decades
from overheard.report.leakage import SERIES_DRAWN, Ink, by_duration, draw_by_duration, draw_frontier, frontier
from overheard.report.summary import grouped
from overheard.report.svg import FAINT, INK, SERIES, axes_within, drawing, legend_layout, render
from overheard.report.titles import Titles
from overheard.report.wording import number, percent

PAGE = Ink(INK, FAINT, SERIES)
SMALLEST = 1e-9
"""Zero has no place on a log scale; nothing that was computed in float32 is nearer to it than this."""


def frontier_plot(name: str, records: Sequence[AuditRecord], titles: Titles) -> Markup | None:
    """Leakage against the recogniser's word error rate; None where no record states the latter."""
    points = frontier(records)
    if not points:
        return None
    columns, above = legend_layout([titles(model) for model in grouped(points, lambda point: point.model)], 400)
    with drawing(name, 400, 252 + above) as figure:
        axes = axes_within(figure, left=52, bottom=42, right=8, top=above)
        draw_frontier(axes, points, PAGE, titles.series)
        figure.legend(loc="upper left", ncols=columns, handletextpad=0.4, columnspacing=1.2)
        told = "; ".join(
            f"{titles(point.model)} with {point.defence}: word error rate {percent(point.utility.value)}, "
            f"recovered {percent(point.leakage.value)}"
            for point in points
        )
        return render(figure, f"Utterances recovered against word error rate. {told}.")


def duration_plot(name: str, records: Sequence[AuditRecord], titles: Titles) -> Markup | None:
    """Rate of recovery by duration; None where durations do not differ enough to tell."""
    bins = by_duration(records)
    if not bins:
        return None
    series = grouped(bins, lambda each: (each.model, each.defence))
    # The legend has a row or two for each; beyond the limit, a line says that there are more.
    shown = [titles.series(*key) for key in list(series)[:SERIES_DRAWN]]
    above = 10 + 16 * sum(1 + title.count("\n") for title in shown) + (15 if len(series) > SERIES_DRAWN else 0)
    with drawing(name, 400, 235 + above) as figure:
        axes = axes_within(figure, left=52, bottom=42, right=8, top=above)
        draw_by_duration(axes, bins, PAGE, titles.series)
        figure.legend(loc="upper left", ncols=1, handletextpad=0.4)
        told = "; ".join(
            f"{titles.series(each.model, each.defence)}, {each.start:g} to {each.end:g} s: "
            f"{each.rate.successes} of {each.rate.trials}"
            for each in bins[:40]
        )
        return render(figure, f"Utterances recovered by duration. {told}.")


def frame_error_plot(
    name: str, true: Float[Tensor, "T F"], recovered: Float[Tensor, "T_r F"], front_end: dict[str, Any]
) -> Markup:
    """Mean absolute error of each frame over time, so that half a recovery shows as half.

    Args:
        name: unique in the page.
        true: what the client computed.
        recovered: what came back.
        front_end: fields of its `FrontEndConfig`; without them, the axis counts frames.
    """
    errors = frame_errors(recovered, true)
    hop, rate = front_end.get("hop"), front_end.get("sample_rate")
    seconds = hop / rate if hop and rate else None
    close = int((errors < CLOSE).sum())
    with drawing(name, 400, 190) as figure:
        axes = axes_within(figure, left=58, bottom=40, right=8, top=26)
        times = [index * (seconds or 1.0) for index in range(len(errors))]
        axes.plot(times, errors.clamp(min=SMALLEST).numpy(), color=SERIES[0], linewidth=1.2)
        decades(axes)
        axes.axhline(CLOSE, color=INK, linewidth=0.9, linestyle="--", label=f"a frame counts below {CLOSE:g}")
        axes.grid(axis="y")
        axes.set_xlim(0, max(times[-1:] or [1.0]) or 1.0)
        axes.set_xlabel("time (s)" if seconds else "frame")
        axes.set_ylabel("error of the frame")
        figure.legend(loc="upper left")
        largest = number(float(errors.max())) if len(errors) else "none"
        return render(figure, f"Error of each frame: {close} of {len(errors)} below {CLOSE:g}, at most {largest}.")
