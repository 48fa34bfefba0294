"""`write_paper`: what a paper needs from a run, in a folder beside its page; numbers come from the records alone.

paper/figures/*.pdf    vector, one column wide, colours told apart by the colour-blind, fonts embedded
paper/tables/*.tex     for booktabs, with the records behind each row in comments; *.csv in full precision
paper/methods.tex      a paragraph generated from the settings
paper/references.bib   what was used
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from overheard.audit.records import AuditRecord
from overheard.report.feature_errors import draw_errors, measured
from overheard.report.leakage import Ink, by_duration, draw_by_duration, draw_frontier, frontier
from overheard.report.methods import bibtex, methods
from overheard.report.run_folder import AuditedRun
from overheard.report.tables import tables, to_csv, to_latex
from overheard.report.titles import Titles
from overheard.storage import write_text, written_whole

PAPER = "paper"
COLUMN_INCHES = 3.4
"""Width of a column in most two-column styles."""
# Okabe and Ito, Color universal design, 2008; without the yellow, which paper swallows.
PRINT = Ink("black", "#cccccc", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"))
AXES_INCHES, LEGEND_ROW_INCHES = 2.0, 0.14
MARKER_SIZE = 9.0
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,
    "text.parse_math": False,
}


def write_paper(run: AuditedRun) -> Path:
    """Write the folder `paper` of a run anew; the same records give the same bytes."""
    records, titles = run.records, run.titles
    place = run.folder / PAPER
    for part in ("figures", "tables"):
        (place / part).mkdir(parents=True, exist_ok=True)
    # What an earlier run of this drew, from other records, may not stay.
    for old in [
        *(place / "figures").glob("*.pdf"),
        *(place / "tables").glob("*.tex"),
        *(place / "tables").glob("*.csv"),
    ]:
        old.unlink()
    for name, draw in _figures(records, titles).items():
        with _drawing() as figure:
            draw(figure)
            _save(figure, place / "figures" / f"{name}.pdf")
    for table in tables(records, titles):
        write_text(place / "tables" / f"{table.name}.tex", to_latex(table))
        write_text(place / "tables" / f"{table.name}.csv", to_csv(table))
    write_text(place / "methods.tex", methods(run.config, records))
    write_text(place / "references.bib", bibtex(run.config, records))
    return place


def _figures(records: Sequence[AuditRecord], titles: Titles) -> dict[str, Callable[[Figure], None]]:
    """Those that the records can fill, by name."""
    found: dict[str, Callable[[Figure], None]] = {}
    points, bins = frontier(records), by_duration(records)
    if points:
        found["frontier"] = lambda figure: _with_legend(
            figure, lambda axes: draw_frontier(axes, points, PRINT, titles.series)
        )
    if bins:
        found["durations"] = lambda figure: _with_legend(
            figure, lambda axes: draw_by_duration(axes, bins, PRINT, titles.series)
        )
    if errors := measured(records):
        found["errors"] = lambda figure: _with_legend(
            figure, lambda axes: draw_errors(axes, errors, PRINT, titles, MARKER_SIZE)
        )
    return found


@contextmanager
def _drawing() -> Iterator[Figure]:
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(COLUMN_INCHES, AXES_INCHES), layout="constrained")


def _with_legend(figure: Figure, draw: Callable[[Any], object]) -> None:
    """The legend stands above the axes, and takes nothing of their height."""
    axes = figure.add_subplot()
    draw(axes)
    _, labels = axes.get_legend_handles_labels()
    rows = sum(1 + label.count("\n") for label in labels)
    figure.set_size_inches(COLUMN_INCHES, AXES_INCHES + LEGEND_ROW_INCHES * rows)
    figure.legend(loc="outside upper left", ncols=1, handletextpad=0.4, borderaxespad=0.2)


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        # A date would make the same records other bytes.
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Creator": "overheard"})
