"""The pictures of a report: feature maps and their difference, and a layer's spectrum."""

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from jaxtyping import Float
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from torch import Tensor

from overheard.report.svg import FAINT, INK, SERIES, axes_within, drawing, render
from overheard.report.wording import MINUS, number, power_of_ten

COLOURS = 64
"""Steps of a colour map: more are not told apart, and cost space."""
COLOUR_ENDS = (0.05, 0.95)
"""Quantiles of the true features: one coefficient of many, the level, is far from all others and may not set these."""
DIFFERENCE_END = 0.99
"""Quantile of the absolute difference at which its colours end."""
PIXELS = (400, 260)
"""Frames and features beyond which a map is thinned out; it is drawn about 330 wide and 180 high."""
AXES = {"log_spectrogram": "frequency bin", "log_mel": "mel band", "mfcc": "coefficient"}


@dataclass(frozen=True)
class FeatureMaps:
    """True and recovered features on one colour scale, and their difference on its own.

    Attributes:
        true: always drawn.
        recovered: None where nothing came back.
        difference: recovered minus true, over the frames that both have.
        largest: the largest absolute difference.
    """

    true: Markup
    recovered: Markup | None
    difference: Markup | None
    largest: float | None


def feature_maps(
    name: str,
    true: Float[Tensor, "T F"],
    recovered: Float[Tensor, "T_r F"] | None,
    front_end: dict[str, Any],
) -> FeatureMaps:
    """Draw an utterance's features; colours span the 5th to the 95th percentile of the true ones.

    Args:
        name: unique in the page.
        true: what the client computed.
        recovered: what came back.
        front_end: fields of its `FrontEndConfig`; without them, axes count frames and features.
    """
    ends = numpy.quantile(true.numpy(), COLOUR_ENDS)
    limits = (float(ends[0]), float(ends[1]))
    longest = max(true.shape[0], 0 if recovered is None else recovered.shape[0])
    draw = _MapAxes(longest, front_end)
    said = f"{true.shape[0]} frames of {true.shape[1]} features"
    first = draw.panel(f"{name}-true", true, "viridis", limits, f"Map of the true features, {said}.")
    if recovered is None:
        return FeatureMaps(first, None, None, None)
    said = f"{recovered.shape[0]} frames of {recovered.shape[1]} features"
    second = draw.panel(f"{name}-recovered", recovered, "viridis", limits, f"Map of the recovered features, {said}.")
    both = min(true.shape[0], recovered.shape[0])
    difference = recovered[:both] - true[:both]
    largest = float(difference.abs().max())
    # Where errors are few, the quantile is zero and the largest of them sets the scale.
    end = float(numpy.quantile(difference.abs().numpy(), DIFFERENCE_END)) or largest or 1.0
    said = f"Map of recovered minus true features over {both} frames; the largest difference is {number(largest)}."
    third = draw.panel(f"{name}-difference", difference, "PuOr", (-end, end), said)
    return FeatureMaps(first, second, third, largest)


class _MapAxes:
    """What the three maps of one utterance share: the extent of time and the names of the axes."""

    def __init__(self, frames: int, front_end: dict[str, Any]) -> None:
        self.frames = frames
        hop, rate = front_end.get("hop"), front_end.get("sample_rate")
        self.seconds_a_frame = hop / rate if hop and rate else 1.0
        self.time = "time (s)" if hop and rate else "frame"
        self.features = AXES.get(front_end.get("kind", ""), "feature")

    def panel(
        self, name: str, values: Float[Tensor, "T F"], colours: str, limits: tuple[float, float], alternative: str
    ) -> Markup:
        """One map with its colour scale; time without frames is hatched."""
        low, high = limits if limits[0] < limits[1] else (limits[0] - 1.0, limits[0] + 1.0)
        frames, features = values.shape
        extent = (0.0, frames * self.seconds_a_frame, -0.5, features - 0.5)
        with drawing(name, 400, 230) as figure:
            axes = axes_within(figure, left=46, bottom=40, right=74, top=6)
            scale = axes_within(figure, left=334, bottom=40, right=54, top=6)
            image = axes.imshow(
                _thinned(values).T.numpy(),
                cmap=colormaps[colours].resampled(COLOURS),
                vmin=low,
                vmax=high,
                extent=extent,
                origin="lower",
                aspect="auto",
                interpolation="none",
            )
            axes.set_xlim(0.0, self.frames * self.seconds_a_frame)
            axes.set_xlabel(self.time)
            axes.set_ylabel(self.features)
            if frames < self.frames:
                axes.patch.set(hatch="////", edgecolor=FAINT, linewidth=0.0)
            bar = figure.colorbar(image, cax=scale, ticks=[low, (low + high) / 2, high])
            scale.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
            return render(figure, alternative)


def _thinned(values: Float[Tensor, "T F"]) -> Float[Tensor, "T_drawn F_drawn"]:
    """Of each block of cells the one furthest from zero, so that no lone error is averaged away."""
    blocks = [max(1, -(-side // limit)) for side, limit in zip(values.shape, PIXELS, strict=True)]
    if blocks == [1, 1]:
        return values
    pooled, places = torch.nn.functional.max_pool2d(
        values.abs()[None], kernel_size=(blocks[0], blocks[1]), ceil_mode=True, return_indices=True
    )
    return values.flatten()[places[0]].view(pooled.shape[1:])


def _tick(value: float) -> str:
    """Short enough for a colour scale: 1.5, -2e-6."""
    if value == 0.0 or 0.01 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", MINUS)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)


def decades(axes: Axes) -> None:
    """A log scale labelled in powers of ten, a few of them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))


def spectrum_plot(name: str, spectrum: Float[Tensor, " R"], read: int | None, true: int | None) -> Markup:
    """Relative singular values of one layer's update on a log scale.

    Args:
        name: unique in the page.
        spectrum: largest first.
        read: frames that the attack read off it, marked.
        true: frames there were, marked where that is another number.
    """
    values = spectrum.clamp(min=torch.finfo(torch.float32).tiny).numpy()
    alternative = f"{len(values)} singular values from {_tick(values[0])} down to {_tick(values[-1])}."
    with drawing(name, 400, 250) as figure:
        axes = axes_within(figure, left=58, bottom=40, right=8, top=26)
        axes.plot(range(1, len(values) + 1), values, color=SERIES[0], linewidth=1.6)
        decades(axes)
        axes.grid(axis="y")
        axes.set_xlabel("index of the singular value")
        axes.set_ylabel("relative to the largest")
        axes.set_xlim(0, len(values) + 1)
        marks = [(read, f"{read} frames read off", "--")]
        if true != read:
            marks.append((true, f"{true} frames were there", ":"))
        for place, text, style in marks:
            if place is None:
                continue
            alternative += f" {text}."
            axes.axvline(place + 0.5, color=INK, linewidth=0.9, linestyle=style, label=text)
        if read is not None or true is not None:
            figure.legend(loc="upper left", ncols=2, handlelength=2.4)
        return render(figure, alternative)
