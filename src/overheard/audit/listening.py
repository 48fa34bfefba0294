"""Listen to what an audit kept: whose voice it is, what an outside recogniser hears, how close it sounds.

For every record with an example the same is measured on the original, on audio made from the true features and on
audio made from the recovered ones. The second is the best that an attack could give; where the first fails, the
listener is at fault and not the attack.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from overheard.audit.examples import DETAILS, MADE, remake_audio
from overheard.audit.records import RESULTS, SOURCES, AuditRecord, Hearing, Source, load_records, to_line
from overheard.errors import InputError
from overheard.metrics.audio_quality import score_audio
from overheard.metrics.recogniser import Listener, listener
from overheard.metrics.speaker import SAMPLE_RATE, Encoder, Enrolment, enrol, identify, speaker_encoder
from overheard.metrics.vocoders import vocoder as named_vocoder
from overheard.metrics.words import count_errors
from overheard.speech.audio import read_audio
from overheard.speech.corpus import Selection, load_corpus, load_utterance, select
from overheard.storage import parse_json, read_text, write_text

NOTHING = "nothing came back"
AUDIO_OF = {stem: name for name, stem in MADE.items()}
"""Versions of the audio that were made from features, and which features those are."""
UTTERANCES_PER_SPEAKER = 8
"""Enrolled of each: the mean of more moves little."""


def listen(
    folder: Path,
    corpus: Path | None,
    encoder: str | None,
    recogniser: str | None,
    console: Console,
    vocoder: str | None = None,
) -> list[AuditRecord]:
    """Add hearings to the records of a run, and write its results.jsonl anew.

    Args:
        folder: of a run.
        corpus: whose utterances, but for those listened to, teach the encoder its speakers; None leaves voices out.
        encoder: name of a speaker encoder; None leaves voices out.
        recogniser: name of an outside recogniser; None leaves words out.
        console: for progress.
        vocoder: name of what makes the audio of the features anew; None listens to what is there.

    Raises:
        InputError: no examples were kept, or no speaker can be enrolled, or a back end cannot be had.
    """
    records = load_records(folder)
    heard = [record for record in records if record.example and (folder / record.example / "original.flac").is_file()]
    if not heard:
        raise InputError(str(folder), "no example with its original audio", "audit with --examples above 0")
    listen_for_words = None if recogniser is None else listener(recogniser)
    speak_again = None if vocoder is None else named_vocoder(vocoder)
    voices, encode = None, None
    if encoder is not None and corpus is not None:
        encode = speaker_encoder(encoder)
        voices = enrol(encode, _others(corpus, {record.utterance for record in heard}))
    ear = _Ear(encode, voices, encoder, listen_for_words, recogniser)
    by_example: dict[str, tuple[Hearing, ...]] = {}
    for record in track(heard, "listen", console=console, transient=True):
        assert record.example is not None
        if record.example not in by_example:
            if speak_again is not None:
                remake_audio(folder / record.example, speak_again)
            by_example[record.example] = ear.hear(folder / record.example, record)
    changed = [_with_hearings(record, by_example.get(record.example or "", record.hearings)) for record in records]
    write_text(folder / RESULTS, "".join(map(to_line, changed)))
    _note(folder, corpus, voices, encoder, recogniser, vocoders_heard(changed))
    return changed


class _Ear:
    """What listens: an encoder with the voices it knows, and a recogniser; either may be missing."""

    def __init__(
        self,
        encode: Encoder | None,
        voices: Enrolment | None,
        encoder: str | None,
        words: Listener | None,
        recogniser: str | None,
    ) -> None:
        self.encode, self.voices, self.words = encode, voices, words
        self.names = {"encoder": encoder if voices else None, "recogniser": recogniser}

    def hear(self, place: Path, record: AuditRecord) -> tuple[Hearing, ...]:
        """One utterance in its three versions."""
        original = read_audio(place / "original.flac", SAMPLE_RATE)
        made = _made(place)
        hearings = []
        for source in SOURCES:
            path = place / f"{source}.flac"
            hearing = Hearing(source, encoder=self.names["encoder"], recogniser=self.names["recogniser"])
            if source in AUDIO_OF and path.is_file():
                closeness = made.get(f"{AUDIO_OF[source]}_audio_reanalysis_mae")
                hearing = replace(hearing, vocoder=made.get("vocoder"), reanalysis_mae=closeness)
            if not path.is_file():
                hearings.append(self._nothing(hearing, record))
                continue
            audio = original if source == "original" else read_audio(path, SAMPLE_RATE)
            hearings.append(self._heard(hearing, audio, original, record))
        return tuple(hearings)

    def _heard(
        self, hearing: Hearing, audio: Float[Tensor, " R"], original: Float[Tensor, " S"], record: AuditRecord
    ) -> Hearing:
        if hearing.source != "original":
            hearing = replace(hearing, **asdict(score_audio(audio, original, SAMPLE_RATE)))
        reasons = dict(hearing.reasons)
        if self.encode is not None and self.voices is not None:
            trial = identify(self.voices, self.encode(audio), record.speaker or "")
            if trial is None:
                reasons["speaker_rank"] = "no other utterance of the speaker is enrolled"
            else:
                hearing = replace(
                    hearing,
                    speaker_rank=trial.rank,
                    speaker_candidates=trial.candidates,
                    speaker_score=trial.score,
                    other_scores=tuple(round(score, 5) for score in trial.others),
                )
        if self.words is not None:
            hearing = _with_words(hearing, self.words(audio), record.transcript_true)
        return replace(hearing, reasons=reasons)

    def _nothing(self, hearing: Hearing, record: AuditRecord) -> Hearing:
        """Where there is no audio, no voice is recognised and every word is missed."""
        measures = ["log_spectral_distance_db", "mel_cepstral_distortion_db", "stoi", "si_sdr_db", "pesq"]
        reasons = dict.fromkeys([*measures, "speaker_rank"], NOTHING)
        if self.words is not None:
            hearing = _with_words(hearing, "", record.transcript_true)
        return replace(hearing, reasons=reasons)


def _made(place: Path) -> dict[str, Any]:
    """What an example says of how its audio was made; nothing where it says nothing."""
    path = place / DETAILS
    if not path.is_file():
        return {}
    told = parse_json(read_text(path, "audit again"), str(path), "audit again")
    kinds = {"vocoder": str} | {f"{name}_audio_reanalysis_mae": float for name in MADE}
    told = told if isinstance(told, dict) else {}
    return {name: told[name] for name, kind in kinds.items() if isinstance(told.get(name), kind)}


def vocoders_heard(records: Sequence[AuditRecord]) -> list[str]:
    """Names of what made the audio of these records, each once."""
    return list(dict.fromkeys(each.vocoder for record in records for each in record.hearings if each.vocoder))


def _with_words(hearing: Hearing, transcript: str, true: str | None) -> Hearing:
    if true is None:
        return replace(hearing, transcript=transcript)
    errors = count_errors(transcript, true)
    return replace(
        hearing,
        transcript=transcript,
        word_edits=errors.word_edits,
        words=errors.words,
        cer=errors.cer,
        wer=errors.wer,
    )


def _others(corpus: Path, without: set[str]) -> Iterator[tuple[str, Float[Tensor, " S"]]]:
    """Speaker and waveform of utterances that nobody listens to, a few of each speaker."""
    cuts, _ = select(load_corpus(corpus), Selection())
    taken: dict[str, int] = {}
    for cut in cuts:
        speaker = str(cut.supervisions[0].speaker)
        if cut.id in without or taken.get(speaker, 0) >= UTTERANCES_PER_SPEAKER:
            continue
        try:
            waveform = load_utterance(cut).waveform
        except InputError:
            # A broken file was a record of the audit; here others of the speaker do.
            continue
        taken[speaker] = taken.get(speaker, 0) + 1
        yield speaker, waveform


def _with_hearings(record: AuditRecord, hearings: Sequence[Hearing]) -> AuditRecord:
    """The record with its hearings; its own intelligibility and rank are those of the recovered audio."""
    recovered = _of(hearings, "recovered")
    if recovered is None:
        return record
    return replace(record, hearings=tuple(hearings), stoi=recovered.stoi, speaker_rank=recovered.speaker_rank)


def _of(hearings: Sequence[Hearing], source: Source) -> Hearing | None:
    return next((hearing for hearing in hearings if hearing.source == source), None)


def _note(
    folder: Path,
    corpus: Path | None,
    voices: Enrolment | None,
    encoder: str | None,
    recogniser: str | None,
    vocoders: Sequence[str],
) -> None:
    """Keep in config.json what listened."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["listening"] = {
        "encoder": encoder if voices else None,
        "enrolled_from": str(corpus) if voices else None,
        "speakers_enrolled": len(voices.speakers) if voices else None,
        "utterances_per_speaker": UTTERANCES_PER_SPEAKER if voices else None,
        "recogniser": recogniser,
        "vocoders": [*vocoders],
    }
    write_text(path, json.dumps(config, indent=1))
