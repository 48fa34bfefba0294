"""overheard train, then transcribe, as they are typed."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
import torch
from tone_corpus import tiny_model, write_tones

from overheard.cli import main
from overheard.options import RecipeName
from overheard.recognition.decoding import Hypothesis
from overheard.recognition.models import build_model
from overheard.recognition.weights import save_model
from overheard.speech.corpus import load_corpus
from overheard.training.data import in_order
from overheard.training.evaluation import evaluate
from overheard.training.recipes import recipe, recipe_names
from overheard.training.tracking import METRICS


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model file to start from."""
    save_model(build_model(tiny_model()), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def train(corpus: Path, out: Path, model: Path, *more: str) -> None:
    arguments = ["train", "--recipe", "synthetic", "--corpus", str(corpus), "--out", str(out), "--model", str(model)]
    main([*arguments, "--epochs", "1", "--batch-seconds", "6", "--threads", "1", *more])


def test_a_run_is_trained_and_transcribes(
    tones: Path, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tones, run, tiny)
    said = capsys.readouterr().out
    assert "greedy WER" in said
    assert (run / "curves.png").is_file()
    assert (run / "curves.pdf").is_file()
    assert (run / METRICS).is_file()
    main(["transcribe", str(run), str(tones), "--format", "jsonl", "--times", "--threads", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["utterance"] for line in lines] == sorted(path.stem for path in tones.rglob("*.flac"))
    assert all({"utterance", "transcript", "score", "words"} <= line.keys() for line in lines)


def test_any_rate_and_channels_and_one_line_for_each_file(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for index, (rate, channels) in enumerate([(8000, 1), (44100, 2), (16000, 1)]):
        files.append(tmp_path / f"{index}.wav")
        soundfile.write(files[-1], 0.1 * np.random.default_rng(0).standard_normal((rate, channels)), rate)
    main(["transcribe", str(tiny), *map(str, files), "--threads", "1"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_broken_file_is_named_and_the_others_are_transcribed(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "good.wav", np.zeros(16000), 16000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(SystemExit) as exit_code:
        main(["transcribe", str(tiny), str(tmp_path / "bad.wav"), str(tmp_path / "good.wav"), "--threads", "1"])
    assert exit_code.value.code == 2
    heard = capsys.readouterr()
    assert len(heard.out.splitlines()) == 1
    assert "bad.wav: not readable as audio" in heard.err
    assert "1 of 2 files" in heard.err


def test_a_language_model_wants_a_beam(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["transcribe", str(tiny), str(tiny), "--lm", str(tiny)])
    assert "add --decoder beam" in capsys.readouterr().err


def test_the_beam_gives_alternatives_with_scores(tones: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    file = next(tones.rglob("*.flac"))
    flags = ["--decoder", "beam", "--beam", "20", "--alternatives", "3", "--format", "jsonl", "--threads", "1"]
    main(["transcribe", str(tiny), str(file), *flags])
    line = json.loads(capsys.readouterr().out)
    scores = [each["score"] for each in line["alternatives"]]
    assert len(scores) > 1
    assert scores == sorted(scores, reverse=True)


def test_changed_settings_are_checked(
    tones: Path, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(tones, tmp_path / "run", tiny, "--learning-rate", "-1")
    assert "learning_rate: -1.0; give a number above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(tones, tmp_path / "run", tiny, "--hold-out", "100", "101")
    assert "leave a speaker to learn from" in capsys.readouterr().err


@pytest.mark.parametrize("name", get_args(RecipeName))
def test_every_recipe_is_complete(name: str) -> None:
    chosen = recipe(name)
    assert set(recipe_names()) == set(get_args(RecipeName))
    assert chosen.about
    assert chosen.model.name == "deepspeech2"


def test_batches_are_shown_with_their_padding(tones: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "inspect", "--corpus", str(tones), "--model", str(tiny), "--batches", "--batch-seconds", "4"])
    said = capsys.readouterr().out
    assert "Batches of the first epoch" in said
    assert "12 utterances in" in said
    assert "in random batches of the same sizes" in said


def test_leave_one_out_prints_a_table(
    tones: Path, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    train(tones, tmp_path / "each", tiny, "--leave-one-out")
    said = capsys.readouterr().out
    assert "Speakers never heard in training" in said
    assert {path.name for path in (tmp_path / "each").iterdir()} == {"100", "101"}
    config = json.loads((tmp_path / "each" / "100" / "config.json").read_text())
    assert config["train"]["selection"]["speakers"] == ["101"]
    assert config["dev"]["utterances"] == 6
    assert "greedy WER" in said
    assert "lexicon" in said
    assert any(line.split()[:3] == ["mean", "as", "trained"] for line in said.splitlines())
    heard = {line.split(maxsplit=1)[1] for line in next(tones.rglob("101-1.trans.txt")).read_text().splitlines()}
    words = (tmp_path / "each" / "100" / "lexicon.txt").read_text().split()
    assert words == sorted({word for text in heard for word in text.split()}), "not of those who were learnt from"


def test_error_rates_are_those_of_the_search(tones: Path) -> None:
    model, cuts = build_model(tiny_model()), load_corpus(tones).cuts[:3]
    truths = iter([cut.supervisions[0].text or "" for batch in in_order(cuts, 4.0) for cut in batch])

    def knowing(_: torch.Tensor) -> list[Hypothesis]:
        return [Hypothesis(next(truths), 0.0)]

    assert evaluate(model, cuts, 4.0, search=knowing).wer == 0.0
    assert evaluate(model, cuts, 4.0, search=lambda _: []).wer == 1.0
    assert evaluate(model, cuts, 4.0).wer not in (None, 0.0)


def test_further_speech_is_learnt_from_without_those_held_out(tones: Path, tmp_path: Path, tiny: Path) -> None:
    more = write_tones(tmp_path / "more", speakers=3)
    for file in [*more.rglob("*.trans.txt"), *more.rglob("*.flac")]:
        renamed = file.with_name(f"9{file.name}")
        file.rename(renamed)
        if renamed.suffix == ".txt":
            renamed.write_text("".join(f"9{line}\n" for line in renamed.read_text().splitlines()))
    train(tones, tmp_path / "run", tiny, "--extra-corpus", str(more), "--hold-out", "101")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["extra"]["selection"]["speakers"] == ["100", "102"]
    assert config["corpus"]["utterances"] == 6 + 12
    assert config["dev"]["utterances"] == 6


def test_the_same_utterance_twice_is_refused(
    tones: Path, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        train(tones, tmp_path / "run", tiny, "--extra-corpus", str(tones))
    assert exit_code.value.code == 2
    assert "leave one of them out" in capsys.readouterr().err
