"""Saving, loading and naming models, and every way in which that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from overheard.errors import InputError
from overheard.recognition.models import MODELS, ModelSpec, build_model, model_spec, spec_of
from overheard.recognition.weights import load_model, resolve_model, save_model, weights_fingerprint
from overheard.storage import read_tensors, write_tensors

SPECS = {
    "deepspeech1": model_spec("deepspeech1", hidden_size=8, context=1),
    "deepspeech2": model_spec("deepspeech2", channels=2, hidden_size=8, num_layers=2, seed=3),
    "transformer": model_spec(
        "transformer", channels=32, hidden_size=16, num_layers=1, num_heads=2, feedforward_size=8, seed=1
    ),
}


@pytest.fixture(name="saved")
def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(build_model(SPECS["deepspeech2"]), path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model: Any = build_model(SPECS[name])
    features = torch.randn(30, 2, model.front_end.num_features, generator=torch.Generator().manual_seed(0))
    num_frames = torch.tensor([30, 22])
    model(features, num_frames)  # moves the running statistics of batch norm
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert spec_of(loaded) == SPECS[name]
    assert weights_fingerprint(loaded) == weights_fingerprint(model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    torch.testing.assert_close(loaded.eval()(features, num_frames), model.eval()(features, num_frames), atol=0, rtol=0)


def test_settings_are_stored_with_their_defaults(saved: Path) -> None:
    _, metadata = read_tensors(saved, "model")
    stored = metadata["model"]["config"]
    assert stored["padding"] == [[0, 10], [0, 0]]
    assert stored["front_end"]["hop"] == 320


def test_fingerprint_tells_every_change() -> None:
    model = build_model(SPECS["deepspeech2"])
    prints = {weights_fingerprint(model), weights_fingerprint(build_model(model_spec("deepspeech1", hidden_size=8)))}
    with torch.no_grad():
        model.get_parameter("output.weight")[0, 0] += 1e-3
    prints.add(weights_fingerprint(model))
    model.get_buffer("output_norm.running_mean")[0] += 1e-3
    prints.add(weights_fingerprint(model))
    prints.add(weights_fingerprint(model.double()))
    assert len(prints) == 5
    assert weights_fingerprint(build_model(SPECS["deepspeech2"])) in prints


def _without_one(tensors: dict[str, Tensor]) -> None:
    del tensors["convolutions.0.bias"]


def _with_one_more(tensors: dict[str, Tensor]) -> None:
    tensors["extra"] = torch.zeros(1)


def _reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["output.weight"] = torch.zeros(29, 9)


def _in_double(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()})


def _with_nan(tensors: dict[str, Tensor]) -> None:
    tensors["output.weight"][0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_one, r"tensor 'convolutions.0.bias' is missing \(1 such differences"),
        (_with_one_more, r"tensor 'extra' is not one of deepspeech2's \(1 "),
        (_reshaped, r"'output.weight' is float32 \(29, 9\) and not float32 \(29, 8\) \(1 "),
        (_in_double, r"is float64 .* and not float32 .* \(29 such differences"),
        (_with_nan, r"'output.weight' holds NaN"),
    ],
)
def test_wrong_tensors_are_refused(change: Any, message: str, saved: Path) -> None:
    tensors, metadata = read_tensors(saved, "model")
    change(tensors)
    write_tensors(saved, tensors, metadata)
    with pytest.raises(InputError, match=message) as caught:
        load_model(saved)
    assert caught.value.argument == str(saved)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"hold no model"),
        ({"model": []}, r"model specification: \[\]; give an object"),
        ({"model": {"name": "deepspeech9"}}, r"model: 'deepspeech9'; choose one of deepspeech1, deepspeech2"),
        ({"model": {"name": "deepspeech2", "config": {"hidden_size": 10**9}}}, r"hidden_size: 1000000000"),
        ({"model": {"name": "deepspeech2", "config": {"hidden_size": 60000}}}, r"56 such differences"),
        ({"model": {"name": "deepspeech1"}}, r"'input_layers.0.weight' is missing"),
    ],
)
def test_wrong_specifications_are_refused(metadata: dict[str, Any], message: str, saved: Path) -> None:
    tensors, _ = read_tensors(saved, "model")
    write_tensors(saved, tensors, metadata)
    with pytest.raises(InputError, match=message) as caught:
        load_model(saved)
    assert caught.value.argument == str(saved)


def test_broken_files_are_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    broken = {
        "truncated": whole[:-10],
        "header-cut": whole[:100],
        "empty": b"",
        "no-tensors": b"PK\x03\x04" + bytes(100),
        "oversized-header": (2**62).to_bytes(8, "little") + whole[8:],
        "header-beyond-the-end": (len(whole) + 1).to_bytes(8, "little") + whole[8:],
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_model(path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="without the metadata of a model"):
        load_model(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path / "absent.safetensors")


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"model: Linear; only deepspeech1, deepspeech2"):
        save_model(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"model: tensor '.*' is float64"):
        save_model(build_model(SPECS["deepspeech1"]).double(), path)
    model = build_model(SPECS["deepspeech1"])
    with torch.no_grad():
        model.get_parameter("output.bias")[0] = torch.inf
    with pytest.raises(InputError, match=r"'output.bias' holds NaN or infinity"):
        save_model(model, path)
    assert not list(tmp_path.iterdir())


def test_a_model_by_name_has_the_published_size_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def build(spec: ModelSpec) -> torch.nn.Module:
        built.append(spec)
        return torch.nn.Identity()

    monkeypatch.setattr("overheard.recognition.weights.build_model", build)
    resolve_model("deepspeech1", 5)
    assert built == [ModelSpec("deepspeech1", seed=5)]


def test_a_model_by_file_or_specification(saved: Path) -> None:
    expected = weights_fingerprint(build_model(SPECS["deepspeech2"]))
    assert weights_fingerprint(resolve_model(str(saved), 9)) == expected
    assert weights_fingerprint(resolve_model(SPECS["deepspeech2"].to_json(), 9)) == expected


USERS_MODULE = """
from torch import nn
from overheard.recognition.models import build_model, model_spec
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import MFCC_26


class Users(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.front_end, self.alphabet = MFCC_26, Alphabet()

    def output_lengths(self, num_frames):
        return num_frames


def needs(width):
    return Users(width)


def number():
    return 3


def bare():
    return nn.Linear(2, 2)


def without_lengths():
    model = bare()
    model.front_end, model.alphabet = MFCC_26, Alphabet()
    return model


def mistyped():
    model = Users()
    model.front_end = "mfcc"
    return model


constant = 3
"""


@pytest.fixture(name="users_module")
def _users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"users_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USERS_MODULE)
    (tmp_path / f"{name}_broken.py").write_text("def build(:\n")
    (tmp_path / f"{name}_lacking.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.chdir(tmp_path)
    return name


def test_a_users_own_model(users_module: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second, third = (weights_fingerprint(resolve_model(f"{users_module}:Users", seed)) for seed in (4, 4, 5))
    assert first == second != third
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODULE:needs", r"'needs' needs arguments \(missing a required argument: 'width'\)"),
        ("MODULE:number", r"'number' returned a int; return a torch.nn.Module"),
        ("MODULE:bare", r"Linear lacks front_end \(a .*\), alphabet \(an .*\), output_lengths \(a"),
        ("MODULE:without_lengths", r"Linear lacks output_lengths \(a method\); add"),
        ("MODULE:mistyped", r"Users lacks front_end \(a FrontEndConfig\); add"),
        ("MODULE:absent", r"has no function 'absent'"),
        ("MODULE:constant", r"has no function 'constant'"),
        ("MODULE:", r"has no function ''"),
        ("MODULE_broken:build", r"cannot import 'users_.*_broken' \(invalid syntax"),
        ("MODULE_lacking:build", r"cannot import .*No module named 'a_module_that_is_nowhere'"),
        ("no_such_module_anywhere:build", r"cannot import 'no_such_module_anywhere'"),
        (".relative:build", r"\.relative:build: no such model"),
        (":build", r":build: no such model; choose one of deepspeech1"),
        ("deepspeech", r"deepspeech: no such model; choose one of deepspeech1, .* the path .*module:function"),
        ("somewhere/model.safetensors", r"no such model"),
        (".", r"\.: a folder without checkpoints; name a run of overheard train, or a model file"),
        ("", r"no such model"),
        ("{", r"model specification: no JSON"),
        (json.dumps({"name": "deepspeech1", "config": {"hidden_size": 0}}), r"hidden_size: 0"),
    ],
)
def test_what_names_no_model_is_refused(text: str, message: str, users_module: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve_model(text.replace("MODULE", users_module), 0)
    assert "\n" not in str(caught.value)
