"""Small real things that tests of several parts start from."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.observation import Observation, Prior
from overheard.federation.client import ClientSettings, client_update
from overheard.recognition.models import build_model, model_spec
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.batching import Batch, collate


def small_deepspeech1(hidden_size: int = 192, context: int = 2, seed: int = 0, **config: object) -> nn.Module:
    """DeepSpeech 1 with windows of 5 frames: the closed form is determined up to 104 frames."""
    return build_model(model_spec("deepspeech1", seed=seed, hidden_size=hidden_size, context=context, **config))


def small_deepspeech2(hidden_size: int = 24, num_layers: int = 2, seed: int = 0, **config: object) -> nn.Module:
    """DeepSpeech 2 of few units."""
    return build_model(model_spec("deepspeech2", seed=seed, hidden_size=hidden_size, num_layers=num_layers, **config))


def speech_like(num_frames: int, num_features: int, seed: int = 0) -> Float[Tensor, "T F"]:
    """Features that change slowly over time and fall off over the feature index, as cepstra do."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_frames + 4, num_features, generator=generator)
    smooth = (noise[:-4] + noise[1:-3] + noise[2:-2] + noise[3:-1] + noise[4:]) / math.sqrt(5)
    return smooth * torch.linspace(20.0, 1.0, num_features) - torch.linspace(30.0, 0.0, num_features)


def batch_of(*lengths: int, num_features: int = 26, seed: int = 0) -> Batch:
    """Utterances of these many frames with a few labels each."""
    features = [speech_like(length, num_features, seed + index) for index, length in enumerate(lengths)]
    return collate(features, [[(3 * index + place) % 28 + 1 for place in range(2)] for index in range(len(lengths))])


def observe(
    model: nn.Module, batch: Batch, settings: ClientSettings = ClientSettings(), prior: Prior = Prior()
) -> Observation:
    """What a server holds after one client with this batch has answered."""
    update = client_update(model, batch, settings, "test", weights_fingerprint(model))
    return Observation(model, update, prior)
