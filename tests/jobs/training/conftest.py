"""A finished training that a test may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished training."""
    return Path(shutil.copytree(trained, tmp_path / "finished"))
