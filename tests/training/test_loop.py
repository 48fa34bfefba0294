"""Training learns, survives what is thrown at it, and goes on where it was stopped, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tone_corpus import normed_model, tiny_model, tone_plan, write_tones
from torch import nn

from overheard.errors import InputError
from overheard.recognition.models import build_model
from overheard.recognition.run_folder import MODEL, checkpoint_folders, model_file
from overheard.recognition.weights import resolve_model, weights_fingerprint
from overheard.speech.augmentation import AugmentationConfig
from overheard.training import loop, step
from overheard.training.curves import draw_curves
from overheard.training.plan import carry_out
from overheard.training.tracking import FAULTS, METRICS, read_lines

AUGMENTED = AugmentationConfig(speed=(0.95, 1.05), tempo=(1.0, 1.1), noise=0.01, time_masks=1, frequency_masks=1)


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


def test_the_loss_falls_and_the_run_can_be_named_as_a_model(tones: Path, tmp_path: Path, quiet: Console) -> None:
    plan = tone_plan(tones, epochs=6, learning_rate=1e-2, evaluate_every=3, schedule="one-cycle", warmup=0.2)
    run = carry_out(plan, build_model(tiny_model()), tmp_path, quiet)
    losses = [line["loss"] for line in read_lines(tmp_path / METRICS) if line["kind"] == "step"]
    assert losses[-1] < 0.5 * losses[0]
    assert len(losses) == run.progress.step
    assert len(run.evaluations) == 2
    assert weights_fingerprint(resolve_model(str(tmp_path), 0)) == weights_fingerprint(run.model)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "novograd"])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_bits(
    tones: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, optimiser: str
) -> None:
    if optimiser == "novograd":
        pytest.importorskip("pytorch_optimizer")
    plan = tone_plan(
        tones,
        optimiser=optimiser,
        augmentation=AUGMENTED,
        accumulate=2,
        checkpoint_every=1,
        grown_batch=(0.5, 5.0),
    )

    def model() -> nn.Module:
        return build_model(normed_model())

    whole = carry_out(plan, model(), tmp_path / "whole", quiet)
    _stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan, model(), tmp_path / "killed", quiet)
    monkeypatch.undo()
    stopped = json.loads((checkpoint_folders(tmp_path / "killed")[-1] / "state.json").read_text())
    assert stopped["progress"]["batch"] > 0, "stopped between epochs and not within one"
    resumed = carry_out(plan, model(), tmp_path / "killed", quiet)
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)
    ours, theirs = (
        [(line["step"], line.get("loss"), line.get("wer")) for line in read_lines(tmp_path / name / METRICS)]
        for name in ("killed", "whole")
    )
    assert ours == theirs


def test_dropout_goes_on_where_it_was(
    tones: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_model(dropout=0.3)
    plan = tone_plan(tones, checkpoint_every=1)
    whole = carry_out(plan, build_model(spec), tmp_path / "whole", quiet)
    _stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan, build_model(spec), tmp_path / "killed", quiet)
    monkeypatch.undo()
    resumed = carry_out(plan, build_model(spec), tmp_path / "killed", quiet)
    assert weights_fingerprint(resumed.model) == weights_fingerprint(whole.model)


def test_another_plan_is_refused_with_the_difference(tones: Path, tmp_path: Path, quiet: Console) -> None:
    carry_out(tone_plan(tones, epochs=1), build_model(tiny_model()), tmp_path, quiet)
    with pytest.raises(InputError, match=r"settings\.learning_rate: 0\.005 there, 0\.001 now"):
        carry_out(tone_plan(tones, epochs=1, learning_rate=1e-3), build_model(tiny_model()), tmp_path, quiet)
    with pytest.raises(InputError, match=r"model\.config\.hidden_size: 24 there, 32 now"):
        carry_out(tone_plan(tones, epochs=1), build_model(tiny_model(hidden_size=32)), tmp_path, quiet)
    spec = tiny_model(front_end={"kind": "log_mel", "hop": 160, "num_mel": 40})
    with pytest.raises(InputError, match=r"model\.config\.front_end\.hop"):
        carry_out(tone_plan(tones, epochs=1), build_model(spec), tmp_path, quiet)


def test_a_damaged_checkpoint_is_passed_over(tones: Path, tmp_path: Path, quiet: Console) -> None:
    plan = tone_plan(tones)
    whole = carry_out(plan, build_model(tiny_model()), tmp_path, quiet)
    last = checkpoint_folders(tmp_path)[-1]
    content = bytearray((last / MODEL).read_bytes())
    content[-5] ^= 1
    (last / MODEL).write_bytes(content)
    assert model_file(tmp_path).parent != last
    console = Console(record=True, width=200)
    again = carry_out(plan, build_model(tiny_model()), tmp_path, console)
    assert "passed over a damaged checkpoint" in console.export_text()
    assert weights_fingerprint(again.model) == weights_fingerprint(whole.model)
    for folder in checkpoint_folders(tmp_path):
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(InputError, match="no whole checkpoint"):
        carry_out(plan, build_model(tiny_model()), tmp_path, quiet)


def test_only_the_last_few_and_the_best_are_kept(tones: Path, tmp_path: Path, quiet: Console) -> None:
    run = carry_out(tone_plan(tones, epochs=5, keep=2), build_model(tiny_model()), tmp_path, quiet)
    folders = checkpoint_folders(tmp_path)
    assert len(folders) in (2, 3)
    assert folders[-1].name == f"step-{run.progress.step:09d}"
    best = json.loads((model_file(tmp_path).parent / "state.json").read_text())
    assert best["wer"] == min(line["wer"] for line in run.evaluations)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda losses: losses * torch.nan, "loss"),
        (lambda losses: losses / 0.0, "loss"),
        (lambda losses: losses * 1e30, "gradient"),
    ],
    ids=["nan", "infinite", "gradient"],
)
def test_what_is_not_finite_is_skipped_by_name(
    tones: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, spoil: Callable, kind: str
) -> None:
    _spoil_call(monkeypatch, 2, spoil)
    run = carry_out(tone_plan(tones, epochs=1), build_model(normed_model()), tmp_path, quiet)
    assert run.progress.skipped == 1
    assert run.progress.step > 0
    (fault,) = read_lines(tmp_path / FAULTS)
    assert fault["kind"] == kind
    assert fault["utterances"]
    assert all(bool(tensor.isfinite().all()) for tensor in run.model.state_dict().values())


def test_memory_that_runs_out_costs_one_batch(
    tones: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    _spoil_call(monkeypatch, 1, exhausted)
    run = carry_out(tone_plan(tones, epochs=1), build_model(tiny_model()), tmp_path, quiet)
    assert run.progress.skipped == 1
    assert read_lines(tmp_path / FAULTS)[0]["kind"] == "memory"


def test_a_skipped_step_leaves_everything_as_it_was(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "utterance_losses", _always_nan)
    model = build_model(normed_model())
    before = weights_fingerprint(model)
    with pytest.raises(InputError, match=r"not one of .* steps in the first epoch succeeded"):
        carry_out(tone_plan(tones), model, tmp_path, Console(quiet=True))
    assert weights_fingerprint(model) == before
    assert draw_curves(tmp_path) == []
    assert checkpoint_folders(tmp_path) == []


def test_too_many_skipped_steps_end_the_run(
    tones: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "utterance_losses", _always_nan)
    with pytest.raises(InputError, match="2 steps skipped, the last because the loss is nan"):
        carry_out(tone_plan(tones, most_skipped=1), build_model(tiny_model()), tmp_path, quiet)


def test_a_file_that_breaks_during_training_costs_its_own_utterance(tmp_path: Path, quiet: Console) -> None:
    corpus = write_tones(tmp_path / "corpus")
    plan = tone_plan(corpus, epochs=1)
    model = build_model(tiny_model())
    original = loop.bucketing

    def breaking(*arguments: object, **keywords: object) -> object:
        next(corpus.rglob("100-1-0003.flac")).write_bytes(b"fLaC and nothing else")
        return original(*arguments, **keywords)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "bucketing", breaking)
        run = carry_out(plan, model, tmp_path / "run", quiet)
    assert run.progress.utterances == 11
    assert read_lines(tmp_path / "run" / FAULTS)[0]["utterances"] == ["100-1-0003"]


def test_infeasible_utterances_are_named_before_training(tmp_path: Path) -> None:
    corpus = write_tones(tmp_path / "corpus")
    transcripts = next(corpus.rglob("100-1.trans.txt"))
    lines = transcripts.read_text().splitlines()
    lines[0] = f"{lines[0].split()[0]} {'AA' * 60}"
    transcripts.write_text("\n".join(lines) + "\n")
    console = Console(record=True, width=300)
    run = carry_out(tone_plan(corpus, epochs=1), build_model(tiny_model()), tmp_path / "run", console)
    assert "left out 100-1-0000: too short" in console.export_text()
    assert run.progress.utterances == 11


def test_curves_are_drawn_as_picture_and_for_print(tones: Path, tmp_path: Path, quiet: Console) -> None:
    carry_out(tone_plan(tones, epochs=1), build_model(tiny_model()), tmp_path, quiet)
    png, pdf = draw_curves(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert any((tmp_path / "tensorboard").iterdir())


def test_reduced_precision_trains(tones: Path, tmp_path: Path, quiet: Console) -> None:
    run = carry_out(tone_plan(tones, epochs=1, precision="bf16"), build_model(normed_model()), tmp_path, quiet)
    assert run.progress.skipped == 0
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in run.model.state_dict().values())


def _stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As a kill would: nothing is tidied up but what the operating system tidies."""
    original, calls = loop.take_step, []

    def stopping(*arguments: object) -> object:
        if len(calls) == steps:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(loop, "take_step", stopping)


def _spoil_call(monkeypatch: pytest.MonkeyPatch, number: int, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    original, calls = step.utterance_losses, []

    def spoiling(*arguments: object, **keywords: object) -> torch.Tensor:
        calls.append(1)
        losses = original(*arguments, **keywords)  # pyright: ignore[reportArgumentType]
        return spoil(losses) if len(calls) == number else losses

    monkeypatch.setattr(step, "utterance_losses", spoiling)


def _always_nan(model: nn.Module, batch: object, **_: object) -> torch.Tensor:
    logits, _ = model(batch.features, batch.num_frames)  # pyright: ignore[reportAttributeAccessIssue]
    return logits.sum(dim=(0, 2)) * torch.nan
