"""Fixtures every test may use: one thread, and where real speech lies."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits

from overheard.metering import leave_imports_alone

settings.register_profile("overheard", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("overheard")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run side by side; more threads than cores slow torch a hundredfold."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    # All test modules have been imported, and most of the package with them.
    leave_imports_alone()


def speech_folder(name: str) -> Path:
    """Folder of real speech, `LibriSpeech` or `digits`; skips the test where it is absent."""
    folder = Path(os.environ.get("OVERHEARD_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"no real speech at {folder}: set OVERHEARD_DATA to a folder that holds {name}/")
    return folder


@pytest.fixture(scope="session")
def librispeech() -> Path:
    """Real read speech in LibriSpeech's layout."""
    return speech_folder("LibriSpeech")


@pytest.fixture(scope="session")
def digits() -> Path:
    """Real connected digits in LibriSpeech's layout."""
    return speech_folder("digits")
