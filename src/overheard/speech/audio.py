"""Audio files as recognisers want them: any format, rate and number of channels in, one channel at one rate out."""

from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError

MOST_SAMPLES = 1 << 27
"""Of a file, over all channels: half a gigabyte as float32, two hours at 16 kHz."""

SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")


def audio_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are named, and of each folder all audio below it, sorted.

    Raises:
        InputError: nothing there, or a folder without audio.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise InputError(str(path), "a folder without audio", f"it may hold {', '.join(SUFFIXES)}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(str(path), "no such file or folder", "name audio files, or folders that hold some")
    return found


def read_audio(path: Path, sample_rate: int) -> Float[Tensor, " S"]:
    """One file's samples in [-1, 1]: the mean of its channels, resampled by soxr where the rate differs.

    Raises:
        InputError: not audio, cut short, hours long, without samples, or with samples that are no numbers.
    """
    try:
        info = soundfile.info(path)
        if info.frames * info.channels > MOST_SAMPLES:
            # A few kilobytes of FLAC can claim, and be, hours of silence.
            raise InputError(str(path), f"{info.frames} samples of {info.channels} channels", "cut it into pieces")
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(str(path), f"not readable as audio ({error})", "give wav, flac, ogg or mp3") from error
    if not len(samples):
        raise InputError(str(path), "no samples", "leave it out")
    mono = samples.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    waveform = torch.from_numpy(mono)
    if not bool(torch.isfinite(waveform).all()):
        raise InputError(str(path), "samples that are NaN or infinite", "write the file again")
    return waveform
