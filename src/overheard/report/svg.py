"""A matplotlib figure as SVG that takes on the page's own colours and fonts, the same bytes every time."""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

INK = "#010203"
FAINT = "#010204"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215")
"""Stand-ins that `render` replaces: the page decides on the colours, for light and for dark."""

PAGE_COLOURS = {INK: "currentColor", FAINT: "var(--line)"} | {
    stand_in: f"var(--series-{index})" for index, stand_in in enumerate(SERIES, start=1)
}

LETTER, HANDLE = 6.0, 32
"""Width of a letter of a legend, and of what stands before it and behind, pt."""

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    # Model names reach a legend, and a dollar in one is no formula.
    "text.parse_math": False,
}


@contextmanager
def drawing(name: str, width: int, height: int) -> Iterator[Figure]:
    """A figure of so many points, to be filled and rendered within the context; `name` is unique in the page."""
    settings: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        yield Figure(figsize=(width / 72, height / 72))


def axes_within(figure: Figure, left: int, bottom: int, right: int, top: int) -> Axes:
    """Axes that leave so many points free at each side; laying them out by measuring text takes most of the time."""
    width, height = figure.get_size_inches() * 72
    sides = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes(sides)


def legend_layout(labels: Sequence[str], width: int) -> tuple[int, int]:
    """Columns of a legend above the axes, two where the labels let it, and the points that it takes there."""
    columns = 2 if 2 * (LETTER * max(map(len, labels), default=0) + HANDLE) <= width else 1
    return columns, 12 + 16 * -(-len(labels) // columns)


def render(figure: Figure, alternative: str) -> Markup:
    """The figure as an `svg` element that scales with its container.

    Args:
        figure: made within `drawing`.
        alternative: what a reader who cannot see it is told.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    width, height = (float(side) for side in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    body = text[text.index(">", text.index("<svg")) + 1 :]
    # One page holds many figures: what nothing refers to needs no id, and the style sheet of each would hold for all.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", _smaller_image, body)
    for stand_in, colour in PAGE_COLOURS.items():
        body = body.replace(stand_in, colour)
    opening = f'<svg class="plot" role="img" aria-label="{escape(alternative)}" viewBox="0 0 {width:g} {height:g}">'
    return Markup(opening + body)


def _smaller_image(match: re.Match[str]) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(match[1])))
    buffer = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
