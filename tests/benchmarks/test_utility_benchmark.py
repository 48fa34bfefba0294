"""The table of what defences cost: one start, one run for each row, none of them done twice."""

from dataclasses import replace
from pathlib import Path

import pytest
from tone_corpus import tiny_model, write_tones

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")

from overheard.benchmarks.utility import STRENGTHS, folder_of, measure
from overheard.cli import main
from overheard.federation.clients import ClientSplit
from overheard.federation.defences.registry import DEFENCES, parse_defence
from overheard.federation.local_settings import LocalSettings
from overheard.federation.settings import FederationSettings
from overheard.federation.simulation import FederationPlan
from overheard.recognition.models import build_model
from overheard.recognition.weights import resolve_model
from overheard.speech.corpus import Selection
from overheard.training.tracking import METRICS


def test_every_row_starts_from_the_same_weights(tmp_path: Path) -> None:
    corpus = write_tones(tmp_path / "corpus")
    local = LocalSettings(steps=1, batch_size=2, learning_rate=0.01)
    settings = FederationSettings(rounds=1, clients_per_round=2, local=local)
    plan = FederationPlan(corpus, Selection(), corpus, Selection(), ClientSplit(), settings, workers=0)
    start = build_model(tiny_model())
    before = start.state_dict()["output.bias"].clone()
    texts = ("none", "clip:norm=1000", "clip:norm=0.001 noise:std=0.001", "frozen:layers=nowhere")
    rows = list(measure(plan, start, texts, tmp_path / "runs"))
    assert [row.defence for row in rows] == list(texts)
    assert rows[3].wer is None
    assert "nowhere" in str(rows[3].reason)
    assert all(row.wer is not None and row.utterances == 4 and row.reason is None for row in rows[:3])
    assert before.equal(start.state_dict()["output.bias"])
    none, clipped, noisy = (
        resolve_model(str(tmp_path / "runs" / folder_of(text)), 0).state_dict()["output.bias"] for text in texts[:3]
    )
    assert none.equal(clipped)
    assert not none.equal(noisy)
    written = (tmp_path / "runs" / "none" / METRICS).stat().st_mtime_ns
    [again] = measure(plan, start, ("none",), tmp_path / "runs")
    assert replace(again, seconds=0.0) == replace(rows[0], seconds=0.0)
    assert (tmp_path / "runs" / "none" / METRICS).stat().st_mtime_ns >= written


def test_the_default_rows_cover_every_defence_that_any_model_takes() -> None:
    named = {parse_defence(text).name for text in STRENGTHS if text != "none"}
    assert named == set(DEFENCES) - {"dropout"}


def test_the_command_prints_a_row_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_tones(tmp_path / "corpus", each=2)
    flags = ["--recipe", "synthetic", "--model", tiny_model().to_json(), "--rounds", "1", "--clients-per-round", "2"]
    local = ["--steps", "1", "--batch-size", "2", "--threads", "1", "--defences", "none", "sign"]
    main(["bench", "utility", "--corpus", str(corpus), *flags, *local, "--out", str(tmp_path / "runs")])
    said = capsys.readouterr().out
    assert "none: WER" in said
    assert "sign: WER" in said
    assert "the start" in said
