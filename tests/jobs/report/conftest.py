"""A dataset, a training and its report, made once."""

import shutil
from pathlib import Path

import pytest

from cnn.backends import pick_backend
from cnn.evaluation.metrics import Evaluation
from cnn.inference.predictor import Predictor
from jobs.cli import main
from pipeline.dataset.store import Dataset
from tests.jobs.conftest import RECIPE, draw_classes, draw_image
from tests.jobs.report.pages import CLASSES, Page


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three classes with many wrong labels, and with names that need escaping."""
    root = draw_classes(tmp_path_factory.mktemp("report") / "images", 30, CLASSES)
    for number in range(12):
        draw_image(root / "red" / f"<i>{number:02}.png", 0, 5000 + number)
        draw_image(root / "green" / f"&amp;{number:02}.png", 2, 6000 + number)
    path = root.parent / "a <dataset>.zarr"
    assert main(["build", str(root), str(path), "--size", "16", "--val", "0.4"]) == 0
    return path


@pytest.fixture(scope="session")
def run_dir(data_path: Path) -> Path:
    """A finished training on that dataset. Read it, or copy it."""
    path = data_path.parent / "run"
    assert main(["train", str(data_path), str(path), *RECIPE, "--epochs", "6", "--lr", "0.02"]) == 0
    return path


@pytest.fixture(scope="session")
def page(run_dir: Path) -> Page:
    assert main(["report", str(run_dir), "--device", "cpu"]) == 0
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def evaluation(data_path: Path, run_dir: Path) -> Evaluation:
    """The scores that the page should show, computed from all images at once."""
    val = Dataset.open(data_path).val
    outputs = Predictor(run_dir / "model.safetensors", pick_backend("cpu")).logits(val.read(0, val.rows))
    return Evaluation(0.0, outputs, val.labels)


@pytest.fixture
def run_copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))
