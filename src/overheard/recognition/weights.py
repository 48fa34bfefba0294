"""Models on disk, and models by whatever a user calls them: a name, a file, or a function of their own."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.recognition.models import MODELS, ModelSpec, build_model, model_on_meta, spec_of
from overheard.recognition.recogniser import seeded
from overheard.recognition.run_folder import model_file
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import FrontEndConfig
from overheard.storage import read_tensors, write_tensors

METADATA_FIELD = "model"


def save_model(model: nn.Module, path: Path) -> None:
    """Write a registered model's specification and tensors as one safetensors file, whole or not at all.

    Raises:
        InputError: the model is of no registered class, its tensors are not those of its specification, one holds
            NaN or infinity, or the file cannot be written.
    """
    spec = spec_of(model)
    tensors = model.state_dict()
    check_state(tensors, spec, "model")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError("model", f"tensor {name!r} holds NaN or infinity", "save it before training diverges")
    write_tensors(path, tensors, {METADATA_FIELD: asdict(spec)})


def load_model(path: Path) -> nn.Module:
    """The model that `save_model` wrote: on the CPU, in training mode.

    Raises:
        InputError: no such file, no whole safetensors file, no model in it, NaN, or tensors that are not those of the
            specification beside them; names the first difference and counts the others.
    """
    tensors, metadata = read_tensors(path, "model")
    if METADATA_FIELD not in metadata:
        raise InputError(str(path), "safetensors that hold no model", "name a file that holds a saved model")
    try:
        spec = ModelSpec.from_values(metadata[METADATA_FIELD])
    except InputError as error:
        raise InputError(str(path), f"{error.argument}: {error.found}", error.remedy) from error
    check_state(tensors, spec, str(path))
    model = model_on_meta(spec)
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return model


def check_state(tensors: dict[str, Tensor], spec: ModelSpec, source: str) -> None:
    """Refuse parameters and buffers that are not those of the specification.

    Raises:
        InputError: a tensor is missing, left over, or of another shape or type.
    """
    wanted = model_on_meta(spec).state_dict()
    differences = [f"tensor {name!r} is missing" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            differences.append(f"tensor {name!r} is not one of {spec.name}'s")
        elif (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            differences.append(f"tensor {name!r} is {_described(tensor)} and not {_described(wanted[name])}")
    if differences:
        found = f"{differences[0]} ({len(differences)} such differences in all)"
        raise InputError(source, found, f"give the {len(wanted)} tensors that its specification calls for")


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of every parameter and buffer, wherever the model lies."""
    digest = hashlib.sha256()
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in sorted(named, key=lambda item: item[0]):
        digest.update(f"{name} {_described(tensor)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resolve_model(text: str, seed: int) -> nn.Module:
    """The model that a user names.

    Args:
        text: a registered name, for the published sizes with weights from the seed; the JSON of a `ModelSpec`, which
            has its own seed; `module:function`, a function without arguments that returns an `nn.Module` with
            `front_end`, `alphabet` and `output_lengths`, called with torch's generator at the seed, modules in the
            working folder included; the path of a saved model; or the folder of a training run, for its best
            checkpoint.
        seed: of random weights.

    Raises:
        InputError: none of these, or one of these that does not work; says what is wrong.
    """
    if text in MODELS:
        return build_model(ModelSpec(text, seed=seed))
    if text.startswith("{"):
        return build_model(ModelSpec.from_json(text))
    path = Path(text)
    if path.is_file():
        return load_model(path)
    if text and path.is_dir():
        return load_model(model_file(path))
    module, colon, function = text.partition(":")
    if colon and all(part.isidentifier() for part in module.split(".")):
        return _users_model(text, module, function, seed)
    remedy = f"choose one of {', '.join(MODELS)}, the path of a saved model or of a run, or module:function"
    raise InputError(text, "no such model", remedy)


def _users_model(text: str, module_name: str, function_name: str, seed: int) -> nn.Module:
    with _importing_from_working_folder():
        try:
            module = importlib.import_module(module_name)
        except (ImportError, SyntaxError) as error:
            raise InputError(text, f"cannot import {module_name!r} ({error})", "check its name and folder") from error
        function = getattr(module, function_name, None)
        if not callable(function):
            found = f"{module_name!r} has no function {function_name!r}"
            raise InputError(text, found, "give module:function, a function that returns the model")
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            found = f"{function_name!r} needs arguments ({error})"
            raise InputError(text, found, "give a function that takes none") from error
        with seeded(seed):
            model = function()
    if not isinstance(model, nn.Module):
        raise InputError(text, f"{function_name!r} returned a {type(model).__name__}", "return a torch.nn.Module")
    wanted = {
        "front_end": (isinstance(getattr(model, "front_end", None), FrontEndConfig), "a FrontEndConfig"),
        "alphabet": (isinstance(getattr(model, "alphabet", None), Alphabet), "an Alphabet"),
        "output_lengths": (callable(getattr(model, "output_lengths", None)), "a method"),
    }
    lacking = [f"{name} ({kind})" for name, (present, kind) in wanted.items() if not present]
    if lacking:
        raise InputError(text, f"{type(model).__name__} lacks {', '.join(lacking)}", "add what Recogniser describes")
    return model


@contextmanager
def _importing_from_working_folder() -> Iterator[None]:
    """An installed command does not look for modules where it is called, unlike `python -m`."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
