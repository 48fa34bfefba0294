"""Two runs in one figure: each measurement stands at the utterances learnt from by then."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from overheard.errors import InputError
from overheard.metrics.words import WordErrors
from overheard.training import comparison
from overheard.training.comparison import checkpoint_of, draw_comparison, error_curve, gap, late_gap
from overheard.training.tracking import METRICS


def write_run(folder: Path, rates: list[float | None]) -> Path:
    """Ten utterances a step, a measurement after each."""
    folder.mkdir()
    lines = []
    for step, rate in enumerate(rates, start=1):
        lines.append({"kind": "step", "step": step, "utterances": 10 * step})
        lines.append({"kind": "evaluation", "step": step, "wer": rate})
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_curves_are_drawn_over_utterances(tmp_path: Path) -> None:
    run, central = write_run(tmp_path / "run", [0.5, None, 0.25]), write_run(tmp_path / "central", [0.4, 0.2])
    assert error_curve(run) == [(10, 0.5), (30, 0.25)]
    files = draw_comparison(run, central, ("federated", "central"))
    assert [file.name for file in files] == ["comparison.png", "comparison.pdf"]
    assert all(file.stat().st_size > 1000 for file in files)
    assert gap(run, central) == "WER 25.00 % after 30 utterances, against 20.00 % after 20: +5.00 points"


def test_a_run_from_another_ones_checkpoint_goes_on_where_that_stood(tmp_path: Path) -> None:
    run, central = write_run(tmp_path / "run", [0.3, 0.1]), write_run(tmp_path / "central", [0.9, 0.5, 0.2, 0.05, 0.01])
    checkpoint = central / "checkpoints" / "step-000000002"
    checkpoint.mkdir(parents=True)
    start = checkpoint_of(str(checkpoint), central)
    assert checkpoint_of(None, central) is checkpoint_of("deepspeech2", central) is None
    assert error_curve(run, start) == [(20, 0.5), (30, 0.3), (40, 0.1)]
    assert gap(run, central, start) == "WER 10.00 % after 40 utterances, against 5.00 % after 40: +5.00 points"


def test_the_last_checkpoints_are_held_against_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint's name says how many word edits its model makes in each of six utterances of four words."""

    def checkpoints(run: str, edits: dict[int, int]) -> list[Path]:
        folders = [tmp_path / run / "checkpoints" / f"step-{step:09d}" for step in edits]
        for folder, (step, made) in zip(folders, edits.items(), strict=True):
            folder.mkdir(parents=True)
            (folder / "state.json").write_text(json.dumps({"progress": {"utterances": 10 * step}}))
            (folder / "model.safetensors").write_text(str(made))
        return folders

    def errors(edits: int, *_: object) -> Iterator[tuple[str, float, WordErrors]]:
        return ((f"u{index}", 0.0, WordErrors(edits + index % 2, 4)) for index in range(6))

    monkeypatch.setattr(comparison, "load_model", lambda path: int(path.read_text()))
    monkeypatch.setattr(comparison, "utterance_errors", errors)
    start = checkpoints("central", {1: 4, 2: 4, 3: 3, 4: 2, 5: 1, 6: 0})[1]
    checkpoints("run", {1: 9, 2: 3, 3: 2})
    # The run has learnt from 20 + 30 utterances: the central ones that count had learnt from 30, 40 and 50.
    said = late_gap(tmp_path / "run", tmp_path / "central", [], start)
    assert "last 3 checkpoints: WER 129.17 % on average, against 62.50 % of 3 after no more utterances" in said
    assert "+66.67 points (95 % +66.67 to +66.67, 6 utterances)" in said
    assert "of 3 after" in late_gap(tmp_path / "run", tmp_path / "central", [])
    assert late_gap(tmp_path / "nothing", tmp_path / "central", []) == "no checkpoints to be compared"


def test_a_run_without_a_measurement_has_no_curve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no measured word error rate"):
        error_curve(write_run(tmp_path / "run", [None]))
