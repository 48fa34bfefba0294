"""The recognisers by name, and `ModelSpec`: all that it takes to build one again."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from overheard.errors import InputError
from overheard.recognition.configuration import check_whole, config_from_json, config_to_json
from overheard.recognition.deepspeech1 import DeepSpeech1, DeepSpeech1Config
from overheard.recognition.deepspeech2 import DeepSpeech2, DeepSpeech2Config
from overheard.recognition.transformer import Transformer, TransformerConfig

MODELS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "deepspeech1": (DeepSpeech1, DeepSpeech1Config),
    "deepspeech2": (DeepSpeech2, DeepSpeech2Config),
    "transformer": (Transformer, TransformerConfig),
}
"""Class and configuration class; the class is called with a configuration and a seed."""


@dataclass(frozen=True)
class ModelSpec:
    """A registered model, its sizes and the seed of its initial weights; two equal ones build equal models.

    Attributes:
        name: in `MODELS`.
        config: JSON values by field name. Fields left out are filled in with their defaults, so that a stored
            specification outlives a change of them.
        seed: of the initial weights.

    Raises:
        InputError: an unknown name or setting, beside the known ones, or a value that the configuration refuses.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise InputError("model", repr(self.name), f"choose one of {', '.join(MODELS)}")
        check_whole("seed", self.seed, 0, 2**63 - 1)
        config = config_from_json(MODELS[self.name][1], self.config, self.name)
        object.__setattr__(self, "config", config_to_json(config))

    def to_json(self) -> str:
        """One line of JSON, the same for equal specifications."""
        return json.dumps(asdict(self), sort_keys=True)

    def written(self) -> str:
        """As a user writes it: the name, or JSON with the settings that are not the defaults."""
        usual = ModelSpec(self.name).config
        changed = {name: value for name, value in self.config.items() if value != usual[name]}
        return json.dumps({"name": self.name, "config": changed}) if changed else self.name

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """The specification that `to_json` wrote.

        Raises:
            InputError: no JSON, or not of a model; see the class.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("model specification", f"no JSON ({error})", "give what a model file holds") from error
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: object) -> "ModelSpec":
        """The specification from parsed JSON."""
        return config_from_json(cls, values, "model specification")


def model_spec(name: str, *, seed: int = 0, **config: Any) -> ModelSpec:
    """`ModelSpec` with settings as keywords: `model_spec("deepspeech2", hidden_size=256, num_layers=3)`."""
    return ModelSpec(name, config, seed)


def build_model(spec: ModelSpec) -> nn.Module:
    """The model on the CPU, in training mode, its weights drawn from the seed alone; no global generator moves."""
    with torch.device("cpu"):
        return _construct(spec)


def spec_of(model: nn.Module) -> ModelSpec:
    """The specification of a registered model; it says nothing about weights that training has changed.

    Raises:
        InputError: the model is of no registered class.
    """
    for name, (model_class, _) in MODELS.items():
        if type(model) is model_class:
            return ModelSpec(name, config_to_json(model.config), int(model.seed))  # pyright: ignore[reportArgumentType]
    raise InputError("model", type(model).__name__, f"only {', '.join(MODELS)} have a specification")


def model_on_meta(spec: ModelSpec) -> nn.Module:
    """The model without memory for its tensors: shapes and types alone."""
    with torch.device("meta"):
        return _construct(spec)


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name, at no cost in memory, to compare with tensors of unknown origin."""
    return {name: tuple(parameter.shape) for name, parameter in model_on_meta(spec).named_parameters()}


def _construct(spec: ModelSpec) -> nn.Module:
    model_class, config_class = MODELS[spec.name]
    return model_class(config_from_json(config_class, spec.config, spec.name), spec.seed)
