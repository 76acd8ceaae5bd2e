"""Trainings that are killed at a given moment and resumed: the same bits as without the kill."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cnn.checkpoint import load_checkpoint
from jobs.training import artifacts
from jobs.training.artifacts import Artifacts
from jobs.training.run_folder import RunFolder
from tests.jobs.conftest import RECIPE, Logpose, command
from tests.jobs.training.runs import (
    assert_same_weights,
    before_step,
    metrics,
    metrics_without_times,
    stop_unsaved,
)


def test_killed_process_resumes_to_the_same_bits(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    recipe = (*RECIPE, "--epochs", "5", "--set", "train.clip=1")
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    last, limit = killed / "last.safetensors", time.monotonic() + 300
    arguments = command("train", dataset, killed, *recipe, "--checkpoint-minutes", "0")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        while not last.exists() or load_checkpoint(last).progress["step"] < 8:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    outcome = logpose("train", dataset, killed, "--resume", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert "resuming in epoch" in outcome.out
    assert logpose("train", dataset, uninterrupted, *recipe).code == 0
    assert_same_weights(killed, uninterrupted)
    assert metrics_without_times(killed) == metrics_without_times(uninterrupted)
    best = load_file(killed / "model.safetensors")
    for name, values in load_file(uninterrupted / "model.safetensors").items():
        np.testing.assert_array_equal(best[name], values, err_msg=name)


def test_kill_between_checkpoints_resumes_from_the_last(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_step(12, patch, stop_unsaved)
        assert logpose("train", dataset, run_dir, *RECIPE, "--checkpoint-steps", 2).code == 130
    assert load_checkpoint(run_dir / "last.safetensors").progress["step"] == 10
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu", "--checkpoint-steps", 5)
    assert outcome.code == 0
    assert "resuming in epoch 2 after 4 steps\n" in outcome.out
    assert_same_weights(run_dir, trained)
    assert metrics_without_times(run_dir) == metrics_without_times(trained)


@pytest.mark.parametrize(("epoch", "epochs"), [(1, 3), (3, 3), (3, 4), (2, 5)])
def test_kill_between_checkpoint_and_best_model_keeps_the_best_model(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, epochs: int
) -> None:
    """model.safetensors is that of an epoch in the history, also where the resumed training has another schedule."""
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    monkeypatch.setattr("jobs.training.run_folder.is_better", lambda row, best: row.epoch <= epoch)
    arguments = (*RECIPE, "--set", "ema.horizon=0.2")
    save_best = RunFolder.save_best

    def kill(self: RunFolder, card: Any, tensors: Any, row: Any) -> None:
        if row.epoch == epoch:
            raise SystemExit("killed")
        save_best(self, card, tensors, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_best", kill)
        with pytest.raises(SystemExit, match="killed"):
            logpose("train", dataset, killed, *arguments)
    resumed = logpose("train", dataset, killed, "--resume", "--epochs", epochs, "--device", "cpu")
    assert (resumed.code, resumed.err) == (0, "")
    assert [int(row["epoch"]) for row in metrics(killed)] == list(range(1, epochs + 1))
    assert logpose("train", dataset, uninterrupted, *arguments).code == 0
    one, other = (load_checkpoint(path / "model.safetensors") for path in (killed, uninterrupted))
    assert one.progress["epoch"] == other.progress["epoch"] == epoch and one.card == other.card
    for name, tensor in other.tensors.items():
        np.testing.assert_array_equal(one.tensors[name], tensor)


def test_kill_before_the_last_drawing_draws_after_resume(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, draw_curves = tmp_path / "run", artifacts.draw_curves

    def kill(path: Path, rows: Any) -> None:
        if len(rows) == 3:
            raise SystemExit("killed")
        draw_curves(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "draw_curves", kill)
        with pytest.raises(SystemExit, match="killed"):
            logpose("train", dataset, run_dir, *RECIPE)
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    assert metrics_without_times(run_dir) == metrics_without_times(trained)
    for name in ("curves.png", "confusion.png"):
        assert (run_dir / name).read_bytes() == (trained / name).read_bytes()


def test_kill_before_the_confusion_matrix_of_the_best_epoch_draws_it_after_resume(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, titles = tmp_path / "run", []
    monkeypatch.setattr("jobs.training.run_folder.is_better", lambda row, best: row.epoch == 1)
    monkeypatch.setattr(artifacts, "draw_confusion", lambda path, confusion, names, title: titles.append(title))

    def kill(self: Artifacts) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "draw", kill)
        with pytest.raises(SystemExit, match="killed"):
            logpose("train", dataset, run_dir, *RECIPE)
    assert len(metrics(run_dir)) == 1
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    accuracy = float(metrics(run_dir)[0]["val_accuracy"])
    assert titles == [f"Validation after epoch 1: {accuracy:.1%} of 12 images correct"]
