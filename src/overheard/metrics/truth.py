"""`Truth`: what the client really said. Metrics and audits read it; attacks never do."""

from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.recognition.configuration import config_from_file
from overheard.speech.features import FrontEndConfig
from overheard.storage import read_tensors, write_tensors


@dataclass(frozen=True)
class TrueUtterance:
    """One utterance of an update.

    Attributes:
        id: of the utterance.
        speaker: its speaker; None where unknown.
        transcript: what was said.
        features: (T, F) that the model was given.
        waveform: (S,) samples; None where the update was made from features alone.
    """

    id: str
    speaker: str | None
    transcript: str
    features: Float[Tensor, "T F"]
    waveform: Float[Tensor, " S"] | None


@dataclass(frozen=True)
class Truth:
    """The utterances behind one update, in the batch's order, and the front end that made their features."""

    utterances: tuple[TrueUtterance, ...]
    front_end: FrontEndConfig

    def save(self, path: Path) -> None:
        """Write it to a file of its own, apart from the update."""
        tensors: dict[str, Tensor] = {}
        for index, utterance in enumerate(self.utterances):
            tensors[f"features.{index}"] = utterance.features
            if utterance.waveform is not None:
                tensors[f"waveform.{index}"] = utterance.waveform
        words = [
            {"id": utterance.id, "speaker": utterance.speaker, "transcript": utterance.transcript}
            for utterance in self.utterances
        ]
        write_tensors(path, tensors, {"truth": words, "front_end": asdict(self.front_end)})


def load_truth(path: Path) -> Truth:
    """Read what `Truth.save` wrote.

    Raises:
        InputError: the file is missing, broken, or no truth.
    """
    tensors, metadata = read_tensors(path, "truth")
    words = metadata.get("truth")
    if not isinstance(words, list):
        raise InputError(str(path), "safetensors that hold no truth", "name the --truth file of overheard share")
    utterances = []
    for index, fields in enumerate(words):
        features, waveform = tensors.get(f"features.{index}"), tensors.get(f"waveform.{index}")
        if features is None or features.ndim != 2 or not features.is_floating_point():
            raise InputError(str(path), f"no features (T, F) of utterance {index}", "run overheard share again")
        if waveform is not None and (waveform.ndim != 1 or not waveform.is_floating_point()):
            raise InputError(str(path), f"no waveform (S,) of utterance {index}", "run overheard share again")
        named = config_from_file(_Named, fields, path, "truth")
        utterances.append(TrueUtterance(named.id, named.speaker, named.transcript, features, waveform))
    front_end = config_from_file(FrontEndConfig, metadata.get("front_end"), path, "front end")
    return Truth(tuple(utterances), front_end)


@dataclass(frozen=True)
class _Named:
    """What a file says of an utterance beside its tensors."""

    id: str
    speaker: str | None
    transcript: str
