"""The errors of `logpose report`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.conftest import Logpose
from tests.jobs.report.pages import edit_progress


def _missing_run(run: Path) -> None:
    shutil.rmtree(run)


def _file_as_run(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


def _no_model(run: Path) -> None:
    for name in ("model.safetensors", "last.safetensors"):
        (run / name).unlink()


def _no_finished_epoch(run: Path) -> None:
    (run / "model.safetensors").unlink()


def _model_alone(run: Path) -> None:
    for name in ("last.safetensors", "metrics.csv"):
        (run / name).unlink()


def _damaged(run: Path) -> None:
    (run / "last.safetensors").write_bytes((run / "last.safetensors").read_bytes()[:-9])


def _moved_dataset(run: Path) -> None:
    edit_progress(run / "last.safetensors", dataset="/nowhere/d.zarr")


def _older_training(run: Path) -> None:
    edit_progress(run / "last.safetensors", dataset="")


def _rebuilt_dataset(run: Path) -> None:
    edit_progress(run / "last.safetensors", content_hash="0123456789")


ERRORS = {
    _missing_run: "found nothing at",
    _file_as_run: "found a file at",
    _no_model: "expected model.safetensors of a training, found none in",
    _no_finished_epoch: "no epoch is finished",
    _model_alone: "neither last.safetensors nor metrics.csv",
    _damaged: "last.safetensors is not a complete model file",
    _moved_dataset: "found nothing at /nowhere/d.zarr; if it has moved",
    _older_training: "does not record where its dataset is; give it with --dataset",
    _rebuilt_dataset: "was trained on another dataset (content 01234567, ",
}


@pytest.mark.parametrize("damage", ERRORS, ids=lambda damage: damage.__name__)
def test_damaged_run_is_an_error(logpose: Logpose, run_copy: Path, damage: Callable[[Path], None]) -> None:
    (run_copy / "report.html").unlink(missing_ok=True)
    damage(run_copy)
    outcome = logpose("report", run_copy)
    assert (outcome.code, outcome.out) == (2, "")
    assert ERRORS[damage] in outcome.error
    assert not (run_copy / "report.html").exists()


def test_other_dataset_is_an_error(logpose: Logpose, run_copy: Path, dataset: Path) -> None:
    assert "was trained on another dataset" in logpose("report", run_copy, "--dataset", dataset).error
    (run_copy / "last.safetensors").unlink()
    assert "trained on other classes or another image size" in logpose("report", run_copy, "--dataset", dataset).error
    assert "found nothing at" in logpose("report", run_copy, "--dataset", run_copy / "none").error


def test_damaged_image_is_an_error(logpose: Logpose, run_copy: Path, data_path: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(data_path, tmp_path / "d.zarr"))
    shard = data / "val" / "images" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert f"logpose verify {data}" in logpose("report", run_copy, "--dataset", data).error
