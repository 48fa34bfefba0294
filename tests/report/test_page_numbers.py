"""Each number in the page's tables is the one that the records give, computed here once more in the plainest way."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import pytest
from audited_run import BuildRun
from many_records import grid
from page_tables import Cell, PageTable, page_tables
from scipy.stats import binomtest

from overheard.audit.records import SOURCES, AuditRecord, Hearing
from overheard.report.html import write_report
from overheard.report.titles import Titles
from overheard.report.wording import number, percent

Wanted = dict[str, float | int | None]
SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
TITLES = Titles.of(["deepspeech1", "mine_50%:build"])
FIELDS = {
    "Audio (s)": "seconds_audio",
    "Frames": "frames_recovered",
    "Feature error": "feature_mae",
    "SNR (dB)": "feature_snr_db",
    "WER": "wer",
    "Epsilon": "epsilon",
    "WER of the recogniser": "utility_wer",
    "Attack (s)": "seconds",
    "Peak (MB)": "peak_mb",
}
"""Columns of the table of records, and what of a record stands there."""


def recovered(record: AuditRecord) -> bool:
    return record.frames_recovered == record.frames_true and (record.feature_mae or 1.0) < 0.01


def middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def of_condition(group: Sequence[AuditRecord]) -> Wanted:
    """What the row of these records has to say, by heading."""
    whole = [record for record in group if recovered(record)]
    read = [record for record in group if record.transcript_recovered is not None]
    return {
        "Recovered": len(whole),
        "Rate, 95 % interval": len(whole) / len(group),
        "WER of the recogniser": middle([record.utility_wer for record in group]),
        "Words read": sum(record.words_recovered or 0 for record in read)
        / sum(record.words_true or 0 for record in read)
        if read
        else None,
        "Median frames": middle(
            [record.frames_close / (record.frames_true or 1) for record in group if record.frames_close is not None]
        ),
        "Median error": middle([record.feature_mae for record in whole]),
        "Median SNR (dB)": middle([record.feature_snr_db for record in whole]),
        "Median time (s)": middle([record.seconds for record in group]),
        "Median peak (MB)": middle([record.peak_mb for record in group]),
    }


def of_voice(hearings: Sequence[Hearing]) -> Wanted:
    """The same of what was heard in one version of the audio."""
    ranks = [hearing.speaker_rank or 99 for hearing in hearings]
    return {
        "Speaker first of all": sum(rank == 1 for rank in ranks) / len(ranks),
        "Chance": sum(1 / (hearing.speaker_candidates or 1) for hearing in hearings) / len(ranks),
        "Among five": sum(rank <= 5 for rank in ranks) / len(ranks),
        "WER heard": sum(hearing.word_edits or 0 for hearing in hearings) / sum(each.words or 0 for each in hearings),
        "Median STOI": middle([hearing.stoi for hearing in hearings]),
        "Median LSD (dB)": middle([hearing.log_spectral_distance_db for hearing in hearings]),
        "Median MCD (dB)": middle([hearing.mel_cepstral_distortion_db for hearing in hearings]),
        "Median SI-SDR (dB)": middle([hearing.si_sdr_db for hearing in hearings]),
        "Median PESQ": middle([hearing.pesq for hearing in hearings]),
        "Median error of its features": middle([hearing.reanalysis_mae for hearing in hearings]),
    }


def shown_first(text: str) -> float | None:
    """The number that a text begins with: 9, 75.0 %, 1.0 x 10^-5; per cent as a share."""
    found = re.match(r"([\u2212\d.,]+)(?: \u00d7 10([\u2070-\u2079\u00b9\u00b2\u00b3\u207b]+))?( %)?", text)
    if found is None:
        return None
    value = float(found[1].replace(",", "").replace("\u2212", "-"))
    power = int(found[2].translate(SUPERSCRIPTS)) if found[2] else 0
    return value * 10.0**power / (100 if found[3] else 1)


def differences(where: str, row: dict[str, Cell], wanted: Wanted) -> Iterator[str]:
    """What a row says otherwise than it has to: exactly in what it sorts by, rounded in what it shows."""
    for heading, value in wanted.items():
        if heading not in row:
            yield f"{where}: no column {heading}"
            continue
        cell = row[heading]
        if value is None:
            if (cell.value, cell.text) != ("", "\u2013"):
                yield f"{where}, {heading}: {cell} where there is no value"
            continue
        if cell.value in (None, "") or float(cell.value) != pytest.approx(value, rel=1e-12):
            yield f"{where}, {heading}: sorts by {cell.value} and not by {value}"
        said = shown_first(cell.text)
        # Counts stand before the slash of a rate; per cent keep off 0 and 100.
        counted = "/" in cell.text and heading != "Recovered" and heading != "Frames"
        if said is None or (
            not counted and said != pytest.approx(value, rel=0.051, abs=1e-3 if "%" in cell.text else 0)
        ):
            yield f"{where}, {heading}: shows {cell.text!r} and not {value}"


def disagreements(path: Path, records: Sequence[AuditRecord]) -> list[str]:
    """Every number in the page's tables that is not that of the records."""
    tables = page_tables(path)
    return [
        *_verdicts(tables["verdicts"], records),
        *_conditions(tables["conditions"], records),
        *_voices(tables["voices"], records),
        *_reasons(tables["reasons"], records),
        *_records(tables["records-caption"], records),
    ]


def _verdicts(table: PageTable, records: Sequence[AuditRecord]) -> Iterator[str]:
    """Every utterance of these records was attacked once, so that the best attack is the only one."""
    if len(table.rows) != 6:
        yield f"verdicts: {len(table.rows)} rows"
    for row in table.records():
        model, defence = row["Model"].text, row["Defence"].text.replace("no defence", "none")
        group = [each for each in records if (TITLES(each.model), each.defence) == (model, defence)]
        of_all = of_condition(group)
        listened = [each for each in group if each.hearings]
        wins = sum(map(recovered, group))
        wanted = {name: of_all[name] for name in ("Words read", "WER of the recogniser")}
        wanted["Frames"] = of_all["Median frames"]
        wanted["Epsilon"] = group[0].epsilon
        wanted["Speaker named"] = sum(each.hearings[-1].speaker_rank == 1 for each in listened) / len(listened)
        where = f"verdict {model}, {defence}"
        # Of so many stands for the slash here.
        row["Speaker named"].text = row["Speaker named"].text.replace(" of ", " / ")
        yield from differences(where, row, wanted)
        said = row["Came back whole"]
        if not said.text.startswith(f"{wins} of {len(group)} (") or float(said.value or -1) != wins / len(group):
            yield f"{where}: {said}"
        if row["Verdict"].value != ("recovered" if wins else "in part" if any(map(touched, group)) else "failed"):
            yield f"{where}: {row['Verdict']}"


def touched(record: AuditRecord) -> bool:
    return bool(record.frames_close or record.words_recovered)


def _conditions(table: PageTable, records: Sequence[AuditRecord]) -> Iterator[str]:
    seen = 0
    for row in table.records():
        where = f"condition {row['Model'].text}, {row['Defence'].text}"
        group = [
            each
            for each in records
            if (TITLES(each.model), each.defence, number(each.epsilon))
            == (row["Model"].text, row["Defence"].text, row["Epsilon"].text)
        ]
        seen += len(group)
        yield from differences(where, row, of_condition(group))
        wins = sum(map(recovered, group))
        ends = binomtest(wins, len(group)).proportion_ci(method="wilson")
        low, high = percent(ends.low).split("\u00a0")[0], percent(ends.high).replace("\u00a0", " ")
        if f"({low} to {high})" not in row["Rate, 95 % interval"].text:
            yield f"{where}: interval {row['Rate, 95 % interval'].text} and not {low} to {high}"
        if row["Recovered"].text != f"{wins} / {len(group)}":
            yield f"{where}: {row['Recovered'].text} of {len(group)}"
    if seen != len(records):
        yield f"conditions hold {seen} of {len(records)} records"


def _voices(table: PageTable, records: Sequence[AuditRecord]) -> Iterator[str]:
    titles = {"original": "original", "from the true features": "true_features"}
    if len(table.rows) != 6 * len(SOURCES):
        yield f"voices: {len(table.rows)} rows"
    for row in table.records():
        model, defence, audio = (row[name].text for name in ("Model", "Defence", "Audio"))
        group = [each for each in records if (TITLES(each.model), each.defence) == (model, defence)]
        heard = [each for record in group for each in record.hearings if each.source == titles.get(audio, "recovered")]
        yield from differences(f"voice {model}, {defence}, {audio}", row, of_voice(heard))


def _reasons(table: PageTable, records: Sequence[AuditRecord]) -> Iterator[str]:
    counts = Counter(
        (TITLES(each.model), each.reason or "no reason was recorded") for each in records if not recovered(each)
    )
    if len(table.rows) != len(counts):
        yield f"reasons: {len(table.rows)} of {len(counts)}"
    for row in table.records():
        reason = row["Reason"].text.rsplit(" first in ", 1)[0]
        yield from differences(f"reason {reason}", row, {"Count": counts[row["Model"].text, reason]})


def _records(table: PageTable, records: Sequence[AuditRecord]) -> Iterator[str]:
    by_name = {record.utterance: record for record in records}
    for row in table.records():
        record = by_name[row["Utterance"].text]
        wanted = {heading: getattr(record, name) for heading, name in FIELDS.items()}
        if record.frames_true is not None and record.frames_recovered is None:
            # Nothing came back, of so many.
            del wanted["Frames"]
        yield from differences(f"record {record.utterance}", row, wanted)


@pytest.fixture
def page(build_run: BuildRun) -> Path:
    return write_report(build_run(list(grid(240)), examples=[]))


def test_every_number_of_every_table_is_that_of_the_records(page: Path) -> None:
    assert disagreements(page, list(grid(240))) == []


def one_less_recovered(text: str) -> str:
    return re.sub(
        r'data-value="(\d+)">\1 / ', lambda found: f'data-value="{int(found[1]) - 1}">{found[1]} / ', text, count=1
    )


def another_voice(text: str) -> str:
    place = text.index('id="voices"')
    return text[:place] + re.sub(r'data-value="0\.(\d+)">', r'data-value="0.\g<1>1">', text[place:], count=1)


def another_verdict(text: str) -> str:
    place = text.index('id="verdicts"')
    return text[:place] + re.sub(r'data-value="0\.(\d+)">', r'data-value="0.\g<1>1">', text[place:], count=1)


def another_count_of_a_reason(text: str) -> str:
    place = text.index('id="reasons"')
    return text[:place] + re.sub(r'data-value="(\d+)">', r'data-value="\g<1>0">', text[place:], count=1)


def another_error_of_a_record(text: str) -> str:
    place = text.index('id="record-table"')
    return text[:place] + text[place:].replace('data-value="2e-06"', 'data-value="2.1e-06"', 1)


@pytest.mark.parametrize(
    "change",
    [one_less_recovered, another_verdict, another_voice, another_count_of_a_reason, another_error_of_a_record],
)
def test_a_number_that_is_not_theirs_is_found(page: Path, change: Callable[[str], str]) -> None:
    text = page.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    page.write_text(changed, encoding="utf-8")
    assert len(disagreements(page, list(grid(240)))) == 1
