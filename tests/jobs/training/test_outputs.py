"""Output of a training: the printed lines, and the files in the run folder."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.checkpoint import load_checkpoint
from cnn.evaluation.calibration import calibrate, softmax
from cnn.evaluation.metrics import Evaluation, wilson_interval
from cnn.inference.predictor import Predictor
from cnn.training.trainer import Trainer
from jobs.console.output import Verbosity, verbosity_of
from jobs.options import TrainOptions
from jobs.training.epoch_report import epoch_line
from jobs.training.metrics import EpochRow
from jobs.training.summary import Summary
from jobs.training.train import train
from pipeline.dataset.store import Dataset
from tests.jobs.conftest import CLASSES, RECIPE, Logpose, draw_classes
from tests.jobs.training.runs import RESULTS, assert_same_weights, metrics, metrics_without_times, weights

OPTIONS = TrainOptions(model="plain", set=("model.width=4",), batch_size=8, epochs=1, device="cpu", workers=2)
ROW = EpochRow(2, 20, 0.1, 1.31, 0.612, 3.055, 0.382, 8.9, 234.0, 0.0)


def test_run_folder_holds_the_documented_files(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == RESULTS
    assert [row["epoch"] for row in metrics(trained)] == ["1", "2", "3"]
    card = load_checkpoint(trained / "model.safetensors").card
    assert (card.model, card.class_names, card.in_shape, card.fit) == ("plain", CLASSES, (16, 16, 3), "pad")
    assert card.model_options["width"] == 4


def test_model_is_that_of_the_best_epoch(trained: Path) -> None:
    best = max(metrics(trained), key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert load_checkpoint(trained / "model.safetensors").progress["epoch"] == int(best["epoch"])


def test_training_prints_its_setup_epochs_and_result(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "my run", *RECIPE, "--epochs", 1)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"dataset  {dataset}"
    assert lines[1] == "images   48 to train on, 12 to validate; 3 classes, 16×16 (pad)"
    assert lines[2].startswith("device   cpu: ")
    assert lines[3].startswith("model    plain, ") and lines[3].endswith(" parameters")
    assert lines[4] == "recipe   plain (width 4), adamw, cosine, softmax_cross_entropy; 1 epoch, batches"
    assert lines[5] == "         of 8, seed 0"
    assert lines[6].startswith("epoch 1/1  loss ")
    assert lines[-4:] == [
        f"done: the model of epoch 1 is in {tmp_path / 'my run' / 'model.safetensors'}",
        "next:",
        f"  logpose report '{tmp_path / 'my run'}'",
        f"  logpose classify IMAGES '{tmp_path / 'my run'}' OUT.csv",
    ]
    assert all(len(line) <= 80 for line in lines if str(tmp_path.parent) not in line)


def test_epoch_line_fits_80_columns() -> None:
    assert epoch_line(ROW, 20, True, 160.0) == (
        "epoch  2/20  loss 1.310 acc 61.2%  val 3.055 38.2% best  8.9 s  2:40 left"
    )
    assert epoch_line(ROW, 20, False, 0.0) == "epoch  2/20  loss 1.310 acc 61.2%  val 3.055 38.2%       8.9 s"
    unvalidated = replace(ROW, val_loss=None, val_accuracy=None)
    assert epoch_line(unvalidated, 20, True, 160.0) == "epoch  2/20  loss 1.310 acc 61.2%  8.9 s  2:40 left"
    perfect = replace(ROW, epoch=999, train_loss=1234.5, train_accuracy=1.0, val_loss=99.5, val_accuracy=1.0)
    assert epoch_line(replace(perfect, seconds=4000.0), 1000, True, 400_000.0) == (
        "epoch  999/1000  loss  1234 acc  100%  val  99.5  100% best  1:06:40  111 h left"
    )


def test_verbose_lines_show_where_the_time_went(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with verbosity_of(Verbosity.VERBOSE):
        train(dataset, tmp_path / "run", OPTIONS)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  time: compute ") for line in lines) == 1


def test_json_is_the_summary(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (OPTIONS, replace(OPTIONS, resume=True)):
        capsys.readouterr()
        with verbosity_of(Verbosity.JSON):
            folder = train(dataset, tmp_path / "run", options)
        summary = folder.read_summary()
        assert summary is not None
        paths = {"run_dir": str(folder.path), "model": str(folder.model)}
        assert json.loads(capsys.readouterr().out) == paths | asdict(summary)


def test_config_toml_repeats_the_training(logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert logpose("train", dataset, again, "--config", trained / "config.toml", "--device", "cpu").code == 0
    assert_same_weights(again, trained)
    assert metrics_without_times(again) == metrics_without_times(trained)
    assert (again / "config.toml").read_text() == (trained / "config.toml").read_text()


def test_without_validation_the_last_epoch_is_the_best(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.zarr"
    assert logpose("build", image_folder, whole, "--size", 16, "--val", 0).code == 0
    outcome = logpose("train", whole, tmp_path / "run", *RECIPE, "--epochs", 2, "--patience", 1)
    assert outcome.code == 0
    assert "note     no images to validate: the last epoch counts as the best\n" in outcome.out
    assert "note     patience has no effect without images to validate\n" in outcome.out
    assert "logpose report" not in outcome.out and "logpose classify" in outcome.out
    assert load_checkpoint(tmp_path / "run" / "model.safetensors").progress["epoch"] == 2
    assert [row["val_loss"] for row in metrics(tmp_path / "run")] == ["", ""]
    assert not (tmp_path / "run" / "confusion.png").exists()


def test_near_duplicates_across_the_split_are_reported(
    logpose: Logpose, dataset: Path, tmp_path: Path
) -> None:
    metadata = dataset / "zarr.json"
    before = metadata.read_text()
    attributes = json.loads(before)
    attributes["attributes"]["copies"]["leaks"] = 3
    del attributes["attributes"]["crc32"]  # as in a dataset of 0.1.0
    try:
        metadata.write_text(json.dumps(attributes))
        outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 1)
    finally:
        metadata.write_text(before)
    assert outcome.code == 0
    note = " ".join(outcome.out.split())
    assert "note 3 of the 12 images to validate are near-duplicates of training images, so the accuracy is" in note
    assert f"inflated: see {dataset / 'duplicates.csv'}" in note


def test_temperature_and_scores_are_those_of_the_saved_model(dataset: Path, trained: Path) -> None:
    checkpoint = load_checkpoint(trained / "model.safetensors")
    best = metrics(trained)[checkpoint.progress["epoch"] - 1]
    assert checkpoint.card.temperature == pytest.approx(float(best["temperature"]), rel=1e-5) != 1.0
    predictor = Predictor(trained / "model.safetensors", pick_backend("cpu"))
    val = Dataset.open(dataset).val
    images = val.read(0, val.rows)
    logits = predictor.logits(images)
    np.testing.assert_allclose(
        predictor.probabilities(images), softmax(logits / checkpoint.card.temperature), rtol=1e-4, atol=1e-6
    )
    evaluation = Evaluation(0.0, logits, val.labels)
    assert float(best["val_accuracy"]) == pytest.approx(evaluation.accuracy, rel=1e-5)
    assert float(best["val_macro_f1"]) == pytest.approx(evaluation.macro_f1, rel=1e-5)
    calibration = calibrate(logits, val.labels)
    assert float(best["val_calibration_error"]) == pytest.approx(calibration.error, rel=1e-4)
    assert float(best["val_calibration_error_scaled"]) == pytest.approx(calibration.error_scaled, rel=1e-4)
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["epoch"], summary["epochs"], summary["val_images"]) == (int(best["epoch"]), 3, val.rows)
    assert summary["accuracy"] == evaluation.accuracy and summary["views"] == "none"
    assert (summary["accuracy_low"], summary["accuracy_high"]) == wilson_interval(evaluation.accuracy, val.rows)
    assert summary["temperature"] == checkpoint.card.temperature and summary["accuracy_with_views"] is None
    with (trained / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(CLASSES)
    assert [int(row["images"]) for row in rows] == np.bincount(val.labels).tolist()
    for row, f1 in zip(rows, evaluation.by_class.f1, strict=True):
        assert row["f1"] == ("" if np.isnan(f1) else f"{f1:.6g}")


def test_balanced_class_weights_come_from_the_training_labels(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    start_micro_batches = Trainer.start_micro_batches

    def recording_start_micro_batches(self: Trainer, *arguments: Any) -> Any:
        losses.append(self.recipe.loss)
        return start_micro_batches(self, *arguments)

    monkeypatch.setattr(Trainer, "start_micro_batches", recording_start_micro_batches)
    run_dir = tmp_path / "run"
    arguments = (*RECIPE, "--epochs", 1, "--set", "loss.class_weights=balanced")
    assert logpose("train", dataset, run_dir, *arguments).code == 0
    counts = np.bincount(Dataset.open(dataset).train.labels)
    assert losses[0].class_weights == pytest.approx(tuple(counts.sum() / (3 * counts)))
    assert 'class_weights = "balanced"' in (run_dir / "config.toml").read_text()
    wrong = logpose("train", dataset, tmp_path / "other", *RECIPE, "--set", "loss.class_weights=fair")
    assert wrong.code == 2 and "expected a list such as [0.1, 0.2] or one of 'balanced', found 'fair'" in wrong.err


def test_moving_average_is_saved_and_evaluated(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = (*RECIPE, "--set", "ema.horizon=0.2", "--set", "train.views=mirror")
    assert logpose("train", dataset, run_dir, *arguments).code == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    predictor = Predictor(run_dir / "model.safetensors", pick_backend("cpu"))
    val = Dataset.open(dataset).val
    images = val.read(0, val.rows)
    logits = predictor.logits(images)
    with_views = logits + predictor.logits(np.ascontiguousarray(images[:, :, ::-1]))
    assert summary["accuracy"] == Evaluation(0.0, logits, val.labels).accuracy
    assert summary["accuracy_with_views"] == Evaluation(0.0, with_views, val.labels).accuracy
    tensors = load_checkpoint(run_dir / "model.safetensors").tensors
    assert any((tensors[name] != tensor).any() for name, tensor in weights(run_dir).items() if name in tensors)


def test_init_with_other_classes_replaces_the_head(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    draw_classes(tmp_path / "other", 6, ("crimson", "lime"))
    assert logpose("build", tmp_path / "other", tmp_path / "other.zarr", "--size", 16).code == 0
    outcome = logpose("train", tmp_path / "other.zarr", tmp_path / "run", "--init", model, "--epochs", 1)
    assert outcome.code == 0
    assert "plain (width 4)" in outcome.out  # the architecture comes with the model
    assert f"starting from {model}" in outcome.out
    assert " head" in outcome.out
    assert load_checkpoint(tmp_path / "run" / "model.safetensors").card.class_names == ("crimson", "lime")


def test_summary_warns_of_a_temperature_at_its_limit() -> None:
    usual = Summary(
        1, 1, 1.0, 10, 10, 0.5, 0.2, 0.8, None, 0.5,
        calibration_error=0.3, calibration_error_scaled=0.1, temperature=1.5,
    )  # fmt: skip
    assert not any("at its limit" in line for line in usual.lines())
    assert any("T is at its limit" in line for line in replace(usual, temperature=50.0).lines())
