"""`AuditRecord`: one attack on one update, scored; one line of results.jsonl.

What could not be computed is null, never a made-up number. A batch of N utterances gives N records.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from overheard.errors import InputError
from overheard.metrics.alignment import CLOSE
from overheard.recognition.configuration import config_from_file
from overheard.storage import parse_json

RESULTS = "results.jsonl"
MOST_BYTES = 1 << 30
"""Of results.jsonl: a million records."""

Status = Literal["ok", "failed"]
Source = Literal["original", "true_features", "recovered"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class Hearing:
    """What can be heard in one version of an utterance's audio; what does not apply or could not be had is None.

    Attributes:
        source: what was said; audio made from the true features, the best that any attack could give; or audio made
            from the recovered ones.
        vocoder: name of what made the audio of features.
        reanalysis_mae: mean absolute difference between the features of that audio and those that it was made from.
        log_spectral_distance_db: to the original, dB.
        mel_cepstral_distortion_db: to the original, dB.
        stoi: short-time objective intelligibility, 0 to 1.
        si_sdr_db: scale-invariant signal-to-distortion ratio, dB.
        pesq: wide-band perceptual quality, -0.5 to 4.5.
        encoder: name of what compared the voice with others.
        speaker_rank: place of the true speaker among those enrolled, 1 is best for the attacker.
        speaker_candidates: speakers enrolled.
        speaker_score: cosine to the true speaker.
        other_scores: cosines to all others.
        recogniser: name of what listened for words.
        transcript: what it heard.
        word_edits: substitutions, deletions and insertions of it.
        words: words that were said.
        cer: character error rate.
        wer: word error rate.
        reasons: why a value is None, by its name.
    """

    source: Source
    vocoder: str | None = None
    reanalysis_mae: float | None = None
    log_spectral_distance_db: float | None = None
    mel_cepstral_distortion_db: float | None = None
    stoi: float | None = None
    si_sdr_db: float | None = None
    pesq: float | None = None
    encoder: str | None = None
    speaker_rank: int | None = None
    speaker_candidates: int | None = None
    speaker_score: float | None = None
    other_scores: tuple[float, ...] | list[float] = ()
    recogniser: str | None = None
    transcript: str | None = None
    word_edits: int | None = None
    words: int | None = None
    cer: float | None = None
    wer: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON has lists alone.
        object.__setattr__(self, "other_scores", tuple(self.other_scores))


@dataclass(frozen=True)
class AuditRecord:
    """One line of results.jsonl; what does not apply or could not be had is None.

    Attributes:
        utterance: id of the utterance.
        speaker: id of its speaker.
        seconds_audio: its duration, s.
        model: registry name, path or module:function.
        weights: "random" or "trained", and where from.
        kind: "gradient" or "delta".
        mode: "eval" or "train": how the client ran normalisation and dropout.
        batch: utterances in the update.
        local_steps: steps of local SGD.
        defence: name of the defence, "none" without one.
        attack: name of the attack; of a ladder, the rung that succeeded or came nearest.
        rungs: of a ladder: what each rung came to, from cheap to dear.
        status: "ok" when features came back, "failed" otherwise.
        reason: why it failed or came back in part.
        frames_true: T.
        frames_recovered: frames that came back.
        feature_mae: mean absolute error of the features, in their own unit; missing frames count as zeros.
        feature_snr_db: power of the true features over that of the error, dB.
        transcript_true: what was said.
        transcript_recovered: what the attack read.
        cer: character error rate.
        wer: word error rate.
        stoi: short-time objective intelligibility, 0 to 1.
        speaker_rank: place of the true speaker among those enrolled, 1 is best.
        certified: the re-simulated update equals the observed one.
        unique: the attack's own test of uniqueness.
        prior: what the attacker was declared to know, by name.
        seconds: wall time of the attack on the features, s.
        seconds_words: wall time of transcript and certificate behind it, s.
        peak_mb: its peak memory above that at the start, MB.
        frames_close: frames whose own mean absolute error is below `CLOSE`, whatever became of the others.
        words_true: words that were said.
        words_recovered: of these, words that the attack read, in their order.
        epsilon: of the defence's (epsilon, delta) guarantee over the whole training.
        delta: of the same.
        utility_wer: word error rate of a recogniser trained under this defence, on speech it has not heard: its price.
        seed: of weights and attack.
        version: of overheard.
        settings: hash of everything else in the configuration; see the run's config.json.
        example: folder of this utterance's signals within the run, if they were kept.
        hearings: what can be heard in the original, in the true and in the recovered features; see `Hearing`.
    """

    utterance: str
    speaker: str | None = None
    seconds_audio: float | None = None
    model: str | None = None
    weights: str | None = None
    kind: str | None = None
    mode: str | None = None
    batch: int | None = None
    local_steps: int | None = None
    defence: str | None = None
    attack: str | None = None
    rungs: str | None = None
    status: Status = "failed"
    reason: str | None = None
    frames_true: int | None = None
    frames_recovered: int | None = None
    feature_mae: float | None = None
    feature_snr_db: float | None = None
    transcript_true: str | None = None
    transcript_recovered: str | None = None
    cer: float | None = None
    wer: float | None = None
    stoi: float | None = None
    speaker_rank: int | None = None
    certified: bool | None = None
    unique: bool | None = None
    prior: str | None = None
    seconds: float | None = None
    seconds_words: float | None = None
    peak_mb: float | None = None
    frames_close: int | None = None
    words_true: int | None = None
    words_recovered: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    utility_wer: float | None = None
    seed: int | None = None
    version: str | None = None
    settings: str | None = None
    example: str | None = None
    # Not part of the hash: a hearing's reasons are a dictionary.
    hearings: tuple[Hearing, ...] = field(default=(), hash=False)

    @property
    def recovered(self) -> bool:
        """All frames came back with a mean absolute error below `CLOSE`."""
        return self.frames_recovered == self.frames_true and self.feature_mae is not None and self.feature_mae < CLOSE


FIELDS = tuple(each.name for each in fields(AuditRecord))
_KNOWN = frozenset(FIELDS)


def to_line(record: AuditRecord) -> str:
    """The record as a line of results.jsonl, its end included."""
    values = {name: getattr(record, name) for name in FIELDS}
    values["hearings"] = [asdict(each) for each in record.hearings]
    return json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n"


def append_record(folder: Path, record: AuditRecord) -> None:
    """Add one line to results.jsonl, which its owner alone can read, and have it on disk before returning."""
    with open(folder / RESULTS, "a", encoding="utf-8", opener=owners_alone) as file:
        file.write(to_line(record))
        file.flush()
        os.fsync(file.fileno())


def owners_alone(path: str, flags: int) -> int:
    """Open a file as `open` does, made readable by its owner alone."""
    return os.open(path, flags, 0o600)


def drop_partial_line(folder: Path) -> None:
    """Cut off a last line that a crash left unfinished, so that the next record has a line of its own."""
    path = folder / RESULTS
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def load_records(folder: Path) -> list[AuditRecord]:
    """Every record of a run, in the order written; a last line cut short by a crash is left out.

    Raises:
        InputError: no results.jsonl there, one that is larger than any run's, or a line that is no record.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(str(folder), f"no {RESULTS} in it", "name the --out folder of overheard audit or demo")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(str(path), f"more than {MOST_BYTES >> 20} MB", "split the run into several folders")
    records = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith("\n"):
                records.append(_record(line, f"{path}:{number}"))
    return records


def timeless(records: Iterable[AuditRecord]) -> list[AuditRecord]:
    """What a repetition must bring again: in an order of their own, without times, memory and places of examples."""
    plain = [replace(each, seconds=None, seconds_words=None, peak_mb=None, example=None) for each in records]
    return sorted(plain, key=lambda each: (str(each.settings), each.utterance))


def _record(line: str, where: str) -> AuditRecord:
    values = parse_json(line, where, "remove that line")
    if not isinstance(values, dict) or "utterance" not in values or not set(values) <= _KNOWN:
        raise InputError(where, "no audit record", "remove that line")
    if values.get("hearings") is None:
        values["hearings"] = ()
    record = config_from_file(AuditRecord, values, where, "audit record")
    for part in (record, *record.hearings):
        # JSON has numbers that become infinite here.
        if any(isinstance(value, float) and not math.isfinite(value) for value in vars(part).values()):
            raise InputError(where, "a number that is not finite", "remove that line")
    return record
