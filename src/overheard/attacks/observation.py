"""What an attack is given and what it gives back. Nothing true about the client passes here but the update."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.federation.update import ClientUpdate
from overheard.recognition.configuration import config_from_file
from overheard.storage import read_tensors, write_tensors


@dataclass(frozen=True)
class Prior:
    """What the attacker is declared to know beforehand; a report states it beside every result.

    Attributes:
        transcripts: what was said, one text for each utterance.
        num_frames: input frames of each utterance.
    """

    transcripts: tuple[str, ...] | None = None
    num_frames: tuple[int, ...] | None = None

    def declared(self) -> dict[str, Any]:
        """The parts that are known, by name."""
        known = {"transcripts": self.transcripts, "num_frames": self.num_frames}
        return {name: list(value) for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class Observation:
    """All that an attacker may see.

    Attributes:
        model: the public model, with the weights that the client started from.
        update: what the client shared.
        prior: declared prior knowledge.
        public_speech: features (T_i, F) of speech the attacker owns, by speakers other than the client's.
    """

    model: nn.Module
    update: ClientUpdate
    prior: Prior = Prior()
    public_speech: tuple[Float[Tensor, "_ F"], ...] = ()

    def given(self) -> dict[str, Any]:
        """What the attacker has beside model and tensors, as JSON values for the record."""
        protocol = self.update.protocol
        return {
            "kind": protocol.kind,
            "mode": protocol.mode,
            "batch": protocol.num_utterances,
            "local_steps": protocol.local_steps,
            "prior": sorted(self.prior.declared()),
            "public_speech": len(self.public_speech),
        }


TENSORS = {"features", "errors"}
"""What of a reconstruction is no JSON value."""


@dataclass(frozen=True)
class Reconstruction:
    """What an attack brought back.

    Attributes:
        attack: the name of the attack that did it.
        features: (T_i, F) for each utterance that came back; fewer than N, or none, where it failed.
        transcripts: text of each utterance in `features`; None where it was not recovered.
        certified: the update, re-simulated from the reconstruction, equals the observed one; None where not tried.
        unique: the solver's own test says that no other features fit; None where it has no such test.
        reason: why nothing, or only a part, came back; None when all did.
        given: what the attacker was given beside the tensors: the protocol's values, and the prior's names.
        settings: the attack's configuration.
        diagnostics: what the attack measured on its way; JSON values.
        errors: (D, T_i, F) draws of each utterance's error as the solver expects it, alike in neighbouring frames where
            its equations make it so; empty where it has none. For the certificate; no file keeps them.
        seconds: wall time of the attack on the features.
        seconds_words: wall time of transcript and certificate behind it; None where neither was tried.
        peak_mb: memory above that at the start, in MB; None where the system does not tell.
    """

    attack: str
    features: tuple[Float[Tensor, "_ F"], ...] = ()
    transcripts: tuple[str | None, ...] = ()
    certified: bool | None = None
    unique: bool | None = None
    reason: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    errors: tuple[Float[Tensor, "D _ F"], ...] = ()
    seconds: float = 0.0
    seconds_words: float | None = None
    peak_mb: float | None = None

    def save(self, path: Path) -> None:
        """Write features as tensors, all else as JSON."""
        tensors = {f"features.{index}": matrix for index, matrix in enumerate(self.features)}
        plain = {name: value for name, value in vars(self).items() if name not in TENSORS}
        write_tensors(path, tensors, {"reconstruction": plain})


def errors_of(
    features: Sequence[Float[Tensor, "_ F"]], drawn: Sequence[Float[Tensor, "D _ F"]]
) -> tuple[Float[Tensor, "D _ F"], ...]:
    """Draws of all utterances' errors; none where some were restored to another length than they were drawn for."""
    same = all(len(matrix) == errors.shape[1] for matrix, errors in zip(features, drawn, strict=True))
    return tuple(drawn) if same else ()


def load_reconstruction(path: Path) -> Reconstruction:
    """Read what `Reconstruction.save` wrote.

    Raises:
        InputError: the file is missing, broken, or no reconstruction.
    """
    tensors, metadata = read_tensors(path, "reconstruction")
    plain = metadata.get("reconstruction")
    wanted = set(Reconstruction.__dataclass_fields__) - TENSORS
    if not isinstance(plain, dict) or set(plain) != wanted:
        raise InputError(str(path), "safetensors that hold no reconstruction", "name a file of overheard attack")
    names = [f"features.{index}" for index in range(len(tensors))]
    if set(names) != set(tensors) or any(tensors[name].ndim != 2 for name in names):
        raise InputError(str(path), "features that are not matrices (T, F)", "run overheard attack again")
    found = config_from_file(Reconstruction, plain, path, "reconstruction")
    if len(found.transcripts) != len(names):
        count = f"{len(found.transcripts)} transcripts of {len(names)} utterances"
        raise InputError(str(path), count, "run overheard attack again")
    return replace(found, features=tuple(tensors[name].to(torch.float64) for name in names))
