"""Records of a grid: two models, three defences with prices and guarantees, voices listened to."""

import random
from collections.abc import Iterator
from dataclasses import replace

from audited_run import failed, record

from overheard.audit.records import SOURCES, AuditRecord, Hearing

DEFENCES = (("none", None, 0.12), ("noise $1_{a}&% <b>", 8.0, 0.19), ("sign", None, 0.15))


def hearings(index: int) -> tuple[Hearing, ...]:
    """The original and the true features are recognised; what was recovered is, for half of the utterances."""
    found = []
    for source in SOURCES:
        good = source != "recovered" or index // 6 % 2 == 0
        found.append(
            Hearing(
                source,
                stoi=None if source == "original" else 0.9 if good else 0.2,
                log_spectral_distance_db=None if source == "original" else 6.0 + index % 5,
                si_sdr_db=None if source == "original" else -20.0 - index % 3,
                pesq=None if source == "original" else 1.5 + index % 4 / 10,
                vocoder=None if source == "original" else "griffin-lim",
                reanalysis_mae=None if source == "original" else 0.2 + index % 7 / 100,
                encoder="timbre",
                speaker_rank=1 if good else 7,
                speaker_candidates=10,
                speaker_score=0.9 if good else 0.1,
                other_scores=(0.3,) * 9,
                recogniser="model.safetensors",
                transcript="go do you hear" if good else "go",
                word_edits=0 if good else 3,
                words=4,
                wer=0.0 if good else 0.75,
            )
        )
    return tuple(found)


def grid(count: int) -> Iterator[AuditRecord]:
    """So many records; without a defence most come back, under noise none does."""
    chance = random.Random(0)
    for index in range(count):
        defence, epsilon, price = DEFENCES[index % 3]
        model = ("deepspeech1", "mine_50%:build")[index // 3 % 2]
        made = record(index % 40, utterance=f"u{index}", model=model, frames_close=100, words_true=4)
        if index % 3 == 1:
            made = failed(index % 40, "the equations have no solution")
        elif chance.random() < 0.2:
            made = replace(made, feature_mae=0.2 + chance.random(), frames_close=30)
        elif chance.random() < 0.5:
            made = replace(made, transcript_recovered="go do", wer=0.5, words_recovered=2)
        made = replace(
            made, utterance=f"u{index}", model=model, defence=defence, epsilon=epsilon, utility_wer=price, delta=1e-5
        )
        yield replace(made, hearings=hearings(index)) if index < 30 else made
