"""Clients with a little to say."""

import os
from pathlib import Path

# Before anything imports Flower.
os.environ.update({"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"})

import pytest
from lhotse import MonoCut
from tone_corpus import write_tones

from overheard.speech.corpus import load_corpus


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six utterances of each of four speakers."""
    return write_tones(tmp_path_factory.mktemp("corpus"), speakers=4)


@pytest.fixture(scope="session")
def tone_cuts(tones: Path) -> tuple[MonoCut, ...]:
    """All of them."""
    return load_corpus(tones).cuts
