"""A small DeepSpeech 2 and noise for speech, to attack by its frames."""

import torch
from torch.nn import functional

from builders import small_deepspeech2
from overheard.recognition.deepspeech2 import DeepSpeech2
from overheard.speech.batching import Batch, collate
from overheard.speech.features import SPECTROGRAM_161


def model_of(**config: object) -> DeepSpeech2:
    sizes: dict[str, object] = {"hidden_size": 64, "channels": 16, "front_end": SPECTROGRAM_161, **config}
    model = small_deepspeech2(**sizes).eval()  # pyright: ignore[reportArgumentType]
    assert isinstance(model, DeepSpeech2)
    return model


def spoken(*lengths: int, seed: int = 0) -> Batch:
    """Normalised noise that changes from frame to frame about as speech does."""
    generator = torch.Generator().manual_seed(seed)
    features = []
    for length in lengths:
        noise = torch.randn(1, 1, length + 2, 163, generator=generator)
        smooth = functional.avg_pool2d(noise, 3, 1)[0, 0]
        features.append((smooth - smooth.mean()) / smooth.std())
    return collate(features, [[8, 5, 12, 12, 15][: length // 8] for length in lengths])
