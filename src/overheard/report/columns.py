"""The columns of the table of records: what each shows and what it sorts by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overheard.audit.records import AuditRecord
from overheard.report.summary import verdict
from overheard.report.titles import Titles
from overheard.report.wording import ABSENT, DELTA, EPSILON, PRICE, number


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        value: what a record has there, and what the column sorts by.
        numeric: sorts by size and is set flush right.
        text: how a value is written.
        always: shown even where no record has a value.
    """

    title: str
    value: Callable[[AuditRecord], str | float | None]
    numeric: bool = True
    text: Callable[[AuditRecord], str] | None = None
    always: bool = False

    def written(self, record: AuditRecord) -> str:
        """The cell's text."""
        if self.text is not None:
            return self.text(record)
        value = self.value(record)
        return number(value) if isinstance(value, int | float) else value or ABSENT


def _yes_no(value: bool | None) -> str:
    return ABSENT if value is None else "yes" if value else "no"


def _frames(record: AuditRecord) -> str:
    if record.frames_true is None:
        return ABSENT
    return f"{number(record.frames_recovered or 0)} / {number(record.frames_true)}"


MODEL = "Model"
"""Shown by its title, which depends on the other models of the report."""
COLUMNS = (
    Column("Utterance", lambda record: record.utterance, numeric=False, always=True),
    Column("Result", verdict, numeric=False, always=True),
    Column("Reason", lambda record: record.reason, numeric=False),
    Column(MODEL, lambda record: record.model, numeric=False),
    Column("Speaker", lambda record: record.speaker, numeric=False),
    Column("Weights", lambda record: record.weights, numeric=False),
    Column("Update", lambda record: record.kind, numeric=False),
    Column("Mode", lambda record: record.mode, numeric=False),
    Column("Batch", lambda record: record.batch),
    Column("Local steps", lambda record: record.local_steps),
    Column("Defence", lambda record: record.defence, numeric=False),
    Column(EPSILON, lambda record: record.epsilon),
    Column(DELTA, lambda record: record.delta),
    Column(PRICE, lambda record: record.utility_wer),
    Column("Attack", lambda record: record.attack, numeric=False),
    Column("Prior", lambda record: record.prior, numeric=False),
    Column("Audio (s)", lambda record: record.seconds_audio),
    Column("Frames", lambda record: record.frames_recovered, text=_frames),
    Column("Feature error", lambda record: record.feature_mae, always=True),
    Column("SNR (dB)", lambda record: record.feature_snr_db),
    Column("CER", lambda record: record.cer),
    Column("WER", lambda record: record.wer),
    Column("STOI", lambda record: record.stoi),
    Column("Speaker rank", lambda record: record.speaker_rank),
    Column("Certified", lambda record: _yes_no(record.certified), numeric=False),
    Column("Unique", lambda record: _yes_no(record.unique), numeric=False),
    Column("Attack (s)", lambda record: record.seconds),
    Column("Peak (MB)", lambda record: record.peak_mb),
)
SETTINGS = (
    MODEL, "Weights", "Update", "Mode", "Batch", "Local steps", "Defence", EPSILON, DELTA, PRICE, "Attack", "Prior",
)  # fmt: skip
"""Columns that say how an update was made: where all records agree, one line above the table says it for all."""


def columns_shown(records: Sequence[AuditRecord]) -> list[Column]:
    """The columns that tell records apart: those with a value, less the settings that all records share."""
    shown = []
    for column in COLUMNS:
        values = {column.value(record) for record in records} - {None, ABSENT}
        shared = column.title in SETTINGS and len({column.value(record) for record in records}) == 1
        if column.always or (values and not shared):
            shown.append(column)
    return shown


def settings_shared(records: Sequence[AuditRecord], titles: Titles) -> list[tuple[str, str]]:
    """Title and text of the settings that all records have in common."""
    shared = []
    for column in COLUMNS:
        values = {column.value(record) for record in records}
        if column.title in SETTINGS and len(values) == 1 and values != {None}:
            said = titles(records[0].model) if column.title == MODEL else column.written(records[0])
            shared.append((column.title, said))
    return shared
