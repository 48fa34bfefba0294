"""The voices of the synthetic corpus: espeak-ng's accents of English with its voice variants, one text at a time."""

import importlib.util
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Int16

from overheard.errors import InputError

SAMPLE_RATE = 16_000
WORKER_TIMEOUT = 60


@dataclass(frozen=True)
class Voice:
    """One speaker.

    Attributes:
        accent: espeak-ng's name of a variety of English.
        variant: espeak-ng's voice variant (vocal tract, pitch range, roughness).
        sex: F or M, as the variant sounds.
        words_per_minute: speaking rate.
        pitch: 0 to 99 within the variant's own range; 50 is its middle.
    """

    accent: str
    variant: str
    sex: str
    words_per_minute: int
    pitch: int

    @property
    def name(self) -> str:
        """espeak-ng's name for it."""
        return f"{self.accent}+{self.variant}"


# Neighbours differ most, so that a small corpus is varied too. Variants that overdrive the output are left out.
VOICES = (
    Voice("en-us", "f2", "F", 160, 50),
    Voice("en-us", "m3", "M", 155, 50),
    Voice("en-gb-x-rp", "f3", "F", 165, 55),
    Voice("en-gb-scotland", "m8", "M", 150, 45),
    Voice("en-gb-scotland", "f1", "F", 155, 40),
    Voice("en-gb-x-rp", "m2", "M", 165, 50),
    Voice("en-us-nyc", "Alicia", "F", 180, 50),
    Voice("en-029", "m7", "M", 160, 60),
    Voice("en-gb-x-gbclan", "linda", "F", 150, 50),
    Voice("en-gb-x-gbcwmd", "david", "M", 155, 50),
    Voice("en-gb-x-gbcwmd", "grandma", "F", 145, 45),
    Voice("en-us-nyc", "Lee", "M", 175, 55),
    Voice("en-029", "Annie", "F", 165, 55),
    Voice("en-gb-x-gbclan", "m4", "M", 170, 60),
    Voice("en", "f5", "F", 170, 45),
    Voice("en", "announcer", "M", 155, 50),
    Voice("en-us", "shelby", "F", 155, 50),
    Voice("en-us", "boris", "M", 165, 45),
    Voice("en-gb-x-rp", "belinda", "F", 160, 40),
    Voice("en-gb-scotland", "Reed", "M", 160, 50),
    Voice("en-us-nyc", "steph", "F", 170, 50),
    Voice("en-gb-x-rp", "travis", "M", 150, 60),
    Voice("en-gb-x-gbclan", "f4", "F", 165, 60),
    Voice("en-029", "quincy", "M", 150, 40),
)


def espeak_folder() -> Path:
    """Where the wheel `espeakng-loader` keeps espeak-ng and its data.

    Raises:
        InputError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or spec.origin is None:
        raise InputError("espeak-ng", "not installed", 'install it with: pip install "overheard[synthetic]"')
    return Path(spec.origin).parent


def speak(voice: Voice, text: str) -> Int16[np.ndarray, " S"]:
    """The text in this voice, 16 kHz; the same samples each time.

    Raises:
        InputError: espeak-ng is not installed, or does not run.
    """
    folder = espeak_folder()
    # The wheel has one shared library, named after the platform's habits; Linux adds numbered links to it.
    libraries = sorted(path for path in folder.glob("*espeak-ng.*") if path.suffix in (".so", ".dylib", ".dll"))
    remedy = 'install it again with: pip install --force-reinstall "overheard[synthetic]"'
    if not libraries:
        raise InputError("espeak-ng", f"no shared library in {folder}", remedy)
    worker = Path(__file__).with_name("espeak_worker.py")
    settings = (str(libraries[0]), voice.name, str(voice.words_per_minute), str(voice.pitch))
    # Small letters: espeak-ng may spell a word in capitals. The full stop gives a statement's melody.
    ran = subprocess.run(
        (sys.executable, "-I", "-S", str(worker), *settings),
        input=f"{text.lower()}.".encode(),
        cwd=folder,
        capture_output=True,
        timeout=WORKER_TIMEOUT,
        check=False,
    )
    if ran.returncode:
        reason = ran.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ran.returncode}"]
        raise InputError("espeak-ng", reason[-1], remedy)
    samples, rate = soundfile.read(io.BytesIO(ran.stdout), dtype="float64")
    resampled = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.clip(np.round(resampled * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
