"""The state of a matching run between two iterations: all of it, so that a resumed run goes on bit for bit.

A checkpoint is one safetensors file: tensors by name, the rest as JSON, beside the signature of what the run is about.
Another model, update, prior or setting is refused, with the first difference named.
"""

import hashlib
import json
import math
import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.gradient_matching.optimiser import LARGEST, OptimiserState, Take, pack_state, unpack_state
from overheard.attacks.gradient_matching.schedules import Visit
from overheard.attacks.observation import Observation
from overheard.errors import InputError
from overheard.federation.update import ClientUpdate
from overheard.recognition.configuration import check_whole, config_from_file
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.alphabet import BLANK
from overheard.storage import read_tensors, write_tensors

OPTIMISER = "optimiser."
"""Before the names of the optimiser's tensors."""

AGAIN = "delete it: the run begins afresh"


@dataclass(frozen=True)
class PlainOutcome:
    """`Outcome` without its tensor, as a file holds it."""

    labels: tuple[tuple[int, ...], ...]
    distance: float
    iterations: int
    cpu_seconds: float

    def __post_init__(self) -> None:
        _check_progress(self.distance, self.iterations, self.cpu_seconds)


@dataclass(frozen=True)
class Outcome(PlainOutcome):
    """What a restart came to.

    Attributes:
        labels: of each utterance.
        distance: the least; infinite where it was never a number.
        iterations: that it took.
        cpu_seconds: that it spent.
        features: (T, N, F) of least distance; None where there are none.
    """

    features: Float[Tensor, "T N F"] | None = None


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
        finished: earlier restarts.
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
    optimiser: OptimiserState | None = None
    gradient: Float[Tensor, "T N F"] | None = None
    finished: list[Outcome] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path, generator: torch.Generator, signature: dict[str, Any]) -> None:
        """Write everything, whole or not at all."""
        tensors = {"features": self.features, "best_features": self.best_features, "gradient": self.gradient}
        tensors |= {f"finished.{index}": outcome.features for index, outcome in enumerate(self.finished)}
        numbers, moments = (None, {}) if self.optimiser is None else pack_state(self.optimiser)
        tensors |= {f"{OPTIMISER}{name}": tensor for name, tensor in moments.items()}
        values = {name: value for name, value in vars(self).items() if name not in tensors}
        values |= {
            "visit": None if self.visit is None else asdict(self.visit),
            "optimiser": numbers,
            "finished": [
                {name: value for name, value in vars(outcome).items() if name != "features"}
                for outcome in self.finished
            ],
        }
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        write_tensors(path, kept | {"generator": generator.get_state()}, {"matching": values, "signature": signature})


@dataclass(frozen=True)
class ExpectedRun:
    """The run that a checkpoint has to be of.

    Attributes:
        signature: what the run is about.
        features: of its shape, type and device.
        num_symbols: V.
        grids: first frame of each, and the one past its last.
        optimiser: by name.
    """

    signature: dict[str, Any]
    features: Float[Tensor, "T N F"]
    num_symbols: int
    grids: list[tuple[int, int]]
    optimiser: str


@dataclass(frozen=True)
class _Plain:
    """`MatchingState` without its tensors, as a file holds it."""

    labels: tuple[tuple[int, ...], ...]
    restart: int
    iteration: int
    cpu_seconds: float
    best_labels: tuple[tuple[int, ...], ...]
    best_distance: float
    visit: Visit | None
    optimiser: dict[str, Any] | None
    finished: tuple[PlainOutcome, ...]
    history: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        _check_progress(self.best_distance, self.iteration, self.cpu_seconds)
        check_whole("restart", self.restart, max(0, len(self.finished) - 1), len(self.finished))


def load_state(path: Path, generator: torch.Generator, expected: ExpectedRun) -> MatchingState:
    """The state of a run about the same thing; the generator goes on where it stood.

    Raises:
        InputError: a broken file, no checkpoint, one of another model, update, prior or setting, or one whose parts do
            not fit together.
    """
    tensors, metadata = read_tensors(path, "matching checkpoint")
    if "matching" not in metadata or not isinstance(metadata.get("signature"), dict):
        raise InputError(str(path), "safetensors that hold no matching checkpoint", "name another file")
    difference = _first_difference(metadata["signature"], json.loads(json.dumps(expected.signature)))
    if difference is not None:
        raise InputError(str(path), f"a checkpoint of another run: {difference}", "name another file, or delete this")
    plain = config_from_file(_Plain, metadata["matching"], path, "matching checkpoint")
    try:
        state = _joined(plain, tensors, expected)
        _continue(generator, tensors.get("generator"))
    except InputError as error:
        found = f"not a matching checkpoint ({error.argument}: {error.found})"
        raise InputError(str(path), found, AGAIN) from error
    return state


def _joined(plain: _Plain, tensors: dict[str, Tensor], expected: ExpectedRun) -> MatchingState:
    shape = tuple(expected.features.shape)
    take = _taker(tensors, expected.features)
    _check_labels(plain.labels, expected)
    best = take("best_features", shape) if "best_features" in tensors else None
    for labels, found, distance in (
        (plain.best_labels, best is not None, plain.best_distance),
        *((each.labels, f"finished.{k}" in tensors, each.distance) for k, each in enumerate(plain.finished)),
    ):
        if found != (distance < math.inf):
            raise InputError("distance", distance, "keep it beside the features that have it")
        if found:
            _check_labels(labels, expected)
    finished = [
        Outcome(**vars(outcome), features=take(f"finished.{k}", shape) if f"finished.{k}" in tensors else None)
        for k, outcome in enumerate(plain.finished)
    ]
    optimiser = None
    if plain.visit is not None:
        _check_visit(plain.visit, expected.grids, plain.iteration)
        if plain.optimiser is not None:
            names = {name.removeprefix(OPTIMISER) for name in tensors if name.startswith(OPTIMISER)}
            block = (plain.visit.stop - plain.visit.start, *shape[1:])
            inner = _taker(tensors, expected.features, OPTIMISER)
            optimiser = unpack_state(expected.optimiser, block, plain.optimiser, names, inner)
    return MatchingState(
        take("features", shape),
        [list(text) for text in plain.labels],
        plain.restart,
        plain.iteration,
        plain.cpu_seconds,
        best,
        [list(text) for text in plain.best_labels],
        plain.best_distance,
        plain.visit,
        optimiser,
        take("gradient", shape) if "gradient" in tensors else None,
        finished,
        list(plain.history),
    )


def _taker(tensors: dict[str, Tensor], like: Tensor, prefix: str = "") -> Take:
    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        found = tensors.get(prefix + name)
        # Torch counts an optimiser's steps in a type of its own.
        fits = found is not None and (found.dtype == like.dtype or (shape == () and found.is_floating_point()))
        if found is None or not fits or found.shape != shape:
            shown = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            raise InputError(prefix + name, shown, f"give {like.dtype} of shape {shape}")
        # A copy: memory that begins elsewhere in a cache line is summed in another order, and the last bit may differ.
        return found.to(like.device, copy=True)

    return take


def _check_labels(labels: tuple[tuple[int, ...], ...], expected: ExpectedRun) -> None:
    frames, count, _ = expected.features.shape
    if len(labels) != count or any(len(text) > frames for text in labels):
        raise InputError("labels", f"{len(labels)} transcripts", f"give {count} of at most {frames} labels")
    for text in labels:
        for label in text:
            check_whole("labels", label, BLANK + 1, expected.num_symbols - 1)


def _check_progress(distance: float, iterations: int, cpu_seconds: float) -> None:
    check_whole("iterations", iterations, 0, LARGEST)
    if not (0.0 <= cpu_seconds <= LARGEST and distance >= 0.0):
        raise InputError("cpu_seconds, distance", (cpu_seconds, distance), "give numbers from 0 up")


def _check_visit(visit: Visit, grids: list[tuple[int, int]], iteration: int) -> None:
    check_whole("visit.number", visit.number, 0, LARGEST)
    check_whole("visit.grid", visit.grid, 0, len(grids) - 1)
    check_whole("visit.begun_at", visit.begun_at, 0, iteration)
    if (visit.start, visit.stop) != grids[visit.grid]:
        raise InputError("visit", f"frames {visit.start} to {visit.stop}", f"the grid's are {grids[visit.grid]}")


def _continue(generator: torch.Generator, state: Tensor | None) -> None:
    own = generator.get_state()
    if state is None or state.dtype != own.dtype or state.shape != own.shape:
        raise InputError("generator", "not a generator's state", f"give {len(own)} bytes")
    try:
        generator.set_state(state)
    except RuntimeError as error:
        raise InputError("generator", str(error).splitlines()[0], "keep it as it was written") from error


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
    # Of a file from outside: `repr` itself fails on lists within lists without end.
    text = reprlib.repr(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
