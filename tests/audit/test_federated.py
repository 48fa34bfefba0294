"""What a federated run kept is attacked from its files alone, and comes back where nothing protects it."""

import json
import os
from dataclasses import replace
from pathlib import Path

# Before anything imports Flower.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import pytest
import torch
from rich.console import Console
from tone_corpus import write_tones

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")

from overheard.audit.federated import FederatedAudit, audit_run
from overheard.errors import InputError
from overheard.federation.clients import ClientSplit
from overheard.federation.local_settings import LocalSettings
from overheard.federation.settings import FederationSettings
from overheard.federation.simulation import FederationPlan, carry_out
from overheard.recognition.models import build_model, model_spec
from overheard.report.html import write_report
from overheard.speech.corpus import Selection

CPU = torch.device("cpu")


def federated(folder: Path, corpus: Path, *defences: str) -> Path:
    """One round of two clients, one utterance each, of DeepSpeech 1 with room for all frames."""
    local = LocalSettings(kind="gradient", batch_size=1, learning_rate=0.01, mode="eval")
    settings = FederationSettings(rounds=1, clients_per_round=2, local=local, defences=defences, capture=2)
    plan = FederationPlan(corpus, Selection(), corpus, None, ClientSplit(), settings, workers=0)
    carry_out(plan, build_model(model_spec("deepspeech1", hidden_size=192, context=2)), folder, Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers' tones."""
    return write_tones(tmp_path_factory.mktemp("corpus"), speakers=2, each=2)


def test_an_undefended_update_of_a_real_round_is_recovered(corpus: Path, tmp_path: Path) -> None:
    run = federated(tmp_path / "run", corpus)
    plan = FederatedAudit(run, until="features", examples=1)
    records = audit_run(plan, tmp_path / "audit", CPU, Console(quiet=True))
    assert [record.speaker for record in records] == ["100", "101"]
    assert all(record.recovered and record.defence == "none" and record.batch == 1 for record in records)
    ranks = json.loads((tmp_path / "audit" / "ranks.json").read_text())
    assert [rank["frames"] for rank in ranks] == [records[0].frames_true]
    # Two clients' updates are of one model, which is named as a user would name it.
    assert {record.model for record in records} == {ranks[0]["model"]}
    assert json.loads(ranks[0]["model"]) == {"name": "deepspeech1", "config": {"hidden_size": 192, "context": 2}}
    assert {record.weights for record in records} == {"before round 1"}
    assert (tmp_path / "audit" / str(records[0].example) / "recovered.flac").is_file()
    # Started again, it finds everything done.
    assert audit_run(plan, tmp_path / "audit", CPU, Console(quiet=True)) == records
    with pytest.raises(InputError, match="holds an audit with other settings"):
        audit_run(replace(plan, seed=1), tmp_path / "audit", CPU, Console(quiet=True))


def test_a_defended_one_says_so(corpus: Path, tmp_path: Path) -> None:
    run = federated(tmp_path / "run", corpus, "noise:std=1")
    records = audit_run(FederatedAudit(run, until="features"), tmp_path / "audit", CPU, Console(quiet=True))
    assert not any(record.recovered for record in records)
    assert {record.defence for record in records} == {"noise:std=1"}
    # Two tones are no words: what matters is that the rate is the run's own.
    measured = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (wer,) = {line["wer"] for line in measured if line["kind"] == "evaluation"} or {None}
    assert {(record.utility_wer, record.epsilon) for record in records} == {(wer, None)}


def test_without_a_truth_frames_are_counted_alone(corpus: Path, tmp_path: Path) -> None:
    run = federated(tmp_path / "run", corpus)
    for file in (run / "truth").rglob("*.safetensors"):
        file.unlink()
    records = audit_run(FederatedAudit(run, until="features"), tmp_path / "audit", CPU, Console(quiet=True))
    assert [record.reason for record in records] == ["no truth was kept"] * 2
    assert all(record.frames_recovered and record.feature_mae is None for record in records)
    page = write_report(tmp_path / "audit").read_text(encoding="utf-8")
    assert "Scanned on an update in" in page
    # Neither words nor epsilon were measured: there is no price.
    assert "What the defences cost" not in page


def test_a_run_without_captured_updates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no captured update"):
        audit_run(FederatedAudit(tmp_path), tmp_path / "audit", CPU, Console(quiet=True))
