"""Listening to a run: three versions of each utterance, ranks and words where they can be had, reasons where not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from overheard.audit import listening
from overheard.audit.listening import NOTHING, listen
from overheard.audit.plan import AuditPlan
from overheard.audit.records import AuditRecord, load_records
from overheard.audit.runner import run_audit
from overheard.errors import InputError
from overheard.metrics import vocoders
from overheard.metrics.speaker import SAMPLE_RATE

MODEL = '{"name": "deepspeech1", "config": {"hidden_size": 96, "context": 2}}'
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers, noise of two colours, two utterances each; a third with one alone."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    for speaker, width in ((11, 2), (12, 24), (13, 8)):
        chapter = folder / "corpus" / "part" / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for index in range(1 if speaker == 13 else 2):
            samples = np.convolve(generator.standard_normal(SAMPLE_RATE * 6 // 10), np.ones(width) / width, "same")
            soundfile.write(chapter / f"{speaker}-1-{index:04d}.flac", 0.1 * samples / samples.std(), SAMPLE_RATE)
            lines.append(f"{speaker}-1-{index:04d} ONE TWO\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return folder / "corpus"


@pytest.fixture(scope="module")
def audited(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of one utterance of each speaker, all of them kept."""
    from overheard.speech.corpus import Selection

    chosen = ("11-1-0000", "12-1-0000", "13-1-0000")
    plan = AuditPlan(corpus, Selection(utterances=chosen), models=(MODEL,), examples=3, until="features")
    out = tmp_path_factory.mktemp("audits") / "run"
    run_audit(plan, out, torch.device("cpu"), QUIET)
    return out


@pytest.fixture
def run(audited: Path, tmp_path: Path) -> Path:
    """A copy of it to listen to."""
    return Path(shutil.copytree(audited, tmp_path / "run"))


def heard(record: AuditRecord, source: str):
    return next(hearing for hearing in record.hearings if hearing.source == source)


def test_voices_words_and_sound(run: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "listener", lambda name: lambda waveform: "one three")
    (run / "examples" / "12-1-0000" / "recovered.flac").unlink()
    records = {record.utterance: record for record in listen(run, corpus, "timbre", "an ear", QUIET)}
    assert list(records.values()) == load_records(run)
    first, second, alone = (records[name] for name in ("11-1-0000", "12-1-0000", "13-1-0000"))
    for source in ("original", "true_features", "recovered"):
        hearing = heard(first, source)
        assert (hearing.speaker_rank, hearing.speaker_candidates, len(hearing.other_scores)) == (1, 2, 1)
        assert (hearing.transcript, hearing.wer, hearing.word_edits, hearing.words) == ("one three", 0.5, 1, 2)
        assert hearing.encoder == "timbre"
    # What was recovered exactly sounds as the true features do.
    exact, best = heard(first, "recovered"), heard(first, "true_features")
    assert exact.log_spectral_distance_db == pytest.approx(best.log_spectral_distance_db, abs=0.2)
    assert first.speaker_rank == 1
    assert heard(first, "original").stoi is None
    lost = heard(second, "recovered")
    assert (lost.speaker_rank, lost.wer, lost.reasons["stoi"]) == (None, 1.0, NOTHING)
    assert "no other utterance" in heard(alone, "original").reasons["speaker_rank"]


def test_either_part_alone(run: Path) -> None:
    hearing = heard(listen(run, None, None, None, QUIET)[0], "true_features")
    assert hearing.mel_cepstral_distortion_db is not None
    assert (hearing.encoder, hearing.recogniser, hearing.transcript) == (None, None, None)


def test_audio_is_made_anew_by_another_vocoder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = heard(listen(run, None, None, None, QUIET)[0], "recovered")
    assert first.vocoder == "griffin-lim"
    # As loud again and the other way round: another audio, whose features are other ones.
    monkeypatch.setitem(vocoders.VOCODERS, "louder", lambda: lambda draft, rate: -2 * draft)
    records = listen(run, None, None, None, QUIET, "louder")
    assert records == load_records(run)
    for record in records:
        told = json.loads((run / str(record.example) / "example.json").read_text())
        assert heard(record, "original").vocoder is None
        for source, name in (("true_features", "true"), ("recovered", "recovered")):
            hearing = heard(record, source)
            assert (hearing.vocoder, told["vocoder"]) == ("louder", "louder")
            assert hearing.reanalysis_mae == told[f"{name}_audio_reanalysis_mae"]
        assert told["audio_method"].endswith("said again by louder")
    louder = heard(records[0], "recovered")
    assert (louder.reanalysis_mae or 0.0) > 2 * (first.reanalysis_mae or 1.0)
    assert json.loads((run / "config.json").read_text())["listening"]["vocoders"] == ["louder"]
    # And back.
    assert heard(listen(run, None, None, None, QUIET, "griffin-lim")[0], "recovered") == first


def test_what_cannot_be_is_named(run: Path, tmp_path: Path) -> None:
    for path in run.rglob("original.flac"):
        path.unlink()
    with pytest.raises(InputError, match="audit with --examples above 0"):
        listen(run, None, None, None, QUIET)
