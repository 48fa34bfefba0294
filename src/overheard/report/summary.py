"""From audit records to the numbers a report shows: counts, rates, medians, by pure functions."""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from overheard.audit.records import AuditRecord
from overheard.metrics.alignment import align_words
from overheard.metrics.intervals import Estimate, Rate, median_estimate, ratio_estimate, wilson

Verdict = Literal["recovered", "in part", "failed"]
Change = Literal["same", "missing", "wrong"]
Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Summary:
    """What a set of records comes to; None where no record has the value.

    Attributes:
        repeated: some utterance has more than one record, under other conditions.
        rate: records whose utterance was recovered, of all; None without records.
        in_part: records where features came back, but not all of them or not closely enough.
        failed: records where nothing came back.
        shortest: shortest utterance recovered, s.
        longest: longest utterance recovered, s.
        median_mae: median feature error of the recovered, in the features' own unit.
        median_snr_db: their median signal-to-noise ratio, dB.
        median_seconds: median wall time of the attack over all records that have one, s.
        median_peak_mb: median peak memory over the same, MB.
        frames: median share of an utterance's frames that came back, of all records where it was counted.
        words: share of the words said that were read, over all records that hold a transcript.
        utility_wer: median word error rate of recognisers trained like this, the price of the defence.
        certified: records whose re-simulated update equals the observed one.
        transcripts_read: records with a recovered transcript.
        transcripts_exact: those where it is what was said, letter for letter.
    """

    repeated: bool
    rate: Rate | None
    in_part: int
    failed: int
    shortest: float | None
    longest: float | None
    median_mae: Estimate | None
    median_snr_db: Estimate | None
    median_seconds: Estimate | None
    median_peak_mb: Estimate | None
    frames: Estimate | None
    words: Estimate | None
    utility_wer: Estimate | None
    certified: int
    transcripts_read: int
    transcripts_exact: int


@dataclass(frozen=True)
class Condition:
    """What records are grouped by: the update's model and how it was made, defended and attacked."""

    model: str | None
    weights: str | None
    kind: str | None
    mode: str | None
    batch: int | None
    local_steps: int | None
    defence: str | None
    attack: str | None
    prior: str | None
    epsilon: float | None
    delta: float | None


@dataclass(frozen=True)
class FailureReason:
    """One reason why utterances of a model did not come back whole, and the first utterance it befell."""

    model: str | None
    reason: str
    count: int
    utterance: str


def verdict(record: AuditRecord) -> Verdict:
    """`recovered` by the record's own rule, `in part` where some features came back, `failed` where none did."""
    if record.recovered:
        return "recovered"
    return "in part" if record.status == "ok" else "failed"


def summarise(records: Sequence[AuditRecord]) -> Summary:
    """Counts, the rate of recovery and medians of a set of records."""
    verdicts = Counter(map(verdict, records))
    recovered = [record for record in records if record.recovered]
    lengths = [record.seconds_audio for record in recovered if record.seconds_audio is not None]
    read = [record for record in records if record.transcript_recovered is not None]
    return Summary(
        repeated=len({record.utterance for record in records}) < len(records),
        rate=wilson(len(recovered), len(records)),
        in_part=verdicts["in part"],
        failed=verdicts["failed"],
        shortest=min(lengths, default=None),
        longest=max(lengths, default=None),
        median_mae=median_estimate([record.feature_mae for record in recovered]),
        median_snr_db=median_estimate([record.feature_snr_db for record in recovered]),
        median_seconds=median_estimate([record.seconds for record in records]),
        median_peak_mb=median_estimate([record.peak_mb for record in records]),
        frames=median_estimate([share_of_frames(record) for record in records]),
        words=ratio_estimate(
            [record.words_recovered or 0 for record in read], [record.words_true or 0 for record in read]
        ),
        utility_wer=median_estimate([record.utility_wer for record in records]),
        certified=sum(record.certified is True for record in records),
        transcripts_read=len(read),
        transcripts_exact=sum(record.transcript_recovered == record.transcript_true for record in read),
    )


def condition(record: AuditRecord) -> Condition:
    """What a record shares with others of its kind."""
    return Condition(**{name: getattr(record, name) for name in Condition.__dataclass_fields__})


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Records, or what was made of them, by key, keys in the order in which they first appear."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def failure_reasons(records: Iterable[AuditRecord]) -> list[FailureReason]:
    """Why utterances did not come back whole, the commonest reason first."""
    groups = grouped(
        (record for record in records if not record.recovered),
        lambda record: (record.model, record.reason or "no reason was recorded"),
    )
    reasons = [FailureReason(*key, len(group), group[0].utterance) for key, group in groups.items()]
    return sorted(reasons, key=lambda reason: -reason.count)


def records_shown(records: Sequence[AuditRecord], limit: int) -> list[AuditRecord]:
    """At most `limit` records in their order; of more, the first failures up to a half, then the first successes."""
    if len(records) <= limit:
        return list(records)
    failures = [index for index, record in enumerate(records) if not record.recovered]
    successes = [index for index, record in enumerate(records) if record.recovered]
    of_failures = max(limit // 2, limit - len(successes))
    chosen = failures[:of_failures]
    chosen += successes[: limit - len(chosen)]
    return [records[index] for index in sorted(chosen)]


def transcript_changes(true: str, recovered: str) -> list[tuple[Change, str]]:
    """What was said and what was read, word by word: runs that agree, that are `missing` and that are `wrong`."""
    changes: list[tuple[Change, str]] = []
    for word in align_words(true, recovered):
        if word.fate == "hit":
            changes.append(("same", word.said or ""))
            continue
        if word.said is not None:
            changes.append(("missing", word.said))
        if word.read is not None:
            changes.append(("wrong", word.read))
    return [(change, " ".join(words)) for change, words in _runs(changes)]


def _runs(changes: Sequence[tuple[Change, str]]) -> Iterator[tuple[Change, list[str]]]:
    """Neighbours of one kind together; between words that agree, first what is missing and then what is wrong."""
    order: tuple[Change, ...] = ("missing", "wrong")
    for agreeing, stretch in itertools.groupby(changes, lambda change: change[0] == "same"):
        words = list(stretch)
        for kind in ("same",) if agreeing else order:
            if own := [word for change, word in words if change == kind]:
                yield kind, own


def share_of_frames(record: AuditRecord) -> float | None:
    """Share of the frames that came back closely; None where they were not counted."""
    if record.frames_close is None or not record.frames_true:
        return None
    return record.frames_close / record.frames_true
