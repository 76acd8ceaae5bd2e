"""Folder with images, a dataset and a finished training, for tests of the Python interface."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import logpose
from cnn.models import MODELS
from tests.jobs.conftest import draw_classes


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Restore the registry of models after each test: tests in other folders use the same names."""
    before = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ (3 classes of 20), colours.zarr (16 pixels) and runs/colours (3 epochs). Copy it, or only read it."""
    folder = tmp_path_factory.mktemp("python")
    draw_classes(folder / "images", 20)
    data = logpose.build(folder / "images", folder / "colours.zarr", size=16, val=0.2, quiet=True)
    values = {"model.width": 4}
    options = {"model": "plain", "epochs": 3, "batch_size": 8, "device": "cpu", "workers": 2}
    logpose.train(data, folder / "runs" / "colours", values=values, quiet=True, **options)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, as the current folder."""
    shutil.copytree(finished, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"
