"""Trainings that are stopped and resumed, longer than planned or with other resources."""

import json
import os
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.training.trainer import Recipe, Trainer
from jobs.cli import main
from jobs.training.artifacts import Artifacts
from jobs.training.engine import LocalEngine, Snapshot
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.setup import open_streams
from pipeline.dataset.store import Dataset
from pipeline.errors import DatasetError, OptionError
from pipeline.loader.stream import BatchStream
from tests.jobs.conftest import RECIPE, Logpose, command
from tests.jobs.training.runs import (
    assert_same_weights,
    before_step,
    metrics,
    metrics_without_times,
    press_ctrl_c,
)

# Checkpoints within an epoch -----------------------------------------------------------------------------


def test_checkpoints_hold_the_step_that_they_are_due_after(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop counts a step only when the next one was started: a checkpoint counts it first."""
    saved: list[tuple[int, int]] = []
    save, start, waiting = Artifacts.save_checkpoint, Trainer.start_micro_batches, []

    def recording_save(self: Artifacts, snapshot: Snapshot) -> None:
        assert isinstance(self.engine, LocalEngine)
        saved.append((self.engine.trainer.step, self.state.step))
        save(self, snapshot)

    def recording_start(self: Trainer, *arguments: Any) -> Any:
        waiting.append(sum(batch.settled is None for batch in self._pending))
        return start(self, *arguments)

    monkeypatch.setattr(Artifacts, "save_checkpoint", recording_save)
    monkeypatch.setattr(Trainer, "start_micro_batches", recording_start)
    options = (*RECIPE, "--epochs", 1, "--checkpoint-steps", 4)  # 6 batches
    assert logpose("train", dataset, tmp_path / "run", *options).code == 0
    assert saved == [(0, 0), (4, 4), (6, 6), (6, 6)]
    assert waiting == [0, 1, 1, 1, 0, 1]  # one batch is pending, but not after a checkpoint


# Longer than planned ------------------------------------------------------------------------------------


def test_resume_starts_a_new_training_and_reports_a_finished_one(
    logpose: Logpose, dataset: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert logpose("train", dataset, run_dir, *RECIPE, "--epochs", 1, "--resume").code == 0
    before = (run_dir / "last.safetensors").read_bytes()
    outcome = logpose("train", dataset, run_dir, "--resume")
    assert outcome.code == 0
    assert f"{run_dir} is finished (1 epoch); to train longer, give more --epochs\n" in outcome.out
    assert f"  logpose report {run_dir}\n" in outcome.out
    assert (run_dir / "last.safetensors").read_bytes() == before


def test_epochs_may_be_added(logpose: Logpose, dataset: Path, run_dir: Path) -> None:
    (run_dir / "report.html").write_text("of three epochs")
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", 4, "--device", "cpu")
    assert outcome.code == 0
    assert "resuming in epoch 4\n" in outcome.out
    assert [row["epoch"] for row in metrics(run_dir)] == ["1", "2", "3", "4"]
    assert tomllib.loads((run_dir / "config.toml").read_text())["train"]["epochs"] == 4
    assert json.loads((run_dir / "summary.json").read_text())["epochs"] == 4
    assert not (run_dir / "report.html").exists()


def test_patience_stops_early_and_may_be_raised(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr("jobs.training.run_folder.is_better", lambda row, best: row.epoch <= 2)
    outcome = logpose("train", dataset, run_dir, *RECIPE, "--epochs", 9, "--patience", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert [row["epoch"] for row in metrics(run_dir)] == ["1", "2", "3", "4", "5"]
    last = next(line for line in outcome.out.splitlines() if line.startswith("epoch 5/9  "))
    assert "left" not in last
    assert "\nepoch 2: accuracy " in outcome.out and "done: the model of epoch 2 is in" in outcome.out
    assert load_checkpoint(run_dir / "model.safetensors").progress["epoch"] == 2

    again = logpose("train", dataset, run_dir, "--resume")
    assert again.code == 0 and "is finished (5 epochs); to train longer, give more --patience" in again.out
    assert logpose("train", dataset, run_dir, "--resume", "--patience", 4, "--device", "cpu").code == 0
    assert [row["epoch"] for row in metrics(run_dir)] == ["1", "2", "3", "4", "5", "6"]
    assert logpose("train", dataset, run_dir, "--resume", "--patience", 0, "--epochs", 7, "--device", "cpu").code == 0
    assert len(metrics(run_dir)) == 7


def test_finished_training_of_an_older_version_gets_a_summary(
    logpose: Logpose, dataset: Path, trained: Path, run_dir: Path
) -> None:
    """Its rows lack the columns that were added together with summary.json."""
    (run_dir / "summary.json").unlink()
    (run_dir / "classes.csv").unlink()
    checkpoint = load_checkpoint(run_dir / "last.safetensors")
    added = ("val_macro_f1", "val_top5", "temperature", "val_calibration_error", "val_calibration_error_scaled")
    for row in checkpoint.progress["history"]:
        for name in added:
            del row[name]
    del checkpoint.progress["dataset"], checkpoint.progress["init"]
    save_checkpoint(run_dir / "last.safetensors", checkpoint.card, checkpoint.tensors, checkpoint.progress)
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "") and "training is done; only its summary is missing" in outcome.out
    assert_same_weights(run_dir, trained)
    one, other = (json.loads((path / "summary.json").read_text()) for path in (run_dir, trained))
    assert one["accuracy"] == other["accuracy"] and one["macro_f1"] is None
    assert (run_dir / "classes.csv").read_text() == (trained / "classes.csv").read_text()
    assert "is finished" in logpose("train", dataset, run_dir, "--resume").out


# Ctrl-C -------------------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_prints_the_resume_command(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "my run"
    arguments = command("train", dataset, run_dir, *RECIPE, "--epochs", "100000")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 300
        while not (run_dir / "metrics.csv").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("interrupted: saved after ")
    assert err.endswith(f"resume with: logpose train {dataset} '{run_dir}' --resume\n")
    done = load_checkpoint(run_dir / "last.safetensors").progress["epoch"]
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", done, "--device", "cpu")
    assert outcome.code == 0
    assert [int(row["epoch"]) for row in metrics(run_dir)] == list(range(1, done + 1))


def test_ctrl_c_while_validating_validates_again(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    val_batches = LocalEngine._val_batches

    def interrupted(self: LocalEngine, *arguments: Any) -> Any:
        for batch in val_batches(self, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(LocalEngine, "_val_batches", interrupted)
        outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 130
    assert "saved after 6 steps of epoch 1" in outcome.err
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    assert_same_weights(run_dir, trained)
    assert metrics_without_times(run_dir) == metrics_without_times(trained)


def test_damage_found_at_the_end_leaves_a_training_to_resume(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    arguments = (*RECIPE, "--set", "train.views=mirror")

    def damaged(*arguments: Any) -> Any:
        raise DatasetError("the images to validate are damaged")

    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "evaluate_best", damaged)
        assert logpose("train", dataset, run_dir, *arguments).code != 0
    assert not (run_dir / "summary.json").exists()
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu")
    assert outcome.code == 0 and "training is done; only its summary is missing" in outcome.out
    assert json.loads((run_dir / "summary.json").read_text())["accuracy_with_views"] is not None


# Checkpoints --------------------------------------------------------------------------------------------


def test_checkpoints_follow_steps_and_minutes(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints: list[tuple[int, int]] = []  # the epoch, and how many of its batches are done
    save_last = RunFolder.save_last

    def recording_save_last(self: RunFolder, card: Any, tensors: Any, state: TrainingState) -> None:
        checkpoints.append((state.epoch, state.batches))
        save_last(self, card, tensors, state)

    monkeypatch.setattr(RunFolder, "save_last", recording_save_last)
    arguments = (*RECIPE, "--epochs", 2)  # of 6 steps each
    begin, end = [(1, 0)], [(3, 0), (3, 0)]  # after the last epoch, and after everything
    assert logpose("train", dataset, tmp_path / "four", *arguments, "--checkpoint-steps", 4).code == 0
    assert checkpoints == [*begin, (1, 4), (2, 0), (2, 4), *end]
    checkpoints.clear()
    minutes = ("--checkpoint-steps", 4, "--checkpoint-minutes", 0)  # whichever comes first
    assert logpose("train", dataset, tmp_path / "each", *arguments, "--epochs", 1, *minutes).code == 0
    assert checkpoints[:7] == [*begin, *((1, step) for step in range(1, 7))]
    with monkeypatch.context() as patch:
        before_step(4, patch, press_ctrl_c)
        assert logpose("train", dataset, tmp_path / "stopped", *arguments).code == 130
    checkpoints.clear()
    options = ("--resume", "--checkpoint-steps", 5, "--device", "cpu")
    assert logpose("train", dataset, tmp_path / "stopped", *options).code == 0
    assert checkpoints == [(2, 0), (2, 5), *end]  # 5 steps after the last checkpoint


# Workers and memory -------------------------------------------------------------------------------------


@pytest.fixture
def windows(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset whose training images are read in several windows."""
    monkeypatch.setattr("pipeline.loader.epoch_order.WINDOW_BYTES", 10**6)
    path = tmp_path / "windows.zarr"
    assert main(["build", str(image_folder), str(path), "--size", "96", "--val", "0.1"]) == 0
    return path


def two_window_budget(dataset: Path, workers: int) -> int:
    """The smallest RAM budget with which one window is read while the other is used, for both splits together."""
    data = Dataset.open(dataset)
    train = BatchStream(data.train, 8, seed=0, workers=workers)
    val = BatchStream(data.val, 8, seed=0, shuffle=False, workers=workers)
    assert train.buffered_windows == 2
    return train.ram_bytes + val.ram_bytes


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_workers_and_ram_budget_may_change(
    logpose: Logpose, windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    """They decide how far ahead images are read, not their order nor the weights."""
    changed, unchanged = tmp_path / "changed", tmp_path / "unchanged"
    recipe = (*RECIPE, "--epochs", "1", "--set", f"train.micro_batch={micro_batch}")
    data = Dataset.open(windows)
    train = BatchStream(data.train, 8, seed=0, micro_batch=micro_batch, workers=1)
    val = BatchStream(data.val, 8, seed=0, shuffle=False, workers=1)
    least = train.min_bytes + val.ram_bytes
    with monkeypatch.context() as patch:
        before_step(3, patch, press_ctrl_c)
        assert logpose("train", windows, changed, *recipe, "--workers", 1, "--ram-budget", least).code == 130
    options = ("--workers", 3, "--ram-budget", "64MiB", "--device", "cpu")
    assert logpose("train", windows, changed, "--resume", *options).code == 0
    assert logpose("train", windows, unchanged, *recipe).code == 0
    assert_same_weights(changed, unchanged)
    assert metrics_without_times(changed) == metrics_without_times(unchanged)


def test_both_streams_stay_within_the_ram_budget(windows: Path) -> None:
    data, recipe, enough = Dataset.open(windows), Recipe(batch_size=8), two_window_budget(windows, 2)
    for budget, depth in ((2 * enough, 2), (enough, 2), (enough - 1, 1)):
        train, val = open_streams(data, recipe, 2, budget)
        assert val is not None and train.ram_bytes + val.ram_bytes <= budget
        assert train.buffered_windows == depth
    with pytest.raises(OptionError, match=r"at least \d+ MB for .*: raise --ram-budget"):
        open_streams(data, recipe, 2, enough // 3)
