"""What leaks at what price, and at which length: points of the frontier and rates by duration, drawn on any axes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import ScaledTranslation

from overheard.audit.records import AuditRecord
from overheard.metrics.intervals import Estimate, Rate, median_estimate, wilson
from overheard.report.frontier_labels import place_labels
from overheard.report.summary import grouped
from overheard.report.wording import defence_title

MARKERS = "osD^v"
ASIDE = 5
"""Between the markers of two models at one place, pt."""
BINS = 8
"""Classes of duration at most."""
SERIES_DRAWN = 5
"""More are not told apart in a column; the figure says how many there are."""


@dataclass(frozen=True)
class FrontierPoint:
    """One defence of one model: its price and what still leaks.

    Attributes:
        model: as in the records.
        defence: as in the records.
        epsilon: of its guarantee, where it has one.
        delta: of the same.
        utility: median word error rate of recognisers trained like this; lower is better.
        leakage: rate of utterances that any attack recovered; lower is better.
    """

    model: str | None
    defence: str | None
    epsilon: float | None
    delta: float | None
    utility: Estimate
    leakage: Rate


@dataclass(frozen=True)
class DurationBin:
    """Utterances of one model and defence from `start` up to, not including, `end`, s."""

    model: str | None
    defence: str | None
    start: float
    end: float
    rate: Rate


Namer = Callable[[str | None, str | None], str]
"""A model and a defence, or None for no word about it, to what a legend says."""


@dataclass(frozen=True)
class Ink:
    """What a figure is drawn in."""

    text: str
    grid: str
    series: Sequence[str]


def recovered_by_any(records: Sequence[AuditRecord]) -> Rate | None:
    """Rate over utterances: one counts where any attack on it succeeded, as an attacker may try them all."""
    found: dict[str, bool] = {}
    for record in records:
        found[record.utterance] = found.get(record.utterance, False) or record.recovered
    return wilson(sum(found.values()), len(found))


def frontier(records: Sequence[AuditRecord]) -> list[FrontierPoint]:
    """One point for each model, defence and guarantee of the records that state a utility."""
    priced = [record for record in records if record.utility_wer is not None]
    points = []
    for key, group in grouped(priced, defended).items():
        utility = median_estimate([record.utility_wer for record in group])
        leakage = recovered_by_any(group)
        assert utility is not None
        assert leakage is not None
        points.append(FrontierPoint(*key, utility, leakage))
    return points


def defended(record: AuditRecord) -> tuple[str | None, str | None, float | None, float | None]:
    """What a point of the frontier and a verdict are of."""
    return record.model, record.defence, record.epsilon, record.delta


def by_duration(records: Sequence[AuditRecord]) -> list[DurationBin]:
    """Rates in classes of equal width, 1, 2 or 5 times a power of ten seconds; none where all are of one class."""
    timed = [record for record in records if record.seconds_audio is not None]
    if not timed:
        return []
    width = _width(max(record.seconds_audio or 0.0 for record in timed))
    classes = grouped(
        timed, lambda record: (record.model, record.defence, math.floor((record.seconds_audio or 0.0) / width))
    )
    if len({place for *_, place in classes}) < 2:
        return []
    bins = []
    for (model, defence, place), group in sorted(classes.items(), key=lambda item: (str(item[0][:2]), item[0][2])):
        rate = recovered_by_any(group)
        assert rate is not None
        bins.append(DurationBin(model, defence, place * width, (place + 1) * width, rate))
    return bins


def draw_frontier(axes: Axes, points: Sequence[FrontierPoint], ink: Ink, name_of: Namer) -> None:
    """Leakage against utility; the lower left corner is where everybody wants to be."""
    models, figure = grouped(points, lambda point: point.model), axes.get_figure(root=True)
    assert figure is not None
    ends = [(100 * point.utility.low, 100 * point.utility.high) for point in points]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    margin = 0.08 * (most - least) or 1.0
    axes.set_xlim(least - margin, most + margin)
    axes.set_ylim(-4, 104)
    for index, (model, group) in enumerate(models.items()):
        # Beside each other: what two models come to is often the same.
        aside = (index - (len(models) - 1) / 2) * ASIDE / 72
        axes.errorbar(
            [100 * point.utility.value for point in group],
            [100 * point.leakage.value for point in group],
            xerr=_bars([point.utility for point in group]),
            yerr=_bars([point.leakage for point in group]),
            fmt=MARKERS[index % len(MARKERS)],
            color=ink.series[index % len(ink.series)],
            elinewidth=0.8,
            markersize=5,
            transform=axes.transData + ScaledTranslation(aside, 0.0, figure.dpi_scale_trans),
            label=name_of(model, None),
        )
    _name_defences(figure, axes, points, ink)
    # Edits are never fewer than none.
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= most + margin])
    axes.set_xlabel("word error rate of the recogniser (%)")
    axes.set_ylabel("utterances recovered (%)")
    axes.grid(axis="y", color=ink.grid)


def _name_defences(figure: Figure, axes: Axes, points: Sequence[FrontierPoint], ink: Ink) -> None:
    """Each defence's name beside its points; a line leads there from where it had to give way."""
    left, right = map(float, axes.get_xlim())
    bottom, top = map(float, axes.get_ylim())
    # What a layout engine does to the axes afterwards is small.
    area = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    width, height = 72 * float(area.width), 72 * float(area.height)
    font = FontProperties(size="small").get_size_in_points()
    named = [
        (
            (100 * point.utility.value - left) / (right - left) * width,
            (100 * point.leakage.value - bottom) / (top - bottom) * height,
            _defence_name(point),
        )
        for point in points
    ]
    for label in place_labels(named, width, height, font):
        axes.annotate(
            label.text,
            (label.x / width, label.y / height),
            (label.left - label.x, label.middle - label.y),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize="small",
            va="center",
            linespacing=1.1,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": ink.text}
            if abs(label.middle - label.y) > 2 * font
            else None,
        )


def _defence_name(point: FrontierPoint) -> str:
    name = defence_title(point.defence)
    return name if point.epsilon is None else f"{name}, \u03b5 {point.epsilon:.3g}"


def _bars(estimates: Sequence[Estimate | Rate]) -> list[list[float]]:
    """Lengths of error bars below and above, in per cent."""
    return [
        [100 * max(0.0, each.value - each.low) for each in estimates],
        [100 * max(0.0, each.high - each.value) for each in estimates],
    ]


def draw_by_duration(axes: Axes, bins: Sequence[DurationBin], ink: Ink, name_of: Namer) -> None:
    """Rate of recovery in each class of duration with its interval."""
    everything = list(grouped(bins, lambda each: (each.model, each.defence)).items())
    series = everything[:SERIES_DRAWN]
    if len(everything) > len(series):
        axes.set_title(f"the first {len(series)} of {len(everything)} conditions", fontsize="small")
    for index, ((model, defence), group) in enumerate(series):
        # Beside each other, so that intervals are not drawn on intervals.
        shift = (index - (len(series) - 1) / 2) * 0.12 * (group[0].end - group[0].start)
        axes.errorbar(
            [(each.start + each.end) / 2 + shift for each in group],
            [100 * each.rate.value for each in group],
            yerr=_bars([each.rate for each in group]),
            fmt=f"{MARKERS[index % len(MARKERS)]}-",
            color=ink.series[index % len(ink.series)],
            linewidth=1.0,
            elinewidth=0.8,
            markersize=4,
            label=name_of(model, defence),
        )
    axes.set_ylim(-4, 104)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("duration of the utterance (s)")
    axes.set_ylabel("utterances recovered (%)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", color=ink.grid)


def _width(longest: float) -> float:
    wanted = max(longest, 1e-3) / BINS
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)
