"""Tiny models and noise for speech, to attack in milliseconds."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from overheard.federation.client import ClientSettings, client_update
from overheard.federation.update import ClientUpdate
from overheard.recognition.models import build_model, model_spec
from overheard.speech.batching import collate


def tiny_deepspeech1(hidden_size: int = 128, seed: int = 0, **config: object) -> nn.Module:
    return build_model(model_spec("deepspeech1", hidden_size=hidden_size, context=2, seed=seed, **config))


def noise_features(lengths: Sequence[int], num_features: int = 26, seed: int = 0) -> list[Tensor]:
    """Frames that drift, as those of speech do."""
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn(length, num_features, generator=generator) for length in lengths]
    return [matrix + 0.5 * matrix.cumsum(0) / max(1, len(matrix)) ** 0.5 for matrix in steps]


def shared(
    model: nn.Module, features: Sequence[Tensor], texts: Sequence[str], settings: ClientSettings | None = None
) -> ClientUpdate:
    labels = [model.alphabet.encode(text) for text in texts]  # pyright: ignore
    return client_update(model, collate(features, labels), settings or ClientSettings(), "", "")
