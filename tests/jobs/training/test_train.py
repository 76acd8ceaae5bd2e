"""Trainings that are stopped, killed, resumed, refused; and what they leave behind."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cnn.backends import pick_backend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.evaluation.calibration import calibrate, softmax
from cnn.evaluation.metrics import Evaluation, wilson_interval
from cnn.inference.predictor import Predictor
from cnn.training.optimizers import AdamW
from cnn.training.recipe import Recipe
from jobs.cli import main
from jobs.training import loop as job
from jobs.training.train import _open_streams
from pipeline.build.destination import exclusive_lock
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import Damage, DamageError, DatasetError, OptionError
from pipeline.loader.stream import BatchStream
from tests.jobs.conftest import CLASSES, RECIPE, Logpose, command, draw_classes

RESULTS = {
    "model.safetensors", "last.safetensors", "config.toml", "metrics.csv", "classes.csv", "summary.json",
    "curves.png", "confusion.png",
}  # fmt: skip


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(run_dir / "last.safetensors").tensors


def same_weights(one: Path, other: Path) -> None:
    for name, values in weights(one).items():
        np.testing.assert_array_equal(values, weights(other)[name], err_msg=name)


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def learned(run_dir: Path) -> list[tuple[str, ...]]:
    """The columns of metrics.csv that must not depend on the clock."""
    names = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return [tuple(row[name] for name in names) for row in metrics(run_dir)]


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished training, for tests that change it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


# What it leaves -----------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_the_help_says(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == RESULTS
    assert [row["epoch"] for row in metrics(trained)] == ["1", "2", "3"]
    card = load_checkpoint(trained / "model.safetensors").card
    assert (card.model, card.class_names, card.in_shape, card.fit) == ("plain", CLASSES, (16, 16, 3), "pad")
    assert card.model_options["width"] == 4


def test_the_best_model_is_that_of_the_best_epoch(trained: Path) -> None:
    rows = metrics(trained)
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert load_checkpoint(trained / "model.safetensors").progress["epoch"] == int(best["epoch"])


def test_the_first_lines_say_what_is_trained_on_what(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 1)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert "3 classes, 16×16 (pad); 48 images to train on, 12 to validate" in lines[0]
    assert lines[1].startswith("cpu: ")
    assert lines[2].startswith("plain, ") and lines[2].endswith(" parameters")
    assert lines[3].startswith("plain (width 4), adamw, cosine, softmax_cross_entropy; 1 epoch, batches of 8, seed 0")
    assert lines[4].startswith("epoch 1/1  train loss ")
    assert lines[5].startswith("         time: compute ")
    assert lines[-2].startswith("done, best validation accuracy ") and "logpose report" in lines[-1]


def test_config_toml_alone_repeats_the_run(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert logpose("train", dataset, again, "--config", trained / "config.toml", "--device", "cpu").code == 0
    same_weights(again, trained)
    assert learned(again) == learned(trained)
    assert (again / "config.toml").read_text() == (trained / "config.toml").read_text()


def test_without_a_validation_part_the_last_epoch_is_the_best(
    logpose: Logpose, image_folder: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.zarr"
    assert logpose("build", image_folder, whole, "--size", 16, "--val", 0).code == 0
    outcome = logpose("train", whole, tmp_path / "run", *RECIPE, "--epochs", 2)
    assert outcome.code == 0
    assert "none to validate: the last epoch counts as the best" in outcome.out
    assert load_checkpoint(tmp_path / "run" / "model.safetensors").progress["epoch"] == 2
    assert [row["val_loss"] for row in metrics(tmp_path / "run")] == ["", ""]
    assert not (tmp_path / "run" / "confusion.png").exists()


# Going on -----------------------------------------------------------------------------------------------


def test_resume_starts_what_is_not_there_and_says_when_it_is_finished(
    logpose: Logpose, dataset: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert logpose("train", dataset, run_dir, *RECIPE, "--epochs", 1, "--resume").code == 0
    before = (run_dir / "last.safetensors").read_bytes()
    outcome = logpose("train", dataset, run_dir, "--resume")
    assert outcome.code == 0
    assert "is finished (1 epoch, best validation accuracy" in outcome.out
    assert (run_dir / "last.safetensors").read_bytes() == before


def test_resume_with_nothing_but_a_model_does_not_overwrite_it(
    logpose: Logpose, dataset: Path, unfinished: Path
) -> None:
    (unfinished / "last.safetensors").unlink()
    outcome = logpose("train", dataset, unfinished, "--resume")
    assert outcome.code == 2
    assert "holds a model, but no last.safetensors to go on from; start from the model with --init" in outcome.error
    assert (unfinished / "model.safetensors").exists()


def test_more_epochs_may_be_asked_for_later(logpose: Logpose, dataset: Path, unfinished: Path) -> None:
    outcome = logpose("train", dataset, unfinished, "--resume", "--epochs", 4, "--device", "cpu")
    assert outcome.code == 0
    assert "going on with epoch 4\n" in outcome.out
    assert [row["epoch"] for row in metrics(unfinished)] == ["1", "2", "3", "4"]
    assert tomllib.loads((unfinished / "config.toml").read_text())["train"]["epochs"] == 4


def test_a_killed_training_ends_as_if_it_had_not_been(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    recipe = (*RECIPE, "--epochs", "5", "--set", "train.clip=1")
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    arguments = command("train", dataset, killed, *recipe, "--checkpoint-minutes", "0")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: load_checkpoint(killed / "last.safetensors").progress["step"] >= 8, killed, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    outcome = logpose("train", dataset, killed, "--resume", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert "going on with epoch" in outcome.out
    assert logpose("train", dataset, calm, *recipe).code == 0
    same_weights(killed, calm)
    assert learned(killed) == learned(calm)
    best = load_file(killed / "model.safetensors")
    for name, values in load_file(calm / "model.safetensors").items():
        np.testing.assert_array_equal(best[name], values, err_msg=name)


def test_ctrl_c_saves_and_says_how_to_go_on(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "my run"
    arguments = command("train", dataset, run_dir, *RECIPE, "--epochs", "100000")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (run_dir / "metrics.csv").exists(), run_dir, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("interrupted: saved after ")
    assert err.endswith(f"go on with: logpose train {dataset} '{run_dir}' --resume\n")
    done = load_checkpoint(run_dir / "last.safetensors").progress["epoch"]
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", done, "--device", "cpu")
    assert outcome.code == 0
    assert [int(row["epoch"]) for row in metrics(run_dir)] == list(range(1, done + 1))


@pytest.fixture
def windows(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset whose images to train on are read in several windows."""
    monkeypatch.setattr("pipeline.loader.epoch_order.WINDOW_BYTES", 10**6)
    path = tmp_path / "windows.zarr"
    assert main(["build", str(image_folder), str(path), "--size", "96", "--val", "0.1"]) == 0
    return path


def two_windows(dataset: Path, workers: int) -> int:
    """The least budget with which one window is read while the other is used, for both parts together."""
    data = Dataset.open(dataset)
    train = BatchStream(data.train, 8, seed=0, workers=workers)
    val = BatchStream(data.val, 8, seed=0, shuffle=False, workers=workers)
    assert train.buffered_windows == 2
    return train.ram_bytes + val.ram_bytes


def interrupt_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while that step of the training is computed."""
    steps = job.Trainer.train_batch

    def interrupted(self: job.Trainer, *arguments: Any) -> Any:
        if self.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return steps(self, *arguments)

    patch.setattr(job.Trainer, "train_batch", interrupted)


def test_workers_and_memory_may_change_on_the_way(
    logpose: Logpose, windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide how far is read ahead, and neither the order nor the weights."""
    recipe, changed, calm = (*RECIPE, "--epochs", "1"), tmp_path / "changed", tmp_path / "calm"
    one_window = two_windows(windows, 1) - 1
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert logpose("train", windows, changed, *recipe, "--workers", 1, "--ram-budget", one_window).code == 130
    options = ("--workers", 3, "--ram-budget", "64MiB", "--device", "cpu")
    assert logpose("train", windows, changed, "--resume", *options).code == 0
    assert logpose("train", windows, calm, *recipe).code == 0
    same_weights(changed, calm)
    assert learned(changed) == learned(calm)


def test_both_streams_together_stay_within_the_budget(windows: Path) -> None:
    data, recipe, enough = Dataset.open(windows), Recipe(batch_size=8), two_windows(windows, 2)
    for budget, depth in ((2 * enough, 2), (enough, 2), (enough - 1, 1)):
        train, val = _open_streams(data, recipe, 2, budget)
        assert val is not None and train.ram_bytes + val.ram_bytes <= budget
        assert train.buffered_windows == depth
    with pytest.raises(OptionError, match=r"--ram-budget.*\(validation takes \d+ MB of it\)"):
        _open_streams(data, recipe, 2, enough // 3)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The epoch and its finished batches, at every point to resume from."""
    saved: list[tuple[int, int]] = []
    saves = job.RunFolder.save_last

    def noting(self: job.RunFolder, card: Any, tensors: Any, state: job.TrainingState) -> None:
        saved.append((state.epoch, state.batches))
        saves(self, card, tensors, state)

    monkeypatch.setattr(job.RunFolder, "save_last", noting)
    return saved


def test_checkpoints_come_after_so_many_steps(
    logpose: Logpose, dataset: Path, tmp_path: Path, saved: list[tuple[int, int]]
) -> None:
    arguments = (*RECIPE, "--epochs", 2)  # of 6 steps each
    begin, end = [(1, 0)], [(3, 0), (3, 0)]  # with the last epoch over, and with all written
    assert logpose("train", dataset, tmp_path / "four", *arguments, "--checkpoint-steps", 4).code == 0
    assert saved == [*begin, (1, 4), (2, 0), (2, 4), *end]
    saved.clear()
    minutes = ("--checkpoint-steps", 4, "--checkpoint-minutes", 0)  # whichever comes first
    assert logpose("train", dataset, tmp_path / "each", *arguments, "--epochs", 1, *minutes).code == 0
    assert saved[:7] == [*begin, *((1, step) for step in range(1, 7))]


def test_a_training_killed_between_checkpoints_by_steps_goes_on_from_the_last(
    logpose: Logpose,
    dataset: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: list[tuple[int, int]],
) -> None:
    steps = job.Trainer.train_batch

    def killed(self: job.Trainer, *arguments: Any) -> Any:
        if self.step == 11:
            raise KeyboardInterrupt  # at once, nothing is saved
        return steps(self, *arguments)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(job.Trainer, "train_batch", killed)
        assert logpose("train", dataset, run_dir, *RECIPE, "--checkpoint-steps", 2).code == 130
    assert load_checkpoint(run_dir / "last.safetensors").progress["step"] == 10
    saved.clear()
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu", "--checkpoint-steps", 5)
    assert outcome.code == 0
    assert "going on with epoch 2, after 4 steps of it" in outcome.out
    assert saved == [(3, 0), (3, 5), (4, 0), (4, 0)]  # steps count from the last point to resume from
    same_weights(run_dir, trained)
    assert learned(run_dir) == learned(trained)


def wait_for(condition: Any, folder: Path, process: "subprocess.Popen[Any]") -> None:
    """Wait till the process has come so far, and fail if it ends before."""
    limit = time.monotonic() + 300
    while True:
        assert process.poll() is None, f"ended with {process.returncode} too early"
        assert time.monotonic() < limit
        if (folder / "last.safetensors").exists() and condition():
            return
        time.sleep(0.005)


@pytest.mark.parametrize(("epoch", "more"), [(1, 3), (3, 3), (3, 4), (2, 5)])
def test_a_kill_between_the_point_to_go_on_from_and_the_best_is_made_up_for(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, more: int
) -> None:
    """The best network is that of an epoch in the history, also where the training goes on with another schedule."""
    run_dir, calm = tmp_path / "run", tmp_path / "calm"
    monkeypatch.setattr(job, "is_better", lambda row, best: row.epoch <= epoch)
    arguments = (*RECIPE, "--set", "ema.horizon=0.2")
    saves = job.RunFolder.save_best

    def killed(self: job.RunFolder, card: Any, tensors: Any, row: Any) -> None:
        if row.epoch == epoch:
            raise SystemExit("killed")
        saves(self, card, tensors, row)

    with monkeypatch.context() as patch:
        patch.setattr(job.RunFolder, "save_best", killed)
        with pytest.raises(SystemExit, match="killed"):
            logpose("train", dataset, run_dir, *arguments)
    resumed = logpose("train", dataset, run_dir, "--resume", "--epochs", more, "--device", "cpu")
    assert (resumed.code, resumed.err) == (0, "")
    assert [int(row["epoch"]) for row in metrics(run_dir)] == list(range(1, more + 1))
    assert logpose("train", dataset, calm, *arguments).code == 0
    one, other = (load_checkpoint(path / "model.safetensors") for path in (run_dir, calm))
    assert one.progress["epoch"] == other.progress["epoch"] == epoch and one.card == other.card
    for name, tensor in other.tensors.items():
        np.testing.assert_array_equal(one.tensors[name], tensor)


def test_ctrl_c_while_validating_validates_again(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    batches = job.Training._val_batches

    def interrupted(self: job.Training, *arguments: Any) -> Any:
        for batch in batches(self, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(job.Training, "_val_batches", interrupted)
        outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 130
    assert "saved after 6 steps of epoch 1" in outcome.err
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    same_weights(run_dir, trained)
    assert learned(run_dir) == learned(trained)


def test_a_kill_before_the_last_drawing_is_made_up_for(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, draw = tmp_path / "run", job.draw_curves

    def killed(path: Path, rows: Any) -> None:
        if len(rows) == 3:
            raise SystemExit("killed")
        draw(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(job, "draw_curves", killed)
        with pytest.raises(SystemExit, match="killed"):
            logpose("train", dataset, run_dir, *RECIPE)
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    assert learned(run_dir) == learned(trained)
    for name in ("curves.png", "confusion.png"):
        assert (run_dir / name).read_bytes() == (trained / name).read_bytes()


def test_the_best_epochs_confusion_is_drawn_though_a_kill_came_between(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, titles = tmp_path / "run", []
    monkeypatch.setattr(job, "is_better", lambda row, best: row.epoch == 1)
    monkeypatch.setattr(job, "draw_confusion", lambda path, confusion, names, title: titles.append(title))

    def killed(self: job.Training) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(job.Training, "_draw", killed)
        with pytest.raises(SystemExit, match="killed"):
            logpose("train", dataset, run_dir, *RECIPE)
    assert len(metrics(run_dir)) == 1
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    accuracy = float(metrics(run_dir)[0]["val_accuracy"])
    assert titles == [f"Validation after epoch 1: {accuracy:.1%} of 12 images right"]


def test_two_at_a_time_into_one_folder_are_refused(logpose: Logpose, dataset: Path, unfinished: Path) -> None:
    before = (unfinished / "last.safetensors").read_bytes()
    with exclusive_lock(unfinished.with_name(".run.lock"), "test"):
        outcome = logpose("train", dataset, unfinished, "--resume", "--epochs", 4, "--device", "cpu")
        assert outcome.code == 2
        assert "expected to be the only training into" in outcome.error
        assert logpose("train", dataset, unfinished, *RECIPE, "--overwrite").code == 2
    assert (unfinished / "last.safetensors").read_bytes() == before
    assert [path.name for path in unfinished.parent.iterdir()] == ["run"]


# From a saved model -------------------------------------------------------------------------------------


def test_init_with_other_classes_replaces_the_head_and_says_so(
    logpose: Logpose, model: Path, tmp_path: Path
) -> None:
    draw_classes(tmp_path / "other", 6, ("crimson", "lime"))
    assert logpose("build", tmp_path / "other", tmp_path / "other.zarr", "--size", 16).code == 0
    outcome = logpose("train", tmp_path / "other.zarr", tmp_path / "run", "--init", model, "--epochs", 1)
    assert outcome.code == 0
    assert "plain (width 4)" in outcome.out  # the architecture comes with the model
    assert f"starting from {model}" in outcome.out
    assert "new classifier head" in outcome.out
    assert load_checkpoint(tmp_path / "run" / "model.safetensors").card.class_names == ("crimson", "lime")


def test_init_of_another_architecture_is_refused(
    logpose: Logpose, dataset: Path, model: Path, tmp_path: Path
) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", "--init", model, "--model", "seed")
    assert outcome.code == 2
    assert "is a plain, not a seed; use --model plain" in outcome.error
    outcome = logpose("train", dataset, tmp_path / "run", "--init", model, "--set", "model.width=6")
    assert outcome.code == 2
    assert "parameter " in outcome.error and "expected shape" in outcome.error
    assert not (tmp_path / "run").exists()


# Refused ------------------------------------------------------------------------------------------------


def test_a_training_is_not_overwritten_without_being_told(
    logpose: Logpose, dataset: Path, unfinished: Path
) -> None:
    before = weights(unfinished)
    outcome = logpose("train", dataset, unfinished, *RECIPE)
    assert outcome.code == 2
    assert "holds a training; add --resume to go on with it, --overwrite to start again" in outcome.error
    assert outcome.out == ""
    assert weights(unfinished).keys() == before.keys()
    # A mistake on the way to a new start leaves the old one where it is.
    assert logpose("train", dataset, unfinished, "--overwrite", "--lr", "-1").code == 2
    assert {path.name for path in unfinished.iterdir()} == RESULTS
    assert logpose("train", dataset, unfinished, *RECIPE, "--epochs", 1, "--overwrite").code == 0
    assert len(metrics(unfinished)) == 1


def test_resuming_with_another_recipe_says_what_differs(
    logpose: Logpose, dataset: Path, unfinished: Path
) -> None:
    outcome = logpose("train", dataset, unfinished, "--resume", "--epochs", 9, "--lr", 1, "--seed", 7)
    assert outcome.code == 2
    changes = f"optimizer.lr was {AdamW().lr}, now 1.0; train.seed was 0, now 7"
    assert f"begun with another recipe: {changes}; leave" in outcome.error


def test_resuming_with_another_dataset_is_refused(
    logpose: Logpose, unfinished: Path, image_folder: Path, tmp_path: Path
) -> None:
    assert logpose("build", image_folder, tmp_path / "b.zarr", "--size", 16, "--seed", 9).code == 0
    outcome = logpose("train", tmp_path / "b.zarr", unfinished, "--resume", "--epochs", 9)
    assert outcome.code == 2
    assert "was begun with another dataset" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet99"), "no model is called 'resnet99' (--model); did you mean 'resnet9'?"),
        (("--set", "optimizer.momentun=1"), "[optimizer] has no 'momentun'"),
        (("--config", "nowhere.toml"), "cannot read the recipe nowhere.toml: no such file or directory"),
        (("--device", "tpu"), "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (("--init", "nowhere.safetensors"), "no model file at nowhere.safetensors"),
        (("--set", "model.activation=tahn"), "no activation is called 'tahn'; did you mean 'tanh'?"),
    ],
)
def test_bad_options_leave_nothing(
    logpose: Logpose, dataset: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("1kB", "expected a RAM budget of at least "),
        ("many", "--ram-budget many: expected a size above 0, such as 256MB"),
    ],
)
def test_a_budget_that_cannot_be_kept_leaves_what_is_there(
    logpose: Logpose, dataset: Path, unfinished: Path, budget: str, message: str
) -> None:
    outcome = logpose("train", dataset, unfinished, *RECIPE, "--overwrite", "--ram-budget", budget)
    assert outcome.code == 2
    assert message in outcome.error
    assert {path.name for path in unfinished.iterdir()} == RESULTS


def test_a_file_is_no_run_folder(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    outcome = logpose("train", dataset, tmp_path / "run")
    assert outcome.code == 2
    assert "is a file; give the name of a folder" in outcome.error


@pytest.mark.parametrize("damage", ["truncated", "not ours", "not a model", "the best model instead"])
def test_a_damaged_resume_point_is_refused(
    logpose: Logpose, dataset: Path, unfinished: Path, damage: str
) -> None:
    last = unfinished / "last.safetensors"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == "not ours":
        save_file({"weight": np.zeros(3)}, last)
    elif damage == "not a model":
        last.write_text("# a README")
    else:
        shutil.copy(unfinished / "model.safetensors", last)
    outcome = logpose("train", dataset, unfinished, "--resume", "--epochs", 9)
    assert outcome.code == 2
    assert "last.safetensors" in outcome.error
    assert len(metrics(unfinished)) == 3


@pytest.mark.parametrize("damage", ["missing", "unsealed", "other version", "damaged chunk"])
def test_a_dataset_that_cannot_be_used(logpose: Logpose, dataset: Path, tmp_path: Path, damage: str) -> None:
    broken = Path(shutil.copytree(dataset, tmp_path / "broken.zarr"))
    metadata = broken / "zarr.json"
    if damage == "missing":
        shutil.rmtree(broken)
    elif damage == "unsealed":
        metadata.write_text(metadata.read_text().replace('"sealed": true', '"sealed": false'))
    elif damage == "other version":
        metadata.write_text(metadata.read_text().replace('"format_version": 2', '"format_version": 99'))
    else:
        shard = broken / "train" / "images" / "c" / "0" / "0" / "0" / "0"
        content = bytearray(shard.read_bytes())
        content[1000] ^= 1
        shard.write_bytes(content)
    outcome = logpose("train", broken, tmp_path / "run", *RECIPE)
    assert outcome.code == 2
    assert "broken.zarr" in outcome.error
    assert not (tmp_path / "run" / "model.safetensors").exists()


# Failing on the way -------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_model(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = ("--set", "optimizer.name=sgd", "--lr", "1e30", "--set", "schedule.name=constant")
    outcome = logpose("train", dataset, tmp_path / "at once", *RECIPE, *diverging)
    assert outcome.code == 1
    assert "lower --lr" in outcome.error and "no model is saved yet" in outcome.error

    run_dir = tmp_path / "later"
    steps = job.Trainer.train_batch

    def poisoned(self: job.Trainer, *arguments: Any) -> Any:
        if self.step == 8:  # in the second epoch
            self.network.parameters.flat[...] = np.nan
        return steps(self, *arguments)

    monkeypatch.setattr(job.Trainer, "train_batch", poisoned)
    outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 1
    assert "not finite at step 9" in outcome.error
    assert f"{run_dir / 'model.safetensors'} keeps the best so far" in outcome.error
    for name in ("model.safetensors", "last.safetensors"):
        tensors = load_checkpoint(run_dir / name).tensors
        assert all(np.isfinite(values).all() for values in tensors.values())
    assert [row["epoch"] for row in metrics(run_dir)] == ["1"]


def test_damage_in_mid_training_stops_it_and_loses_nothing(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, steps, read = tmp_path / "run", job.Trainer.train_batch, Split.read_into
    done: list[int] = []

    def counted(self: job.Trainer, *arguments: Any) -> Any:
        done.append(self.step)
        return steps(self, *arguments)

    def damaged(self: Split, out: np.ndarray, start: int, stop: int) -> Any:
        if len(done) >= 8:  # in the second epoch
            raise DamageError(Damage("train", "images", 0, (0, 48), Path("shard"), "a bit has flipped", ()), self.path)
        return read(self, out, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(job.Trainer, "train_batch", counted)
        patch.setattr(Split, "read_into", damaged)
        outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 2
    assert "found damage in train images, chunk 0 in shard" in outcome.error
    assert "logpose verify" in outcome.error
    assert load_checkpoint(run_dir / "last.safetensors").progress["step"] == len(done)
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    same_weights(run_dir, trained)
    assert learned(run_dir) == learned(trained)


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(
    logpose: Logpose, dataset: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (unfinished / "last.safetensors").read_bytes()
    config = (unfinished / "config.toml").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    outcome = logpose("train", dataset, unfinished, "--resume", "--epochs", 4, "--device", "cpu")
    assert outcome.code == 1
    assert "no space left on device" in outcome.error.lower()
    assert (unfinished / "last.safetensors").read_bytes() == before
    assert (unfinished / "config.toml").read_bytes() == config
    assert {path.name for path in unfinished.iterdir()} == RESULTS


# Stopping early, and what is said in the end ------------------------------------------------------------


def test_patience_stops_early_and_more_of_it_goes_on(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr(job, "is_better", lambda row, best: row.epoch <= 2)
    outcome = logpose("train", dataset, run_dir, *RECIPE, "--epochs", 9, "--patience", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert [row["epoch"] for row in metrics(run_dir)] == ["1", "2", "3", "4", "5"]
    last = next(line for line in outcome.out.splitlines() if line.startswith("epoch 5/9  "))
    assert "left" not in last
    epoch, _, done, look = outcome.out.splitlines()[-4:]
    assert epoch.startswith("epoch 2: ") and "in epoch 2;" in done and look.endswith(f"logpose report {run_dir}")
    assert load_checkpoint(run_dir / "model.safetensors").progress["epoch"] == 2

    again = logpose("train", dataset, run_dir, "--resume")
    assert again.code == 0 and "is finished (5 epochs, best" in again.out and "give more --patience" in again.out
    assert logpose("train", dataset, run_dir, "--resume", "--patience", 4, "--device", "cpu").code == 0
    assert [row["epoch"] for row in metrics(run_dir)] == ["1", "2", "3", "4", "5", "6"]
    assert logpose("train", dataset, run_dir, "--resume", "--patience", 0, "--epochs", 7, "--device", "cpu").code == 0
    assert len(metrics(run_dir)) == 7


def test_the_model_keeps_the_temperature_that_its_probabilities_are_right_with(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path
) -> None:
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


def test_classes_may_be_balanced(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    steps = job.Trainer.train_batch

    def noting(self: job.Trainer, *arguments: Any) -> Any:
        seen.append(self.recipe.loss)
        return steps(self, *arguments)

    monkeypatch.setattr(job.Trainer, "train_batch", noting)
    run_dir = tmp_path / "run"
    arguments = (*RECIPE, "--epochs", 1, "--set", "loss.class_weights=balanced")
    assert logpose("train", dataset, run_dir, *arguments).code == 0
    counts = np.bincount(Dataset.open(dataset).train.labels)
    assert seen[0].class_weights == pytest.approx(tuple(counts.sum() / (3 * counts)))
    assert 'class_weights = "balanced"' in (run_dir / "config.toml").read_text()
    wrong = logpose("train", dataset, tmp_path / "other", *RECIPE, "--set", "loss.class_weights=fair")
    assert wrong.code == 2 and "expected a list such as [0.1, 0.2] or one of 'balanced', found 'fair'" in wrong.err


def test_the_moving_average_is_what_is_saved_judged_and_seen_in_views(
    logpose: Logpose, dataset: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = (*RECIPE, "--set", "ema.horizon=0.2", "--set", "train.views=mirror")
    assert logpose("train", dataset, run_dir, *arguments).code == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    predictor = Predictor(run_dir / "model.safetensors", pick_backend("cpu"))
    val = Dataset.open(dataset).val
    images = val.read(0, val.rows)
    logits = predictor.logits(images)
    seen = logits + predictor.logits(np.ascontiguousarray(images[:, :, ::-1]))
    assert summary["accuracy"] == Evaluation(0.0, logits, val.labels).accuracy
    assert summary["accuracy_with_views"] == Evaluation(0.0, seen, val.labels).accuracy
    tensors = load_checkpoint(run_dir / "model.safetensors").tensors
    assert any((tensors[name] != tensor).any() for name, tensor in weights(run_dir).items() if name in tensors)


def test_a_finished_training_without_a_summary_gets_one(
    logpose: Logpose, dataset: Path, trained: Path, unfinished: Path
) -> None:
    """As one from before there were any; its rows lack the columns that came with it."""
    (unfinished / "summary.json").unlink()
    (unfinished / "classes.csv").unlink()
    checkpoint = load_checkpoint(unfinished / "last.safetensors")
    for row in checkpoint.progress["history"]:
        for name in ("val_macro_f1", "val_top5", "temperature", "val_calibration_error"):
            del row[name]
        del row["val_calibration_error_scaled"]
    del checkpoint.progress["dataset"], checkpoint.progress["init"]
    save_checkpoint(unfinished / "last.safetensors", checkpoint.card, checkpoint.tensors, checkpoint.progress)
    outcome = logpose("train", dataset, unfinished, "--resume", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "") and "all epochs are done" in outcome.out
    same_weights(unfinished, trained)
    one, other = (json.loads((path / "summary.json").read_text()) for path in (unfinished, trained))
    assert one["accuracy"] == other["accuracy"] and one["macro_f1"] is None
    assert (unfinished / "classes.csv").read_text() == (trained / "classes.csv").read_text()
    assert "is finished" in logpose("train", dataset, unfinished, "--resume").out


def test_what_an_earlier_end_said_goes_when_training_goes_on(logpose: Logpose, dataset: Path, unfinished: Path) -> None:
    (unfinished / "report.html").write_text("of three epochs")
    assert logpose("train", dataset, unfinished, "--resume", "--epochs", 4, "--device", "cpu").code == 0
    assert not (unfinished / "report.html").exists()
    assert json.loads((unfinished / "summary.json").read_text())["epochs"] == 4


def test_damage_found_while_summing_up_leaves_a_training_to_go_on_with(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    arguments = (*RECIPE, "--set", "train.views=mirror")

    def damaged(*arguments: Any) -> Any:
        raise DatasetError("the images to validate are damaged")

    with monkeypatch.context() as patch:
        patch.setattr(job.Training, "_evaluate_best", damaged)
        assert logpose("train", dataset, run_dir, *arguments).code != 0
    assert not (run_dir / "summary.json").exists()
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu")
    assert outcome.code == 0 and "all epochs are done; its summary is missing" in outcome.out
    assert json.loads((run_dir / "summary.json").read_text())["accuracy_with_views"] is not None


def test_patience_without_images_to_validate_is_said_to_be_in_vain(
    logpose: Logpose, image_folder: Path, tmp_path: Path
) -> None:
    assert logpose("build", image_folder, tmp_path / "all.zarr", "--size", 16, "--val", 0).code == 0
    outcome = logpose("train", tmp_path / "all.zarr", tmp_path / "run", *RECIPE, "--epochs", 2, "--patience", 1)
    assert outcome.code == 0 and "patience has no effect" in outcome.out
    assert len(metrics(tmp_path / "run")) == 2 and "confusion.png" not in outcome.out
