"""A sound like a voice, computed."""

import math

import torch
from torch import Tensor


def voice(seconds: float = 1.5, pitch: float = 140.0) -> Tensor:
    """Harmonics of a gliding pitch, in syllables of a quarter second, over faint noise; 16 kHz."""
    time = torch.arange(round(seconds * 16000)) / 16000
    phase = 2 * math.pi * pitch * (time + 0.1 * torch.sin(2 * time))
    harmonics = sum(torch.sin(k * phase + k * k) / k for k in range(1, 40))
    assert isinstance(harmonics, Tensor)
    syllables = torch.sin(4 * math.pi * time).clamp_min(0)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return 0.15 * harmonics * syllables + 0.002 * noise
