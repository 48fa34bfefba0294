"""Getting used to speakers without transcripts: what is heard is learnt, what is written is not read."""

from itertools import cycle
from pathlib import Path

import pytest
import torch
from lhotse import MonoCut
from lhotse.utils import fastcopy
from rich.console import Console
from tone_corpus import normed_model, tiny_model, tone_plan

from overheard.cli import main
from overheard.commands import training
from overheard.errors import InputError
from overheard.recognition.beam import BeamDecoder
from overheard.recognition.decoding import Hypothesis
from overheard.recognition.models import build_model
from overheard.recognition.run_folder import checkpoint_folders
from overheard.recognition.weights import save_model, weights_fingerprint
from overheard.speech.corpus import Selection, load_corpus, select
from overheard.training.adaptation import adapt, retake_statistics
from overheard.training.data import in_order
from overheard.training.evaluation import evaluate
from overheard.training.loop import Run
from overheard.training.plan import carry_out

SECONDS = 4.0


def speech_of(corpus: Path, speaker: str) -> list[MonoCut]:
    return select(load_corpus(corpus), Selection(speakers=(speaker,)))[0]


def trained(corpus: Path, folder: Path, norm: str = "batch") -> Run:
    plan = tone_plan(corpus, epochs=1, batch_seconds=SECONDS)
    return carry_out(plan, build_model(normed_model(norm)), folder, Console(quiet=True))


def hearing(speech: list[MonoCut]) -> BeamDecoder:
    """A search that hears everything right, utterance after utterance."""
    texts = cycle([cut.supervisions[0].text or "" for batch in in_order(speech, SECONDS) for cut in batch])
    return lambda _: [Hypothesis(next(texts), 0.0)]


def misquoted(cut: MonoCut) -> MonoCut:
    return fastcopy(cut, supervisions=[fastcopy(each, text="CC CC") for each in cut.supervisions])


def test_what_is_heard_is_learnt(tones: Path, tmp_path: Path) -> None:
    run, speech = trained(tones, tmp_path), speech_of(tones, "101")
    before = evaluate(run.model, speech, SECONDS).loss
    last = adapt(run, speech, 2, hearing(speech))
    after = evaluate(run.model, speech, SECONDS).loss
    assert before is not None
    assert after is not None
    assert after < 0.9 * before
    assert last.model is run.model
    assert {path.name for path in (tmp_path / "adapted").iterdir()} == {"1", "2"}


def test_transcripts_are_not_read_and_a_round_is_taken_up(tones: Path, tmp_path: Path) -> None:
    speech = speech_of(tones, "101")
    found = []
    for folder, cuts in (("plain", speech), ("misquoted", [misquoted(cut) for cut in speech]), ("plain", speech)):
        run = trained(tones, tmp_path / folder)
        found.append(weights_fingerprint(adapt(run, cuts, 1, hearing(speech)).model))
    assert len(set(found)) == 1
    with pytest.raises(InputError, match="holds another run: adaptation"):
        adapt(trained(tones, tmp_path / "plain"), speech, 1, lambda _: [Hypothesis("AB", 0.0)])


def test_nothing_heard_ends_it(tones: Path, tmp_path: Path) -> None:
    run = trained(tones, tmp_path)
    assert adapt(run, speech_of(tones, "101"), 2, lambda _: []) is run
    assert not (tmp_path / "adapted").exists()


def test_statistics_are_those_of_the_new_speech(tones: Path) -> None:
    model, speech = build_model(normed_model()), speech_of(tones, "101")
    norm = model.get_submodule("convolution_norms.0")
    seen = []
    handle = norm.register_forward_hook(lambda _, arguments, __: seen.append(arguments))
    retake_statistics(model, speech, 1000.0)
    handle.remove()
    ((inputs, lengths),) = seen
    frames = torch.cat([each[:, :, :length] for each, length in zip(inputs, lengths, strict=True)], dim=2)
    assert torch.allclose(norm.get_buffer("running_mean"), frames.mean(dim=(1, 2)), atol=1e-5)
    assert norm.momentum == 0.1
    assert model.training
    again = [each.clone() for each in model.buffers()]
    retake_statistics(model, speech, 1000.0)
    assert all(map(torch.equal, again, model.buffers()))


def test_a_model_without_batch_norm_has_none(tones: Path) -> None:
    model = build_model(tiny_model())
    before = weights_fingerprint(model)
    retake_statistics(model, speech_of(tones, "101"), SECONDS)
    assert weights_fingerprint(model) == before


def test_on_the_command_line(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(build_model(tiny_model()), tmp_path / "tiny.safetensors")
    command = ["train", "--recipe", "synthetic", "--corpus", str(tones), "--out", str(tmp_path / "run")]
    command += ["--model", str(tmp_path / "tiny.safetensors"), "--epochs", "1", "--batch-seconds", "6"]
    command += ["--threads", "1", "--adapt", "1"]
    with pytest.raises(SystemExit) as exit_code:
        main(command)
    assert exit_code.value.code == 2
    assert "say to whom" in capsys.readouterr().err
    monkeypatch.setattr(training, "beam_decoder", lambda *_: lambda _: [Hypothesis("AB", 0.0)])
    main([*command, "--hold-out", "101"])
    said = capsys.readouterr().out
    assert "as trained: greedy WER" in said
    assert "adapted: greedy WER" in said
    assert checkpoint_folders(tmp_path / "run" / "adapted" / "1")
