"""Fixtures of the report's tests."""

from functools import partial
from pathlib import Path

import pytest
import torch
from audited_run import BuildRun, write_run

from overheard.report.html import write_report


@pytest.fixture
def build_run(tmp_path: Path) -> BuildRun:
    """Writes a run folder; see `write_run`."""
    return partial(write_run, tmp_path / "run")


@pytest.fixture(scope="package")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the mixed run; not to be changed."""
    return write_report(write_run(tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture
def generator() -> torch.Generator:
    """The same numbers in every test."""
    return torch.Generator().manual_seed(0)
