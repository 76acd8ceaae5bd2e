"""Reports on unusual trainings: unfinished, without validation, moved, with other losses."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from cnn.checkpoint import load_checkpoint, save_checkpoint
from jobs import report
from tests.jobs.conftest import RECIPE, Logpose
from tests.jobs.report.pages import Page, edit_progress, percent, read_report


def test_unfinished_training_is_a_warning(logpose: Logpose, run_copy: Path) -> None:
    last = load_checkpoint(run_copy / "last.safetensors").progress
    edit_progress(run_copy / "last.safetensors", recipe=last["recipe"].replace("epochs = 6", "epochs = 9"))
    assert logpose("report", run_copy).code == 0
    page = read_report(run_copy)
    assert "Training is not finished: 6 of 9 epochs." in page.text
    assert f"{run_copy} --resume" in page.section("reproduce").text


def test_model_of_an_epoch_missing_from_the_history(logpose: Logpose, run_copy: Path) -> None:
    """As after a kill right after the model was saved."""
    last = load_checkpoint(run_copy / "last.safetensors").progress
    edit_progress(run_copy / "last.safetensors", history=last["history"][:2], best=1, epoch=3, confusion_epoch=1)
    edit_progress(run_copy / "model.safetensors", epoch=3, val_accuracy=0.123)
    assert logpose("report", run_copy).code == 0
    page = read_report(run_copy)
    assert "3 of 6 epochs" in page.text
    assert f"During training this epoch's accuracy was {percent(0.123)}, now it is" in page.text


def test_model_that_is_replaced_meanwhile(
    logpose: Logpose, run_copy: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a training: the page is of one model, the first."""
    choose = report.choose_backend

    def late(*arguments: str) -> object:
        best = load_checkpoint(run_copy / "model.safetensors")
        other = {name: values[..., ::-1] for name, values in best.tensors.items()}
        save_checkpoint(run_copy / "model.safetensors", best.card, other, best.progress)
        return choose(*arguments)

    monkeypatch.setattr(report, "choose_backend", late)
    assert logpose("report", run_copy, "--device", "cpu").code == 0
    assert read_report(run_copy).section("classes").text == page.section("classes").text


def test_without_validation_there_are_no_scores(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    logpose("build", image_folder, tmp_path / "d.zarr", "--size", 16, "--val", 0)
    logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE)
    outcome = logpose("report", tmp_path / "run")
    assert outcome.code == 0 and "accuracy" not in outcome.out
    page = read_report(tmp_path / "run")
    assert "no validation split" in page.text and "last epoch" in page.text
    headings = [attributes["id"] for attributes in page.all("h2")]
    assert headings == ["curves", "near-duplicates", "reproduce"]
    assert not page.all("img")


def test_other_losses_have_no_calibration(logpose: Logpose, data_path: Path, tmp_path: Path) -> None:
    for loss in ("binary_cross_entropy", "mean_squared_error"):
        run = tmp_path / loss
        assert logpose("train", data_path, run, *RECIPE, "--epochs", 1, "--set", f"loss.name={loss}").code == 0
        assert logpose("report", run).code == 0
        page = read_report(run)
        assert "alibration" not in page.text and page.section("label-errors").all("img")


def test_without_last_checkpoint_metrics_csv_is_read(
    logpose: Logpose, data_path: Path, run_copy: Path, page: Page
) -> None:
    (run_copy / "last.safetensors").unlink()
    assert "--dataset DATASET.zarr" in logpose("report", run_copy).error
    assert logpose("report", run_copy, "--dataset", data_path).code == 0
    found = read_report(run_copy)
    assert found.section("classes").html == page.section("classes").html
    assert [curve["points"] for curve in found.all("polyline")] == [curve["points"] for curve in page.all("polyline")]
    # With a patience of 1, training is finished if the last epoch is not the best.
    recipe = (run_copy / "config.toml").read_text().replace("epochs = 6", "epochs = 9")
    (run_copy / "config.toml").write_text(recipe.replace("patience = 0", "patience = 1"))
    with (run_copy / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for accuracy, finished in (("1", True), ("0", False)):
        rows[1]["val_accuracy"], rows[-1]["val_accuracy"] = accuracy, "0.99"
        with (run_copy / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        assert logpose("report", run_copy, "--dataset", data_path).code == 0
        assert ("not finished" in read_report(run_copy).text) != finished


def test_small_validation_split_and_useless_model_are_warnings(logpose: Logpose, run_copy: Path, page: Page) -> None:
    assert "With only" in page.text and "the true accuracy may be anywhere from" in page.text
    found = load_checkpoint(run_copy / "model.safetensors")
    zeros = {name: np.zeros_like(tensor) for name, tensor in found.tensors.items()}
    save_checkpoint(run_copy / "model.safetensors", found.card, zeros, found.progress)
    assert logpose("report", run_copy).code == 0
    useless = read_report(run_copy)
    assert re.search("No better than always predicting (green|red),", useless.text)
    assert "No better" not in page.text
