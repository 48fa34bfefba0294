"""A small corpus that every kind of audit can be tried on."""

from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """Two speakers with three utterances each, of 0.5 to 0.75 s, that the closed form recovers from small models."""
    generator = np.random.default_rng(0)
    for speaker in (11, 12):
        chapter = tmp_path / "corpus" / "part" / str(speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for index, text in enumerate(("ONE", "TWO", "SIX")):
            samples = np.convolve(generator.standard_normal(8000 + 2000 * index), np.ones(4), "same")
            soundfile.write(chapter / f"{speaker}-1-000{index}.flac", 0.05 * samples, 16000)
            lines.append(f"{speaker}-1-000{index} {text}\n")
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return tmp_path / "corpus"
