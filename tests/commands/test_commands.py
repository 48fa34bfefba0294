"""The three steps as a user runs them, through files, and what the attacker's file may say."""

import json
from pathlib import Path

import pytest

from builders import batch_of, small_deepspeech1
from overheard.attacks.observation import load_reconstruction
from overheard.cli import main
from overheard.federation.client import ClientSettings, client_update
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.batching import collate
from overheard.storage import write_tensors

MODEL = '{"name": "deepspeech1", "config": {"hidden_size": 128, "context": 2}}'


def test_share_attack_score_on_real_speech(
    librispeech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ["--corpus", str(librispeech), "--utterance", "237-134500-0001"]
    main(["share", *chosen, "--model", MODEL, "--out", "u.safetensors", "--truth", "t.safetensors", "--threads", "1"])
    main(["attack", "u.safetensors", "--out", "r.safetensors", "--threads", "1"])
    capsys.readouterr()
    main(["score", "r.safetensors", "t.safetensors"])
    record = json.loads(capsys.readouterr().out)
    assert record["utterance"] == "237-134500-0001"
    assert record["frames_true"] == record["frames_recovered"] == 91
    assert record["feature_mae"] < 0.01
    assert record["unique"] is True


def test_a_batch_of_ones_own_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tensors(tmp_path / "batch.safetensors", batch_of(40).tensors(), {})
    batch = ["--batch", "batch.safetensors", "--model", MODEL, "--threads", "1"]
    main(["share", *batch, "--out", "u.safetensors", "--truth", "t.safetensors"])
    main(["attack", "u.safetensors", "--out", "r.safetensors", "--threads", "1"])
    main(["score", "r.safetensors", "t.safetensors"])


def test_the_rank_scan_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_tensors(tmp_path / "batch.safetensors", batch_of(40).tensors(), {})
    main(
        [
            "share",
            "--batch",
            "batch.safetensors",
            "--model",
            MODEL,
            "--out",
            "u.safetensors",
            "--truth",
            "t.safetensors",
        ]
    )
    capsys.readouterr()
    main(["attack", "u.safetensors", "--attack", "rank", "--out", "r.safetensors"])
    assert "span exposed" in capsys.readouterr().out


def test_an_update_cannot_have_code_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path('sprung').touch()\n")
    model = small_deepspeech1(hidden_size=8)
    update = client_update(model, batch_of(9), ClientSettings(), "trap:build", weights_fingerprint(model))
    update.save(tmp_path / "u.safetensors")
    with pytest.raises(SystemExit) as stopped:
        main(["attack", "u.safetensors", "--out", "r.safetensors"])
    assert stopped.value.code == 2
    assert "name the model yourself" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


def test_a_users_own_model_is_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any module with windows of the input in front."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from overheard.speech.alphabet import Alphabet\n"
        "from overheard.speech.features import MFCC_26\n"
        "class Mine(nn.Module):\n"
        "    front_end, alphabet = MFCC_26, Alphabet()\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.front = nn.Conv1d(26, 200, 5, padding=2)\n"
        "        self.out = nn.Linear(200, 29)\n"
        "    def output_lengths(self, num_frames):\n"
        "        return num_frames\n"
        "    def forward(self, features, num_frames):\n"
        "        hidden = self.front(features.permute(1, 2, 0)).relu()\n"
        "        return self.out(hidden.permute(2, 0, 1)), num_frames\n"
    )
    write_tensors(tmp_path / "batch.safetensors", collate([batch_of(50).features[:, 0]], [[1, 2]]).tensors(), {})
    model = ["--model", "mine:Mine", "--threads", "1"]
    main(["share", "--batch", "batch.safetensors", *model, "--out", "u.safetensors", "--truth", "t.safetensors"])
    main(["attack", "u.safetensors", *model, "--out", "r.safetensors"])
    capsys.readouterr()
    main(["score", "r.safetensors", "t.safetensors"])
    assert json.loads(capsys.readouterr().out)["feature_mae"] < 0.01


def test_inspect_shows_every_shape_that_reaches_ctc(librispeech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = '{"name": "deepspeech2", "config": {"hidden_size": 8, "num_layers": 1}}'
    chosen = ["--corpus", str(librispeech), "--max-seconds", "3", "--limit", "2", "--batch-size", "2"]
    main(["data", "inspect", *chosen, "--model", model, "--threads", "1"])
    shown = capsys.readouterr().out
    for name in ("features", "num_frames", "logits", "output_lengths", "targets", "target_lengths", "loss"):
        assert name in shown
    assert "2 of 2 utterances are feasible" in shown


def test_an_audit_of_a_toml_file_is_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("overheard.commands.grids.run_grid", lambda *arguments: asked.append(arguments))
    for command in ("grid", "audit"):
        main([command, "a.toml", "--out", "runs/a", "--workers", "3", "--threads", "1", "--job-seconds", "9"])
    assert asked[0] == asked[1]
    assert asked[0][:2] == (Path("a.toml"), Path("runs/a"))


def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["data", "inspect", "--help"], ["audit", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert "Example" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.startswith("overheard 0.")


def test_a_matching_run_is_set_up_by_flags_and_scored_iterate_by_iterate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tensors(tmp_path / "batch.safetensors", batch_of(20).tensors(), {})
    share = ["share", "--batch", "batch.safetensors", "--model", MODEL, "--threads", "1"]
    main([*share, "--out", "u.safetensors", "--truth", "t.safetensors"])
    settings = [
        "iterations=4",
        "iterates=way",
        "iterates_every=2",
        "schedule.learning_rate=0.05",
        'parameters=["output"]',
    ]
    attack = ["attack", "u.safetensors", "--attack", "matching", "--until", "features", "--known-frames", "20"]
    main([*attack, "--settings", *settings, "--out", "r.safetensors", "--threads", "1"])
    found = load_reconstruction(Path("r.safetensors"))
    assert found.settings["schedule"]["learning_rate"] == 0.05
    assert found.settings["parameters"] == ["output"]
    capsys.readouterr()
    main(["score", "way", "t.safetensors"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["iteration"] for row in rows] == [2, 4]
    assert all(row["mae"] > 0 for row in rows)
    assert Path("way/curve.png").stat().st_size > 1000 < Path("way/curve.pdf").stat().st_size
