"""The tables of a page as a reader finds them: headings, and each cell with its text and its exact value."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path


@dataclass
class Cell:
    """One cell; `value` is what it sorts by, None where it has only text."""

    value: str | None
    text: str = ""


@dataclass
class PageTable:
    """One table, by the id of its heading."""

    name: str
    headings: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)

    def records(self) -> list[dict[str, Cell]]:
        """Its rows by heading."""
        return [dict(zip(self.headings, row, strict=True)) for row in self.rows]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self.region = ""
        self.inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("role") == "region":
            self.region = given.get("aria-labelledby") or ""
        if tag == "table":
            self.tables.append(PageTable(self.region))
        elif tag in ("thead", "tbody"):
            self.inside.append(tag)
        elif tag == "tr" and self.inside == ["tbody"]:
            self.tables[-1].rows.append([])
        elif tag in ("th", "td") and self.inside:
            self.inside.append(tag)
            if self.inside[0] == "thead":
                self.tables[-1].headings.append("")
            else:
                self.tables[-1].rows[-1].append(Cell(given.get("data-value")))

    def handle_endtag(self, tag: str) -> None:
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if len(self.inside) < 2:
            return
        if self.inside[0] == "thead":
            self.tables[-1].headings[-1] += data
        else:
            self.tables[-1].rows[-1][-1].text += data


def page_tables(path: Path) -> dict[str, PageTable]:
    """Every table of a page by the id of its heading, texts with single spaces."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    for table in reader.tables:
        table.headings = [" ".join(heading.split()) for heading in table.headings]
        for cell in (cell for row in table.rows for cell in row):
            cell.text = " ".join(cell.text.split())
    return {table.name: table for table in reader.tables}
