"""Rounds end with the mean of what was valid, whoever failed, and a run goes on as if it had never stopped."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from matplotlib.figure import Figure
from tone_corpus import normed_model, tiny_model, write_tones

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")

from fleet import LOCAL, Fault, faulty_app, plan_of, run, same_weights

from overheard.errors import InputError
from overheard.federation.clients import ClientSpeech, ClientSplit
from overheard.federation.local_settings import LocalSettings, Weighting
from overheard.federation.local_training import Round, train_locally
from overheard.federation.strategies import STRATEGIES
from overheard.federation.update import load_update
from overheard.metrics.truth import load_truth
from overheard.recognition.loss import recognition_loss
from overheard.recognition.models import build_model
from overheard.recognition.weights import load_model, resolve_model, weights_fingerprint
from overheard.speech.corpus import Selection, load_corpus
from overheard.training.curves import draw_curves
from overheard.training.data import FeatureDataset
from overheard.training.tracking import read_lines


@pytest.mark.parametrize("weighting", ["utterances", "frames", "equal"])
def test_fedavg_is_the_weighted_mean_of_the_clients(tones: Path, tmp_path: Path, weighting: Weighting) -> None:
    # The first client has three speakers' speech, the second one's: a pass over it is longer for the first.
    local = replace(LOCAL, steps=None, weighting=weighting)
    plan = replace(plan_of(tones, rounds=1, local=local, clients_per_round=2), split=ClientSplit(speakers_per_client=3))
    server = run(plan, tmp_path)
    cuts = load_corpus(tones).cuts
    outcomes = [
        train_locally(build_model(tiny_model()), ClientSpeech(name, own), local, Round())
        for name, own in (("100+101+102", cuts[:18]), ("103", cuts[18:]))
    ]
    weights = {
        "utterances": (18.0, 6.0),
        "frames": tuple(float(each.frames) for each in outcomes),
        "equal": (1.0, 1.0),
    }[weighting]
    for name, start in build_model(tiny_model()).named_parameters():
        mean = sum(weight * each.update.tensors[name] for weight, each in zip(weights, outcomes, strict=True))
        assert torch.allclose(server.model.get_parameter(name), start + mean / sum(weights), atol=1e-6), name


def test_one_client_of_fedsgd_is_central_descent(tones: Path, tmp_path: Path) -> None:
    local = LocalSettings(kind="gradient", batch_size=6, learning_rate=0.01)
    server = run(plan_of(tones, speakers=("101",), rounds=3, clients_per_round=1, local=local), tmp_path)
    model = build_model(tiny_model()).train()
    batch = FeatureDataset(model)[load_corpus(tones).cuts[6:12]].batch
    assert batch is not None
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        recognition_loss(model, batch).backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(server.model.get_parameter(name), parameter, atol=1e-5), name


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_a_round_and_goes_on(tones: Path, tmp_path: Path, name: str) -> None:
    settings = {"Krum": ":num_malicious_nodes=1", "MultiKrum": ":num_malicious_nodes=1,num_nodes_to_select=2"}
    settings |= {"FedAvgM": ":server_momentum=0.9", "FedProx": ":proximal_mu=1.0", "Bulyan": ":num_malicious_nodes=0"}
    settings |= {"QFedAvg": ":client_learning_rate=0.01,q=0.5"}
    text = name + settings.get(name, "")
    whole = run(plan_of(tones, rounds=2, strategy=text), tmp_path / "whole")
    run(plan_of(tones, rounds=1, strategy=text), tmp_path / "parts")
    parts = run(plan_of(tones, rounds=2, strategy=text), tmp_path / "parts")
    assert same_weights(whole.model, parts.model)
    assert not same_weights(whole.model, build_model(tiny_model()))
    assert [line["step"] for line in read_lines(tmp_path / "parts" / "metrics.jsonl") if line["kind"] == "step"] == [
        1,
        2,
    ]


def test_bad_clients_are_named_and_left_out(tones: Path, tmp_path: Path) -> None:
    kinds = ("crash", "nan", "shape")
    faults = tuple(Fault(str(100 + at), kind) for at, kind in enumerate(kinds))
    server = run(plan_of(tones, rounds=1), tmp_path / "faulty", app=faulty_app(tmp_path / "faulty", faults))
    alone = run(plan_of(tones, rounds=1, speakers=("103",), clients_per_round=1), tmp_path / "alone")
    assert same_weights(server.model, alone.model)
    reasons = {line["client"]: line["reason"] for line in read_lines(tmp_path / "faulty" / "faults.jsonl")}
    assert reasons == {
        "100": "failed: RuntimeError: the disk is gone",
        "101": "'output.bias' holds NaN or infinity",
        "102": "'output.bias' has shape (28,), the model's has (29,)",
    }


def test_a_client_whose_recordings_hold_nan_is_named(tmp_path: Path) -> None:
    corpus = write_tones(tmp_path / "corpus", speakers=2, each=2)
    for path in sorted((corpus / "tones" / "101" / "1").glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        samples[len(samples) // 2] = float("nan")
        soundfile.write(path.with_suffix(".wav"), samples, rate, subtype="FLOAT")
        path.unlink()
    server = run(plan_of(corpus, rounds=1, clients_per_round=2), tmp_path / "run")
    alone = run(plan_of(corpus, rounds=1, speakers=("100",), clients_per_round=1), tmp_path / "alone")
    assert same_weights(server.model, alone.model)
    [line] = read_lines(tmp_path / "run" / "faults.jsonl")
    assert line["client"] == "101"
    assert "features hold NaN or infinity" in line["reason"]


def test_a_round_without_a_valid_reply_stops_the_run(tones: Path, tmp_path: Path) -> None:
    kinds = ("crash", "nothing", "lack", "nan")
    faults = tuple(Fault(str(100 + at), kind) for at, kind in enumerate(kinds))
    run(plan_of(tones, rounds=1), tmp_path)
    with pytest.raises(InputError, match=r"round 2: 0 valid replies of 4.*101: an empty reply.*102: lacks"):
        run(plan_of(tones, rounds=2), tmp_path, app=faulty_app(tmp_path, faults))
    # What was done is kept, and the run goes on.
    assert run(plan_of(tones, rounds=2), tmp_path).progress.round == 2


def test_another_run_is_not_gone_on_with(tones: Path, tmp_path: Path) -> None:
    run(plan_of(tones, rounds=1), tmp_path)
    with pytest.raises(InputError, match=r"settings\.local\.learning_rate: 0\.01 there, 0\.5 now"):
        run(plan_of(tones, local=replace(LOCAL, learning_rate=0.5)), tmp_path)


def test_the_learning_rate_falls_over_the_rounds_for_clients_and_server(tones: Path, tmp_path: Path) -> None:
    local = LocalSettings(kind="gradient", batch_size=2, learning_rate=0.01)
    plan = plan_of(tones, local=local, schedule="cosine", rounds=4, capture=4)
    run(plan, tmp_path / "run")
    rates = [line["learning_rate"] for line in _steps_of(tmp_path / "run")]
    assert rates == pytest.approx([0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi * done / 4)) / 2) for done in range(4)])
    # FedSGD: the server's step is the mean gradient times the round's rate.
    folders = [tmp_path / "run" / "captured" / f"round-{number:06d}" for number in (3, 4)]
    before, after = (load_model(folder / "model.safetensors") for folder in folders)
    gradients = [load_update(path).tensors["output.bias"] for path in folders[0].glob("1*.safetensors")]
    moved = after.get_parameter("output.bias") - before.get_parameter("output.bias")
    assert torch.allclose(moved, -rates[2] * torch.stack(gradients).mean(0), atol=1e-7)
    # An update says at which rate its client trained, since attacks divide by it.
    run(replace(plan, settings=replace(plan.settings, local=LOCAL, rounds=2, capture=1)), tmp_path / "deltas")
    [path] = (tmp_path / "deltas" / "captured" / "round-000002").glob("1*.safetensors")
    assert load_update(path).protocol.learning_rate == _steps_of(tmp_path / "deltas")[1]["learning_rate"] < 0.006


def test_a_run_whose_rate_falls_goes_on_with_as_many_rounds_alone(tones: Path, tmp_path: Path) -> None:
    plan = plan_of(tones, schedule="cosine", rounds=2, clients_per_round=1)
    server = run(plan, tmp_path)
    assert same_weights(run(plan, tmp_path).model, server.model)
    with pytest.raises(InputError, match=r"settings\.rounds: 2 there, 3 now"):
        run(replace(plan, settings=replace(plan.settings, rounds=3)), tmp_path)


def test_every_round_is_recorded_by_client_and_by_speaker(
    tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan_of(tones), dev=Selection(speakers=("100", "103")))
    run(plan, tmp_path)
    measured = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "evaluation"]
    assert [line["step"] for line in measured] == [1, 2]
    for line in measured:
        assert set(line["speakers"]) == {"100", "103"}
        assert all(own["wer"] >= 0 and own["cer"] >= 0 for own in line["speakers"].values())
    for line in _steps_of(tmp_path):
        assert [each["client"] for each in line["clients"]] == ["100", "101", "102", "103"]
        assert all(each["loss"] > 0 and each["size"] > 0 for each in line["clients"])
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_curves(tmp_path)
    shown = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in shown] == [
        "CTC loss, nats per utterance",
        "learning rate",
        "error rate, greedy, %",
        "utterances per second",
        "seconds of a round",
        "megabytes of a round",
        "WER by speaker, greedy, %",
    ]
    assert {axis.get_xlabel() for axis in shown} == {"round"}
    assert all(len(numpy.asarray(line.get_xdata())) == 2 for axis in shown for line in axis.lines)


def test_a_run_may_measure_nothing(tones: Path, tmp_path: Path) -> None:
    server = run(plan_of(tones, rounds=1, evaluate_every=0), tmp_path)
    assert server.evaluations == []
    assert [line["kind"] for line in read_lines(tmp_path / "metrics.jsonl")] == ["step"]
    # Measuring changes no round: the run may go on with it.
    assert len(run(plan_of(tones, rounds=2, evaluate_every=1), tmp_path).evaluations) == 1


def test_the_model_of_a_run_can_be_named(tones: Path, tmp_path: Path) -> None:
    server = run(plan_of(tones), tmp_path)
    assert same_weights(resolve_model(str(tmp_path), 0), server.model) or len(server.evaluations) == 2
    last = server.evaluations[-1]
    assert last["cer"] >= 0
    assert set(last["speakers"]) == {"100"}


@pytest.mark.parametrize("buffers", ["average", "local"])
@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam"])
def test_statistics_of_norms_are_averaged_or_stay(tones: Path, tmp_path: Path, buffers: str, strategy: str) -> None:
    local = replace(LOCAL, **{"buffers": buffers})
    whole = run(plan_of(tones, local=local, strategy=strategy), tmp_path / "whole", normed_model("batch"))
    run(plan_of(tones, local=local, strategy=strategy, rounds=1), tmp_path / "parts", normed_model("batch"))
    parts = run(plan_of(tones, local=local, strategy=strategy), tmp_path / "parts", normed_model("batch"))
    assert same_weights(whole.model, parts.model)
    before = dict(build_model(normed_model("batch")).named_buffers())
    for name, buffer in whole.model.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name]) == (buffers == "local"), name
    if buffers == "average":
        assert int(whole.model.get_buffer("output_norm.num_batches_tracked")) == 4


def test_captured_updates_are_what_the_server_saw(tones: Path, tmp_path: Path) -> None:
    local = LocalSettings(kind="gradient", batch_size=2, learning_rate=0.01)
    plan = plan_of(tones, local=local, capture=2, capture_rounds=(2,), defences=("clip:norm=0.5",), clients_per_round=3)
    run(plan, tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("captured/*/*"))
    assert len(files) == 3
    assert all("round-000002" in file for file in files)
    for file in files:
        path = tmp_path / file
        if path.name == "model.safetensors":
            continue
        update, model = load_update(path), load_model(path.with_name("model.safetensors"))
        assert update.protocol.weights == weights_fingerprint(model)
        length = sum(float(each.square().sum()) for each in update.tensors.values()) ** 0.5
        assert length == pytest.approx(0.5, rel=1e-4)
        truth = load_truth(tmp_path / "truth" / "round-000002" / path.name)
        assert update.protocol.num_utterances == len(truth.utterances) == 2
        assert {said.speaker for said in truth.utterances} == {path.stem}


def test_secure_aggregation_keeps_the_mean_alone(tones: Path, tmp_path: Path) -> None:
    local = LocalSettings(kind="gradient", batch_size=2, learning_rate=0.01)
    server = run(plan_of(tones, local=local, capture=1, rounds=1, defences=("secure-aggregation",)), tmp_path)
    assert [path.stem for path in (tmp_path / "captured" / "round-000001").iterdir() if path.stem != "model"] == [
        "cohort"
    ]
    update = load_update(tmp_path / "captured" / "round-000001" / "cohort.safetensors")
    assert update.protocol.num_utterances == 8
    start = build_model(tiny_model())
    for name, tensor in update.tensors.items():
        assert torch.allclose(server.model.get_parameter(name), start.get_parameter(name) - 0.01 * tensor, atol=1e-6)
    with pytest.raises(InputError, match="Krum with secure-aggregation"):
        run(plan_of(tones, strategy="Krum", defences=("secure-aggregation",)), tmp_path / "other")


@pytest.mark.parametrize("defence", ["user-dp:norm=0.1", "sample-dp:norm=0.1"])
def test_epsilon_grows_from_round_to_round(tones: Path, tmp_path: Path, defence: str) -> None:
    pytest.importorskip("opacus", reason="Opacus is not installed: overheard[federated]")
    spec, plan = normed_model("group"), plan_of(tones, defences=(defence,), clients_per_round=2)
    run(replace(plan, settings=replace(plan.settings, rounds=1)), tmp_path, spec)
    run(plan, tmp_path, spec)
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "step"]
    assert 0 < lines[0]["epsilon"] <= lines[1]["epsilon"]
    if defence.startswith("user"):
        assert lines[0]["epsilon"] < lines[1]["epsilon"]
        with pytest.raises(InputError, match="statistics of batch norms"):
            run(plan, tmp_path / "batch", normed_model("batch"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert "differentially private" in config["defences"][0]["guarantee"]


def test_half_precision_is_sent_as_such(tones: Path, tmp_path: Path) -> None:
    for name, defences in (("plain", ()), ("half", ("quantise-16",))):
        run(plan_of(tones, rounds=1, defences=defences), tmp_path / name)
    plain, half = (read_lines(tmp_path / name / "metrics.jsonl")[0]["bytes_from_clients"] for name in ("plain", "half"))
    assert half < 0.65 * plain


def _steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "step"]
