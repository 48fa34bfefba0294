"""From audit records to the numbers a report shows: counts, rates, medians, by pure functions."""

import difflib
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from overheard.audit.records import AuditRecord

Verdict = Literal["recovered", "in part", "failed"]
Change = Literal["same", "missing", "wrong"]
Key = TypeVar("Key", bound=Hashable)

NORMAL_QUANTILE = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for 95 % intervals."""


@dataclass(frozen=True)
class Rate:
    """A share of trials with its 95 % interval.

    Attributes:
        successes: how many.
        trials: of how many, at least 1.
        low: lower end of the interval, 0 to 1.
        high: upper end, 0 to 1.
    """

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Successes over trials."""
        return self.successes / self.trials


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
    median_mae: float | None
    median_snr_db: float | None
    median_seconds: float | None
    median_peak_mb: float | None
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


def wilson(successes: int, trials: int) -> Rate | None:
    """A rate with its 95 % score interval (Wilson 1927); None where nothing was tried."""
    if trials == 0:
        return None
    share, z2 = successes / trials, NORMAL_QUANTILE**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = NORMAL_QUANTILE * (share * (1 - share) / trials + z2 / (4 * trials**2)) ** 0.5 / (1 + z2 / trials)
    # Rounding may not push the ends off the exact values that they have at 0 and at 1.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == trials else middle + half
    return Rate(successes, trials, low, high)


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that exist, None where none does."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


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
        median_mae=median(record.feature_mae for record in recovered),
        median_snr_db=median(record.feature_snr_db for record in recovered),
        median_seconds=median(record.seconds for record in records),
        median_peak_mb=median(record.peak_mb for record in records),
        certified=sum(record.certified is True for record in records),
        transcripts_read=len(read),
        transcripts_exact=sum(record.transcript_recovered == record.transcript_true for record in read),
    )


def condition(record: AuditRecord) -> Condition:
    """What a record shares with others of its kind."""
    return Condition(**{name: getattr(record, name) for name in Condition.__dataclass_fields__})


def grouped(records: Iterable[AuditRecord], key: Callable[[AuditRecord], Key]) -> dict[Key, list[AuditRecord]]:
    """Records by key, keys in the order in which they first appear."""
    groups: dict[Key, list[AuditRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
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
    said, read = true.split(), recovered.split()
    changes: list[tuple[Change, str]] = []
    matcher = difflib.SequenceMatcher(a=said, b=read, autojunk=False)
    for operation, from_said, to_said, from_read, to_read in matcher.get_opcodes():
        if operation == "equal":
            changes.append(("same", " ".join(said[from_said:to_said])))
            continue
        if to_said > from_said:
            changes.append(("missing", " ".join(said[from_said:to_said])))
        if to_read > from_read:
            changes.append(("wrong", " ".join(read[from_read:to_read])))
    return changes
