"""Audio of any rate and number of channels comes in as one channel at one rate."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from overheard.errors import InputError
from overheard.speech.audio import audio_files, read_audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_keeps_its_pitch_and_length(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)
    waveform = read_audio(path, 16000)
    assert len(waveform) == pytest.approx(16000, abs=1300)  # mp3 pads to whole blocks
    spectrum = torch.fft.rfft(waveform).abs()
    assert int(spectrum.argmax()) * 16000 / len(waveform) == pytest.approx(440, abs=2)
    assert float(waveform.abs().max()) == pytest.approx(0.5, abs=0.1)


def test_folders_give_all_audio_below_them(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.flac", "1.wav"):
        soundfile.write(tmp_path / name, np.zeros(100), 16000)
    (tmp_path / "notes.txt").write_text("no audio")
    assert audio_files([tmp_path]) == [tmp_path / "1.wav", tmp_path / "b/2.flac"]
    with pytest.raises(InputError, match="no such file or folder"):
        audio_files([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder without audio"):
        audio_files([tmp_path / "empty"])


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"RIFF")
    with pytest.raises(InputError, match="not readable as audio"):
        read_audio(path, 16000)
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(InputError, match="no samples"):
        read_audio(path, 16000)
    soundfile.write(path, np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="NaN or infinite"):
        read_audio(path, 16000)
