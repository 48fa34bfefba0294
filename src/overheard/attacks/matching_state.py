"""The state of a matching run between two iterations: all of it, so that a resumed run goes on bit for bit.

A checkpoint is one safetensors file: tensors by name, the rest as JSON, beside the signature of what the run is about.
Another model, update, prior or setting is refused, with the first difference named.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.observation import Observation
from overheard.attacks.schedules import Visit
from overheard.errors import InputError
from overheard.federation.update import ClientUpdate
from overheard.recognition.weights import weights_fingerprint
from overheard.storage import read_tensors, write_tensors


@dataclass
class MatchingState:
    """Where a run stands.

    Attributes:
        features: (T, N, F) of the current restart.
        labels: of each utterance.
        restart: counted from 0.
        iteration: of this restart; so many are done.
        cpu_seconds: process CPU time of this restart, s.
        best_features: those of least distance in this restart.
        best_labels: that they were found with.
        best_distance: of those.
        visit: the grid being worked on; None before the first iteration.
        optimiser: state of the optimiser of this visit; None at its start.
        gradient: of the objective at the last point.
        finished: features, labels and distance of earlier restarts.
        history: one row in every `history_every` iterations.
    """

    features: Float[Tensor, "T N F"]
    labels: list[list[int]]
    restart: int = 0
    iteration: int = 0
    cpu_seconds: float = 0.0
    best_features: Float[Tensor, "T N F"] | None = None
    best_labels: list[list[int]] = field(default_factory=list)
    best_distance: float = math.inf
    visit: Visit | None = None
    optimiser: dict[str, Any] | None = None
    gradient: Float[Tensor, "T N F"] | None = None
    finished: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path, generator: torch.Generator, signature: dict[str, Any]) -> None:
        """Write everything, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        values = {**vars(self), "visit": None if self.visit is None else asdict(self.visit)}
        packed = _pack({**values, "generator": generator.get_state()}, "state", tensors)
        write_tensors(path, tensors, {"matching": packed, "signature": signature})


def load_state(
    path: Path, generator: torch.Generator, signature: dict[str, Any], device: torch.device
) -> MatchingState:
    """The state of a run about the same thing; the generator goes on where it stood.

    Raises:
        InputError: a broken file, no checkpoint, or one of another model, update, prior or setting.
    """
    tensors, metadata = read_tensors(path, "matching checkpoint")
    if "matching" not in metadata or not isinstance(metadata.get("signature"), dict):
        raise InputError(str(path), "safetensors that hold no matching checkpoint", "name another file")
    difference = _first_difference(metadata["signature"], json.loads(json.dumps(signature)))
    if difference is not None:
        raise InputError(str(path), f"a checkpoint of another run: {difference}", "name another file, or delete this")
    values = _unpack(metadata["matching"], tensors, device)
    generator.set_state(values.pop("generator").cpu())
    visit = values.pop("visit")
    return MatchingState(**values, visit=None if visit is None else Visit(**visit))


def run_signature(
    observation: Observation, settings: dict[str, Any], seed: int, start: Tensor | None
) -> dict[str, Any]:
    """What a run is about, as JSON values."""
    return {
        "model": weights_fingerprint(observation.model),
        "update": _update_digest(observation.update),
        "prior": observation.prior.declared(),
        "public_speech": _digest(observation.public_speech),
        "settings": settings,
        "seed": seed,
        "start": None if start is None else _digest([start]),
    }


def _update_digest(update: ClientUpdate) -> str:
    names = sorted(update.tensors)
    protocol = json.dumps([names, asdict(update.protocol)], sort_keys=True)
    return hashlib.sha256((protocol + _digest(update.tensors[name] for name in names)).encode()).hexdigest()


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_difference(there: Any, here: Any, name: str = "") -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            inner = f"{name}.{key}" if name else str(key)
            found = _first_difference(there.get(key), here.get(key), inner)
            if found is not None:
                return found
        return None
    if there == here:
        return None
    return f"{name} is {_shown(there)} there and {_shown(here)} here"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of nested dictionaries, lists and numbers, its tensors put aside under their paths."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        # As pairs: an optimiser's state has whole numbers for keys.
        return {"pairs": [[key, _pack(inner, f"{name}.{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(inner, f"{name}.{index}", tensors) for index, inner in enumerate(value)]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        # A copy: memory that begins elsewhere in a cache line is summed in another order, and the last bit may differ.
        return tensors[value["tensor"]].to(device, copy=True)
    if isinstance(value, dict):
        return {key: _unpack(inner, tensors, device) for key, inner in value["pairs"]}
    if isinstance(value, list):
        return [_unpack(inner, tensors, device) for inner in value]
    return value
