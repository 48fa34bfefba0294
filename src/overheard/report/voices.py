"""What could be heard: rates and medians of the hearings of records, for each version of the audio."""

from collections.abc import Sequence
from dataclasses import dataclass

from overheard.audit.records import SOURCES, AuditRecord, Hearing, Source
from overheard.metrics.identification import ReIdentification, Trial, re_identification
from overheard.metrics.intervals import Estimate, median_estimate, ratio_estimate
from overheard.report.summary import grouped

TITLES: dict[Source, str] = {
    "original": "original",
    "true_features": "from the true features",
    "recovered": "from the recovered features",
}


@dataclass(frozen=True)
class Voice:
    """What one version of the audio gave away, over the records of one model and defence.

    Attributes:
        model: as in the records.
        defence: as in the records.
        source: which version.
        count: utterances listened to.
        encoder: what compared the voices.
        recogniser: what listened for words.
        vocoder: what made the audio of features; several names where it differs.
        speaker: rates of re-identification; None where no voice was compared.
        wer: word error rate of the recogniser: edits over words of all utterances.
        stoi: median intelligibility, 0 to 1.
        log_spectral_distance_db: median, dB.
        mel_cepstral_distortion_db: median, dB.
        si_sdr_db: median, dB.
        pesq: median, -0.5 to 4.5.
        reanalysis_mae: median error of the audio's features against those that it was made of.
    """

    model: str | None
    defence: str | None
    source: Source
    count: int
    encoder: str | None
    recogniser: str | None
    vocoder: str | None
    speaker: ReIdentification | None
    wer: Estimate | None
    stoi: Estimate | None
    log_spectral_distance_db: Estimate | None
    mel_cepstral_distortion_db: Estimate | None
    si_sdr_db: Estimate | None
    pesq: Estimate | None
    reanalysis_mae: Estimate | None


def voices(records: Sequence[AuditRecord]) -> list[Voice]:
    """One for each model, defence and version of the audio that was listened to."""
    heard = [record for record in records if record.hearings]
    found = []
    for (model, defence), group in grouped(heard, lambda record: (record.model, record.defence)).items():
        for source in SOURCES:
            own = [hearing for record in group for hearing in record.hearings if hearing.source == source]
            if own:
                found.append(_voice(model, defence, source, own, _comparable(group)))
    return found


def _comparable(records: Sequence[AuditRecord]) -> int:
    """Records whose original voice was compared: of those, a version without a rank has lost its voice."""
    return sum(
        hearing.source == "original" and hearing.speaker_rank is not None
        for record in records
        for hearing in record.hearings
    )


def _voice(
    model: str | None, defence: str | None, source: Source, hearings: Sequence[Hearing], comparable: int
) -> Voice:
    trials = [
        Trial(each.speaker_rank, each.speaker_candidates, each.speaker_score, tuple(each.other_scores))
        for each in hearings
        if each.speaker_rank is not None and each.speaker_candidates is not None and each.speaker_score is not None
    ]
    listened = [each for each in hearings if each.word_edits is not None and each.words is not None]
    return Voice(
        model=model,
        defence=defence,
        source=source,
        count=len(hearings),
        encoder=next((each.encoder for each in hearings if each.encoder), None),
        recogniser=next((each.recogniser for each in hearings if each.recogniser), None),
        vocoder=" or ".join(dict.fromkeys(each.vocoder for each in hearings if each.vocoder)) or None,
        speaker=re_identification(trials, silent=max(0, comparable - len(trials))),
        wer=ratio_estimate([each.word_edits or 0 for each in listened], [each.words or 0 for each in listened]),
        stoi=median_estimate([each.stoi for each in hearings]),
        log_spectral_distance_db=median_estimate([each.log_spectral_distance_db for each in hearings]),
        mel_cepstral_distortion_db=median_estimate([each.mel_cepstral_distortion_db for each in hearings]),
        si_sdr_db=median_estimate([each.si_sdr_db for each in hearings]),
        pesq=median_estimate([each.pesq for each in hearings]),
        reanalysis_mae=median_estimate([each.reanalysis_mae for each in hearings]),
    )
