"""What a paper takes: figures, tables whose numbers are those of the records, a paragraph, references."""

import csv
import json
import re
from pathlib import Path

import pytest
from audited_run import HOSTILE, BuildRun, failed, record, write_run
from many_records import grid

from overheard.audit.records import AuditRecord, load_records
from overheard.report.methods import REFERENCES, bibtex, methods
from overheard.report.paper import write_paper
from overheard.report.run_folder import read_run
from overheard.report.tables import latex, tables, to_csv, to_latex
from overheard.report.titles import Titles


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a grid; whoever changes it leaves it as it was."""
    return write_paper(read_run(write_run(tmp_path_factory.mktemp("paper") / "run", list(grid(240)), examples=[])))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_rate_is_counted_again_from_the_records_it_names(paper: Path) -> None:
    records = load_records(paper.parent)
    found = rows(paper / "tables" / "outcomes.csv")
    assert len(found) == 6
    for row in found:
        wanted = json.loads(row["records selected"])
        chosen = [each for each in records if all(getattr(each, name) == value for name, value in wanted.items())]
        assert len(chosen) == int(row["records"]) == int(row["recovered: records"])
        assert float(row["recovered"]) == sum(each.recovered for each in chosen) / len(chosen)
        read = [each for each in chosen if each.transcript_recovered is not None]
        words = sum(each.words_recovered or 0 for each in read) / max(1, sum(each.words_true or 0 for each in read))
        assert float(row["words"] or 0) == words
        assert float(row["recovered: low"]) <= float(row["recovered"]) <= float(row["recovered: high"])
    assert sum(int(row["records"]) for row in found) == len(records)


def test_latex_says_what_csv_says(paper: Path) -> None:
    text = (paper / "tables" / "outcomes.tex").read_text(encoding="utf-8")
    for row in rows(paper / "tables" / "outcomes.csv"):
        assert rf"{100 * float(row['recovered']):.1f}\,\%" in text
        low, high = (100 * float(row[f"recovered: {end}"]) for end in ("low", "high"))
        assert f"[{low:.1f}, {high:.1f}]" in text
        assert " ".join(row["records selected"].split()) in text


def test_voices_stand_beside_the_original_and_chance(paper: Path) -> None:
    found = [row for row in rows(paper / "tables" / "voices.csv") if row["model"] == "DeepSpeech 1"]
    none = {row["audio"]: row for row in found if row["defence"] == "none"}
    assert float(none["original"]["top-1"]) == 1.0
    assert float(none["from the recovered features"]["top-1"]) < 1.0
    assert float(none["original"]["chance"]) == pytest.approx(0.1)
    assert float(none["original"]["WER"]) == 0.0
    assert none["original"]["STOI"] == ""


def balanced(text: str) -> bool:
    """Braces and environments close in order, and no letter that LaTeX takes for itself stands unescaped."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", body):
        if kind == "begin":
            open_environments.append(name)
        elif not open_environments or open_environments.pop() != name:
            return False
    bare = re.sub(r"\\[\\{}$&#%_]", "", body)
    return not open_environments and bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0 and "#" not in bare


def test_tables_are_whole_latex_whatever_the_data_says(paper: Path) -> None:
    files = sorted((paper / "tables").glob("*.tex"))
    assert [path.stem for path in files] == ["durations", "failures", "frontier", "outcomes", "voices"]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert balanced(text), path.name
        (kinds,) = re.findall(r"\\begin\{tabular\}\{((?:[lr]|p\{[^}]+\})+)\}", text)
        columns = len(re.findall(r"p\{[^}]+\}|[lr]", kinds))
        for line in text.splitlines():
            if line.endswith(r" \\"):
                assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
    assert r"noise \$1\_\{a\}\&\% \textless{}b\textgreater{}" in (paper / "tables" / "frontier.tex").read_text()


def test_figures_are_vectors_of_one_column_with_fonts_inside(paper: Path) -> None:
    files = sorted((paper / "figures").glob("*.pdf"))
    assert [path.stem for path in files] == ["durations", "errors", "frontier"]
    for path in files:
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/Subtype /Image" not in content
        assert b"/FontFile2" in content
        width = float(re.findall(rb"/MediaBox \[ 0 0 ([\d.]+)", content)[0])
        assert width == pytest.approx(3.4 * 72, abs=1)


def test_same_records_same_bytes_and_nothing_stale(paper: Path) -> None:
    first = {path: path.read_bytes() for path in paper.rglob("*") if path.is_file()}
    stale = paper / "tables" / "old.csv"
    stale.write_text("1")
    write_paper(read_run(paper.parent))
    assert {path: path.read_bytes() for path in paper.rglob("*") if path.is_file()} == first


def test_every_citation_has_its_entry_and_every_entry_is_cited_or_a_tool(paper: Path) -> None:
    run = read_run(paper.parent)
    config, records = run.config, run.records
    text, entries = methods(config, records), bibtex(config, records)
    cited = {key for keys in re.findall(r"\\cite\{([^}]+)\}", text) for key in keys.split(",")}
    listed = set(re.findall(r"@\w+\{(\w+),", entries))
    assert cited <= listed
    assert {"overheard", "hannun2014", "panayotov2015", "wilson1927"} <= cited
    assert "dang2022" not in listed
    assert "Version 0.1.0" in entries
    assert balanced(text.replace(r"\'", ""))
    assert "gradient" in text
    assert len(re.findall("^@", REFERENCES.read_text(encoding="utf-8"), re.MULTILINE)) == 16


def test_hostile_reasons_stay_text() -> None:
    records = [failed(0, HOSTILE + "\n\\input{secret} =cmd"), failed(1, "=HYPERLINK(0)")]
    for table in tables(records, Titles.of(["deepspeech1"])):
        assert balanced(to_latex(table))
        # The selections above it are comments of one line each.
        body = [line for line in to_latex(table).splitlines() if not line.startswith("%")]
        assert not any("\\input" in line for line in body)
        assert "\n=" not in to_csv(table)
        assert ",=" not in to_csv(table)
    assert latex("\\a{b}") == r"\textbackslash{}a\{b\}"


@pytest.mark.parametrize("records", [[], [record(0)], [failed(0, "none")]])
def test_few_records_make_fewer_files_and_no_error(build_run: BuildRun, records: list[AuditRecord]) -> None:
    place = write_paper(read_run(build_run(records, examples=[])))
    assert (place / "methods.tex").is_file()
    assert len(list((place / "tables").glob("*.csv"))) <= 3
