"""The corpus of tones, written once."""

from pathlib import Path

import pytest
from tone_corpus import write_tones


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve utterances of two speakers."""
    return write_tones(tmp_path_factory.mktemp("corpus"))
