"""Vocoders: the default keeps the draft, a neural one says it again at its own rate, and what is missing is named."""

import sys
from types import SimpleNamespace

import pytest
import torch
from a_voice import voice
from torch import Tensor

from overheard.errors import InputError
from overheard.metrics.vocoders import VOCOS_HOP, VOCOS_RATE, VOCOS_WEIGHTS, vocoder
from overheard.metrics.waveform import waveform_from_features
from overheard.speech.features import LOG_MEL_80, MFCC_26, SPECTROGRAM_257, FrontEnd, FrontEndConfig

PRESETS = pytest.mark.parametrize("config", [SPECTROGRAM_257, LOG_MEL_80, MFCC_26], ids=["257", "mel", "mfcc"])


class StandIn:
    """Vocos as far as it is called: from_pretrained, and audio (N, S) to audio of whole hops, which it turns over."""

    asked: tuple[str, str | None] | None = None
    heard: Tensor | None = None

    @classmethod
    def from_pretrained(cls, repo_id: str, revision: str | None = None) -> "StandIn":
        cls.asked = (repo_id, revision)
        return cls()

    def __call__(self, audio: Tensor) -> Tensor:
        type(self).heard = audio
        # Its STFT reflects 512 samples at both ends and gives one frame a hop.
        torch.nn.functional.pad(audio, (512, 512), mode="reflect")
        return -audio[:, : audio.shape[1] // VOCOS_HOP * VOCOS_HOP]


@pytest.fixture
def vocos(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setitem(sys.modules, "vocos", SimpleNamespace(Vocos=StandIn))
    return StandIn


@PRESETS
def test_the_draft_is_said_again_at_its_rate_and_length(config: FrontEndConfig, vocos: type[StandIn]) -> None:
    features = FrontEnd(config)(voice(0.7))
    draft = waveform_from_features(features, config, iterations=5)
    said = waveform_from_features(features, config, iterations=5, vocoder=vocoder("vocos"))
    assert vocos.asked == VOCOS_WEIGHTS
    assert vocos.heard is not None
    assert vocos.heard.shape[1] / VOCOS_RATE == pytest.approx(len(draft.samples) / config.sample_rate, abs=0.02)
    assert said.samples.shape == draft.samples.shape
    assert (draft.vocoder, said.vocoder) == ("griffin-lim", "vocos")
    assert said.method == f"{draft.method}, said again by vocos"
    # Turned over, in step with the draft: twice through the resampler, which keeps what lies below 8 kHz.
    turned = torch.stack([-said.samples, draft.samples])[:, 400:-400]
    assert float(torch.corrcoef(turned)[0, 1]) > 0.98
    # What is stated is of this audio, and no copy of the draft's.
    again = FrontEnd(config)(said.samples)
    assert said.reanalysis_mae == pytest.approx(float((again - features).abs().mean()), abs=1e-6)
    assert said.reanalysis_mae != draft.reanalysis_mae


@pytest.mark.usefixtures("vocos")
def test_a_single_frame_is_long_enough() -> None:
    made = waveform_from_features(torch.ones(1, 257), SPECTROGRAM_257, iterations=2, vocoder=vocoder("vocos"))
    assert len(made.samples) == SPECTROGRAM_257.hop // 2


def test_the_default_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vocos", None)
    assert vocoder("griffin-lim").speak is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, vocos: type[StandIn]) -> None:
    with pytest.raises(InputError, match="choose one of griffin-lim, vocos"):
        vocoder("hifi-gan")

    def unreachable(repo_id: str, revision: str | None = None) -> StandIn:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(vocos, "from_pretrained", unreachable)
    with pytest.raises(InputError, match=r"weights of vocos cannot be had .*connect to the network once") as caught:
        vocoder("vocos")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "vocos", None)
    with pytest.raises(InputError, match=r"pip install 'overheard\[vocoder\]'"):
        vocoder("vocos")
