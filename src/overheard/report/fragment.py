"""A result as a piece of HTML for a notebook: what came back, in words and one row an utterance."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from overheard.audit.records import AuditRecord
from overheard.report.summary import summarise, transcript_changes, verdict
from overheard.report.wording import ABSENT, headline, model_sentence, number

ROWS = 20


def result_fragment(records: Sequence[AuditRecord]) -> str:
    """Headline, sentence and the first rows; everything from the data is escaped."""
    summary = summarise(records)
    rows = Markup("").join(map(_row, records[:ROWS]))
    more = Markup("<p>{} more are in records.</p>").format(len(records) - ROWS) if len(records) > ROWS else Markup("")
    titles = ("utterance", "result", "frames", "feature error", "words")
    head = Markup("").join(Markup('<th scope="col" style="text-align:left">{}</th>').format(title) for title in titles)
    return str(
        Markup("<div><h3>{}</h3><p>{}</p><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}</div>").format(
            headline(summary), model_sentence(summary), head, rows, more
        )
    )


def _row(record: AuditRecord) -> Markup:
    frames = f"{record.frames_recovered or 0} of {record.frames_true}" if record.frames_true else ABSENT
    cells = (record.utterance, verdict(record), frames, number(record.feature_mae))
    joined = Markup("").join(Markup('<td style="text-align:left">{}</td>').format(cell) for cell in cells)
    return Markup('<tr>{}<td style="text-align:left">{}</td></tr>').format(joined, _words(record))


def _words(record: AuditRecord) -> Markup:
    """What was read, beside what was said; the reason where nothing was."""
    if record.transcript_recovered is None or record.transcript_true is None:
        return escape(record.reason or ABSENT)
    marked = {"same": Markup("{}"), "missing": Markup("<del>{}</del>"), "wrong": Markup("<ins>{}</ins>")}
    changes = transcript_changes(record.transcript_true, record.transcript_recovered)
    return Markup(" ").join(marked[change].format(words) for change, words in changes)
