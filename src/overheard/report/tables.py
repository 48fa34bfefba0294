"""Tables for a paper: as LaTeX with booktabs and as CSV, every row with the selection of records it comes from.

A selection names fields of results.jsonl and their values: filtering the records by it and computing the column's
statistic gives the number again.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from overheard.audit.records import AuditRecord
from overheard.metrics.intervals import Estimate, Rate
from overheard.report.leakage import by_duration, frontier
from overheard.report.summary import failure_reasons, grouped, summarise
from overheard.report.titles import Titles
from overheard.report.voices import TITLES, voices
from overheard.report.wording import PRICE

GUARANTEE = {"epsilon": "ε", "delta": "δ"}
"""Headings of a defence's guarantee."""
COLUMN_HOLDS = 5
"""Columns of a table that fits one column of a page."""
LONG_TEXT = 40
"""Characters beyond which a column's text is broken into lines."""

Cell = str | int | float | Rate | Estimate | None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: of its files, and its label.
        caption: one sentence or two, plain text.
        columns: headings with units; an interval takes two more columns in CSV.
        rows: cells in the order of the columns.
        selections: of each row, the fields and values of the records behind it, as JSON.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    selections: tuple[str, ...]


def tables(records: Sequence[AuditRecord], titles: Titles) -> list[Table]:
    """Every table that the records can fill."""
    made = [make(records, titles) for make in (_outcomes, _frontier, _durations, _voices, _failures)]
    return [_without_empty_columns(table) for table in made if table.rows]


def _without_empty_columns(table: Table) -> Table:
    kept = [index for index in range(len(table.columns)) if any(row[index] is not None for row in table.rows)]
    columns = tuple(table.columns[index] for index in kept)
    return replace(table, columns=columns, rows=tuple(tuple(row[index] for index in kept) for row in table.rows))


def to_csv(table: Table) -> str:
    """Full precision; a rate or estimate is its value, its interval and its count."""
    spread = [any(isinstance(row[index], Rate | Estimate) for row in table.rows) for index in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heading = []
    for column, wide in zip(table.columns, spread, strict=True):
        heading += [column, f"{column}: low", f"{column}: high", f"{column}: records"] if wide else [column]
    writer.writerow([*heading, "records selected"])
    for row, selection in zip(table.rows, table.selections, strict=True):
        cells: list[str] = []
        for cell, wide in zip(row, spread, strict=True):
            cells += _spread(cell) if wide else [_exact(cell)]
        writer.writerow([*map(_inert, cells), _inert(selection)])
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    r"""A `table` environment for \usepackage{booktabs,graphicx}; selections stand in comments above it.

    Intervals stand below their values, long text is broken, and what is still wider than the page is made smaller.
    """
    count = len(table.columns)
    columns = "".join(_column([row[index] for row in table.rows], count) for index in range(count))
    lines = ["% Numbers from results.jsonl alone; rows in order, each with the records it comes from:"]
    lines += [f"% {index}: {_one_line(selection)}" for index, selection in enumerate(table.selections, start=1)]
    # More than a few columns take the page.
    environment = "table*" if count > COLUMN_HOLDS else "table"
    lines += [
        f"\\begin{{{environment}}}[t]",
        r"  \centering\footnotesize",
        f"  \\caption{{{latex(table.caption)}}}",
        f"  \\label{{tab:overheard-{table.name}}}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        "    " + " & ".join(latex(column) for column in table.columns) + r" \\",
        r"    \midrule",
    ]
    for row in table.rows:
        lines.append("    " + " & ".join(map(_written, row)) + r" \\")
        if any(map(_interval, row)):
            lines.append("    " + " & ".join(map(_interval, row)) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}}", f"\\end{{{environment}}}", ""]
    return "\n".join(lines)


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "…": r"\ldots{}",
}


def latex(text: str) -> str:
    """Text as LaTeX that prints it, on one line; what the fonts may lack becomes a question mark."""
    escaped = "".join(LATEX.get(letter, letter) for letter in _one_line(text))
    return escaped.encode("latin-1", errors="replace").decode("latin-1")


def _outcomes(records: Sequence[AuditRecord], titles: Titles) -> Table:
    def row(group: Sequence[AuditRecord]) -> tuple[Cell, ...]:
        found = summarise(group)
        return (
            found.rate, found.frames, found.words, found.median_mae, found.median_snr_db, found.median_seconds,
            found.utility_wer,
        )  # fmt: skip

    return _grouped(
        titles,
        "outcomes",
        "What came back, by model, defence and attack: rates with Wilson's, medians and ratios with bootstrap 95 % "
        "intervals. Errors are of the recovered utterances.",
        records,
        ("model", "defence", "attack", "epsilon", "delta"),
        ("recovered", "frames", "words", "feature error", "SNR (dB)", "attack (s)", PRICE),
        row,
    )


def _frontier(records: Sequence[AuditRecord], titles: Titles) -> Table:
    rows, selections = [], []
    for point in frontier(records):
        guarantee = {"epsilon": point.epsilon, "delta": point.delta}
        rows.append((titles(point.model), point.defence, *guarantee.values(), point.utility, point.leakage))
        selections.append(_selection(model=point.model, defence=point.defence, **guarantee))
    return Table(
        "frontier",
        "The price of each defence, and what still leaks: utterances that any attack recovered.",
        ("model", "defence", *GUARANTEE.values(), PRICE, "recovered"),
        tuple(rows),
        tuple(selections),
    )


def _durations(records: Sequence[AuditRecord], titles: Titles) -> Table:
    rows, selections = [], []
    for each in by_duration(records):
        rows.append((titles(each.model), each.defence, each.start, each.end, each.rate))
        selections.append(
            _selection(
                model=each.model, defence=each.defence, seconds_audio=f"from {each.start:g} to below {each.end:g}"
            )
        )
    columns = ("model", "defence", "from (s)", "to (s)", "recovered")
    return Table(
        "durations", "Utterances that any attack recovered, by duration.", columns, tuple(rows), tuple(selections)
    )


def _voices(records: Sequence[AuditRecord], titles: Titles) -> Table:
    rows, selections = [], []
    for voice in voices(records):
        speaker = voice.speaker
        rows.append(
            (
                titles(voice.model), voice.defence, TITLES[voice.source],
                speaker.top1 if speaker else None, speaker.chance1 if speaker else None,
                speaker.top5 if speaker else None, speaker.chance5 if speaker else None,
                speaker.equal_error_rate if speaker else None, voice.wer, voice.stoi,
                voice.log_spectral_distance_db, voice.mel_cepstral_distortion_db, voice.si_sdr_db, voice.pesq,
                voice.reanalysis_mae,
            )
        )  # fmt: skip
        selections.append(_selection(model=voice.model, defence=voice.defence, hearings=f"source {voice.source}"))
    return Table(
        "voices",
        "What can be heard in audio made from features, beside the original: speakers identified, word error rate of "
        "an outside recogniser, intelligibility, distances; how far its features are from those it was made of.",
        (
            "model", "defence", "audio", "top-1", "chance", "top-5", "chance of 5", "EER", "WER", "STOI", "LSD (dB)",
            "MCD (dB)", "SI-SDR (dB)", "PESQ", "error of its features",
        ),
        tuple(rows),
        tuple(selections),
    )  # fmt: skip


def _failures(records: Sequence[AuditRecord], titles: Titles) -> Table:
    reasons = failure_reasons(records)
    return Table(
        "failures",
        "Why utterances did not come back whole.",
        ("model", "count", "reason"),
        tuple((titles(each.model), each.count, each.reason) for each in reasons),
        tuple(_selection(model=each.model, recovered=False, reason=each.reason) for each in reasons),
    )


def _grouped(
    titles: Titles,
    name: str,
    caption: str,
    records: Sequence[AuditRecord],
    by: tuple[str, ...],
    columns: tuple[str, ...],
    row: Callable[[Sequence[AuditRecord]], tuple[Cell, ...]],
) -> Table:
    groups = grouped(records, lambda record: tuple(getattr(record, field) for field in by))
    rows = []
    for key, group in groups.items():
        named = tuple(titles(value) if field == "model" else value for field, value in zip(by, key, strict=True))
        rows.append((*named, len(group), *row(group)))
    selections = tuple(_selection(**dict(zip(by, key, strict=True))) for key in groups)
    headings = tuple(GUARANTEE.get(field, field) for field in by)
    return Table(name, caption, (*headings, "records", *columns), tuple(rows), selections)


def _selection(**fields: object) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _spread(cell: Cell) -> list[str]:
    if isinstance(cell, Rate):
        return [repr(cell.value), repr(cell.low), repr(cell.high), str(cell.trials)]
    if isinstance(cell, Estimate):
        return [repr(cell.value), repr(cell.low), repr(cell.high), str(cell.count)]
    return [_exact(cell), "", "", ""]


def _exact(cell: Cell) -> str:
    return "" if cell is None else repr(cell) if isinstance(cell, float) else str(cell)


def _inert(text: str) -> str:
    """A spreadsheet takes these for a formula; negative numbers stay numbers."""
    if text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and not text[1:2].isdigit()):
        return "'" + text
    return text


def _written(cell: Cell) -> str:
    if cell is None:
        return "--"
    if isinstance(cell, str):
        return latex(cell)
    if isinstance(cell, Rate):
        return rf"{_percent(cell.value)}\,\%"
    return _number(cell.value if isinstance(cell, Estimate) else cell)


def _interval(cell: Cell) -> str:
    """The line below a value; empty where there is no interval."""
    if isinstance(cell, Rate):
        return rf"{{\scriptsize [{_percent(cell.low)}, {_percent(cell.high)}]}}"
    if isinstance(cell, Estimate) and cell.low < cell.high:
        return rf"{{\scriptsize [{_number(cell.low)}, {_number(cell.high)}]}}"
    return ""


def _column(cells: Sequence[Cell], count: int) -> str:
    """How LaTeX sets one of so many columns: numbers flush right, long text broken."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    if not texts:
        return "r"
    if max(map(len, texts)) <= LONG_TEXT:
        return "l"
    return r"p{0.6\linewidth}" if count <= COLUMN_HOLDS else r"p{0.25\linewidth}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _number(value: float | int) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"${mantissa}\times 10^{{{int(exponent)}}}$"
