"""A run keeps every result with its reason, goes on where it stopped, and mixes no settings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from overheard.audit import job
from overheard.audit.plan import AuditPlan
from overheard.audit.records import AuditRecord, append_record, load_records, timeless
from overheard.audit.runner import run_audit
from overheard.errors import InputError
from overheard.speech.corpus import Selection

MODEL = '{"name": "deepspeech1", "config": {"hidden_size": 96, "context": 2}}'
SCANNED = '{"name": "deepspeech2", "config": {"hidden_size": 16, "num_layers": 1}}'


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two utterances of noise that can be recovered, one too short for its words, one corrupt."""
    chapter = tmp_path / "corpus" / "part" / "11" / "1"
    chapter.mkdir(parents=True)
    generator = np.random.default_rng(0)
    texts = ["ONE", "TWO", "FAR TOO MANY WORDS", "FOUR"]
    for index, seconds in enumerate((0.5, 0.7, 0.2, 0.6)):
        samples = np.convolve(generator.standard_normal(round(16000 * seconds)), np.ones(4), "same")
        soundfile.write(chapter / f"11-1-000{index}.flac", 0.05 * samples, 16000)
    (chapter / "11-1-0003.flac").write_bytes(b"fLaC?")
    (chapter / "11-1.trans.txt").write_text("".join(f"11-1-000{i} {text}\n" for i, text in enumerate(texts)))
    return tmp_path / "corpus"


@pytest.fixture
def plan(corpus: Path) -> AuditPlan:
    return AuditPlan(corpus=corpus, models=(MODEL,), scanned=(SCANNED,), examples=1)


def run(plan: AuditPlan, out: Path) -> list[AuditRecord]:
    return run_audit(plan, out, torch.device("cpu"), Console(quiet=True))


def test_failures_are_records_and_not_the_end(plan: AuditPlan, tmp_path: Path) -> None:
    records = {record.utterance: record for record in run(plan, tmp_path / "run")}
    assert [records[f"11-1-000{index}"].recovered for index in range(4)] == [True, True, False, False]
    assert "too short" in str(records["11-1-0002"].reason)
    assert "corrupt audio" in str(records["11-1-0003"].reason)
    assert all(record.reason for record in records.values() if record.status == "failed")
    first = records["11-1-0000"]
    assert first.seconds_audio == 0.5
    assert (first.attack, first.kind, first.mode, first.batch, first.defence) == ("span", "gradient", "eval", 1, "none")
    assert first.feature_mae is not None
    assert (first.transcript_recovered, first.cer, first.wer) == ("ONE", 0.0, 0.0)
    assert records["11-1-0002"].cer is None, "no transcript was recovered, so it has no error rate"


def test_a_decomposition_that_fails_is_a_record(
    plan: AuditPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise np.linalg.LinAlgError("159-th leading minor not positive definite")

    monkeypatch.setattr(job, "attack_until", fail)
    records = run(replace(plan, scanned=()), tmp_path / "run")
    assert [record.reason for record in records if record.utterance == "11-1-0000"] == [
        "LinAlgError: 159-th leading minor not positive definite"
    ]


def test_the_folder_holds_what_a_report_needs(plan: AuditPlan, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(plan, out)
    config = json.loads((out / "config.json").read_text())
    assert config["corpus"]["utterances"] == 3
    assert "the transcript" in config["threat_model"]["not_given"]
    ranks = json.loads((out / "ranks.json").read_text())
    assert [(rank["model"], rank["attacked"]) for rank in ranks] == [(MODEL, True), (SCANNED, False)]
    assert ranks[1]["note"]
    example = out / "examples" / "11-1-0000"
    names = {"features.safetensors", "original.flac", "true_features.flac", "recovered.flac", "example.json"}
    assert {path.name for path in example.iterdir()} == names
    assert out.stat().st_mode & 0o077 == 0, "others can read private speech"


def test_a_second_start_does_what_is_missing(plan: AuditPlan, tmp_path: Path) -> None:
    out = tmp_path / "run"
    part = replace(plan, selection=Selection(utterances=("11-1-0001",)))
    first = run(part, out)
    results = out / "results.jsonl"
    results.write_text(results.read_text() + '{"utterance": "cut sh')
    records = run(plan, out)
    assert records[0] == first[0]
    assert sorted(record.utterance for record in records) == [f"11-1-000{index}" for index in range(4)]


def test_other_settings_are_not_mixed(plan: AuditPlan, tmp_path: Path) -> None:
    run(plan, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run with other settings"):
        run(replace(plan, seed=1), tmp_path / "run")


def test_the_same_plan_gives_the_same_records(plan: AuditPlan, tmp_path: Path) -> None:
    one, two = (run(plan, tmp_path / name) for name in ("one", "two"))
    assert timeless(one) == timeless(two)


def test_an_attack_goes_as_far_as_it_is_asked_to(plan: AuditPlan, tmp_path: Path) -> None:
    one = replace(plan, selection=Selection(utterances=("11-1-0000",)))
    (features,) = run(replace(one, until="features"), tmp_path / "features")
    (proven,) = run(replace(one, until="certificate"), tmp_path / "certificate")
    assert (features.transcript_recovered, features.seconds_words, features.certified) == (None, None, None)
    assert (proven.transcript_recovered, proven.certified) == ("ONE", True)


def test_what_the_attacker_is_told_is_recorded(plan: AuditPlan, tmp_path: Path) -> None:
    told = replace(plan, known=("length",), selection=Selection(utterances=("11-1-0000",)))
    (record,) = run(told, tmp_path / "run")
    assert record.prior == "num_frames"
    assert "each utterance's length" in json.loads((tmp_path / "run/config.json").read_text())["threat_model"]["given"]


def test_records_survive_their_file_and_a_crash(tmp_path: Path) -> None:
    record = AuditRecord(utterance="ü", feature_mae=1e-9, unique=True)
    append_record(tmp_path, record)
    append_record(tmp_path, record)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"utterance": "half')
    assert load_records(tmp_path) == [record, record]


@pytest.mark.parametrize("line", ["no json", "[]", '{"speaker": "x"}', '{"utterance": "x", "unknown": 1}'])
def test_lines_that_are_no_records_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"results\.jsonl:1"):
        load_records(tmp_path)


def test_batches_give_a_record_for_each_utterance(corpus: Path, tmp_path: Path) -> None:
    chapter = corpus / "part" / "11" / "1"
    for index in (2, 3):
        (chapter / f"11-1-000{index}.flac").unlink()
    (chapter / "11-1.trans.txt").write_text("11-1-0000 ONE\n11-1-0001 TWO\n")
    plan = AuditPlan(corpus=corpus, models=(MODEL.replace("96", "192"),), batch=2, examples=1)
    records = run(plan, tmp_path / "run")
    assert sorted(record.utterance for record in records) == ["11-1-0000", "11-1-0001"]
    assert all(record.recovered and record.batch == 2 for record in records)
    assert {record.utterance: record.transcript_recovered for record in records} == {
        "11-1-0000": "ONE", "11-1-0001": "TWO",
    }  # fmt: skip
    assert sum(record.example is not None for record in records) == 1
    assert len(run(plan, tmp_path / "run")) == 2, "a second start repeats nothing"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "a batch of 2 utterances" in " ".join(config["threat_model"]["given"])
