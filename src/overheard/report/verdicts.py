"""The verdict on each model under each defence: what came back in words, voice and identity, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from overheard.audit.records import AuditRecord
from overheard.metrics.intervals import Estimate, Rate, median_estimate, ratio_estimate, wilson
from overheard.report.leakage import defended, recovered_by_any
from overheard.report.summary import Verdict, grouped, share_of_frames, verdict
from overheard.report.wording import counted

NO_DEFENCE = "none"


@dataclass(frozen=True)
class Standing:
    """What all attacks together brought back of one model under one defence: of each utterance, the most.

    Attributes:
        model: as in the records.
        defence: as in the records.
        epsilon: of its guarantee, where it has one.
        delta: of the same.
        attacks: that were tried, by name.
        rate: utterances that any of them recovered.
        touched: whether a single frame or word came back.
        frames: median share of an utterance's frames that came back.
        words: share of the words said that were read.
        speaker: utterances whose recovered audio named the speaker first of all enrolled; of those listened to.
        utility_wer: median word error rate of recognisers trained like this, the price of the defence.
    """

    model: str | None
    defence: str | None
    epsilon: float | None
    delta: float | None
    attacks: tuple[str, ...]
    rate: Rate
    touched: bool
    frames: Estimate | None
    words: Estimate | None
    speaker: Rate | None
    utility_wer: Estimate | None

    @property
    def outcome(self) -> Verdict:
        """`recovered` where any utterance was, `failed` where neither a frame nor a word came back."""
        if self.rate.successes:
            return "recovered"
        return "in part" if self.touched else "failed"


def standings(records: Sequence[AuditRecord]) -> list[Standing]:
    """One for each model, defence and guarantee, in the records' order."""
    found = []
    for key, group in grouped(records, defended).items():
        utterances = list(grouped(group, lambda record: record.utterance).values())
        best = [max(each, key=lambda record: record.words_recovered or 0) for each in utterances]
        read = [record for record in best if record.transcript_recovered is not None]
        named = [known for each in utterances if (known := _named(each)) is not None]
        rate = recovered_by_any(group)
        assert rate is not None
        found.append(
            Standing(
                *key,
                attacks=tuple(dict.fromkeys(record.attack for record in group if record.attack)),
                rate=rate,
                touched=any(map(_touched, group)),
                frames=median_estimate([_most_frames(each) for each in utterances]),
                words=ratio_estimate(
                    [record.words_recovered or 0 for record in read], [record.words_true or 0 for record in read]
                ),
                speaker=wilson(sum(named), len(named)),
                utility_wer=median_estimate([record.utility_wer for record in group]),
            )
        )
    return found


def verdict_headline(found: Sequence[Standing]) -> str:
    """Under how many defences anything came back whole."""
    leaking, defences = _leaking(found), _defences(found)
    under = f"under {len(leaking & defences)} of {counted(len(defences), 'defence')}"
    if not leaking:
        return "No utterance came back whole"
    if NO_DEFENCE not in {each.defence for each in found}:
        return f"Speech came back {under}"
    if NO_DEFENCE not in leaking:
        return f"Speech came back {under}, and not without one"
    return f"Speech came back without a defence, and {under}" if defences else "Speech came back"


def verdict_sentences(found: Sequence[Standing]) -> list[str]:
    """Which defences let speech through, and which withstood what was tried."""
    defences, leaking = _defences(found), _leaking(found)
    partly = {each.defence for each in found if each.outcome == "in part"} - leaking
    kinds = (
        ("Utterances of at least one model came back whole under {}.", leaking & defences),
        ("Parts of utterances came back under {}, but none whole.", partly & defences),
        ("Nothing came back under {}: this holds for the attacks that were tried, and for no others.",
         defences - leaking - partly),
    )  # fmt: skip
    ordered = list(dict.fromkeys(each.defence for each in found))
    return [text.format(", ".join(str(name) for name in ordered if name in chosen)) for text, chosen in kinds if chosen]


def _leaking(found: Sequence[Standing]) -> set[str | None]:
    return {each.defence for each in found if each.outcome == "recovered"}


def _defences(found: Sequence[Standing]) -> set[str | None]:
    return {each.defence for each in found} - {NO_DEFENCE, None}


def _touched(record: AuditRecord) -> bool:
    share = share_of_frames(record)
    if share is None and record.words_recovered is None:
        return verdict(record) != "failed"
    return bool(share or record.words_recovered)


def _most_frames(records: Sequence[AuditRecord]) -> float | None:
    shares = [share for record in records if (share := share_of_frames(record)) is not None]
    return max(shares, default=None)


def _named(records: Sequence[AuditRecord]) -> bool | None:
    """Whether the audio recovered by any attack named the speaker; None where nobody could have been named."""
    compared = [record for record in records if any(each.speaker_rank is not None for each in record.hearings)]
    if not compared:
        return None
    return any(each.source == "recovered" and each.speaker_rank == 1 for one in compared for each in one.hearings)
