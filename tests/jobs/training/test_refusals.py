"""Trainings that are refused, or fail: one line on standard error, and nothing is lost."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cnn.checkpoint import load_checkpoint
from cnn.training.optimizers import AdamW
from cnn.training.trainer import Trainer
from logpose.common.locks import exclusive_lock
from pipeline.dataset.store import Split
from pipeline.errors import Damage, DamageError
from tests.jobs.conftest import RECIPE, Logpose
from tests.jobs.training.runs import (
    RESULTS,
    assert_same_weights,
    before_step,
    metrics,
    metrics_without_times,
    weights,
)

# Refused ------------------------------------------------------------------------------------------------


def test_existing_training_is_not_overwritten_without_the_option(
    logpose: Logpose, dataset: Path, run_dir: Path
) -> None:
    before = weights(run_dir)
    outcome = logpose("train", dataset, run_dir, *RECIPE, "--seed", 7)
    assert outcome.code == 2
    assert "holds a training; add --resume to continue it, --overwrite to start again" in outcome.error
    assert outcome.out == ""
    assert weights(run_dir).keys() == before.keys()
    # A mistake leaves the old training where it is, even with --overwrite.
    assert logpose("train", dataset, run_dir, "--overwrite", "--lr", "-1").code == 2
    assert {path.name for path in run_dir.iterdir()} == RESULTS
    assert logpose("train", dataset, run_dir, *RECIPE, "--epochs", 1, "--overwrite").code == 0
    assert len(metrics(run_dir)) == 1


def test_two_trainings_into_one_folder_are_refused(logpose: Logpose, dataset: Path, run_dir: Path) -> None:
    before = (run_dir / "last.safetensors").read_bytes()
    with exclusive_lock(run_dir.with_name(f".{run_dir.name}.lock"), "test"):
        outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", 4, "--device", "cpu")
        assert outcome.code == 2
        assert "expected to be the only training into" in outcome.error
        assert logpose("train", dataset, run_dir, *RECIPE, "--overwrite").code == 2
    assert (run_dir / "last.safetensors").read_bytes() == before
    assert list(run_dir.parent.iterdir()) == [run_dir]


def test_resuming_with_another_recipe_is_refused(logpose: Logpose, dataset: Path, run_dir: Path) -> None:
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", 9, "--lr", 1, "--seed", 7)
    assert outcome.code == 2
    changes = f"optimizer.lr was {AdamW().lr}, now 1.0; train.seed was 0, now 7"
    assert f"begun with another recipe: {changes}; leave that out to resume" in outcome.error


def test_resuming_with_another_dataset_is_refused(
    logpose: Logpose, run_dir: Path, image_folder: Path, tmp_path: Path
) -> None:
    assert logpose("build", image_folder, tmp_path / "b.zarr", "--size", 16, "--seed", 9).code == 0
    outcome = logpose("train", tmp_path / "b.zarr", run_dir, "--resume", "--epochs", 9)
    assert outcome.code == 2
    assert "was begun with another dataset" in outcome.error


def test_resuming_with_only_a_model_is_refused(logpose: Logpose, dataset: Path, run_dir: Path) -> None:
    (run_dir / "last.safetensors").unlink()
    outcome = logpose("train", dataset, run_dir, "--resume")
    assert outcome.code == 2
    assert "holds a model, but no last.safetensors to resume from; start from the model with --init" in outcome.error
    assert (run_dir / "model.safetensors").exists()


@pytest.mark.parametrize("damage", ["truncated", "other tensors", "text", "the best model"])
def test_damaged_checkpoint_is_refused(logpose: Logpose, dataset: Path, run_dir: Path, damage: str) -> None:
    last = run_dir / "last.safetensors"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == "other tensors":
        save_file({"weight": np.zeros(3)}, last)
    elif damage == "text":
        last.write_text("# a README")
    else:
        shutil.copy(run_dir / "model.safetensors", last)
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", 9)
    assert outcome.code == 2
    assert "last.safetensors" in outcome.error
    assert len(metrics(run_dir)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "resnet99"), "no model is called 'resnet99' (--model); did you mean 'resnet9'?"),
        (("--set", "optimizer.momentun=1"), "[optimizer] has no 'momentun'"),
        (("--config", "nowhere.toml"), "cannot read the recipe nowhere.toml: no such file or directory"),
        (("--device", "tpu"), "'--device': expected auto, cpu or cuda, found 'tpu'"),
        (("--init", "nowhere.safetensors"), "no model file at nowhere.safetensors"),
        (("--set", "model.activation=tahn"), "no activation is called 'tahn'; did you mean 'tanh'?"),
    ],
)
def test_bad_options_write_nothing(
    logpose: Logpose, dataset: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("1kB", " MB: raise --ram-budget, or lower --batch-size or --workers"),
        ("1kB", " in batches of 8, found 0.001 MB: "),
        ("many", "--ram-budget many: expected a size above 0, such as 256MB"),
    ],
)
def test_bad_ram_budget_leaves_the_training_there(
    logpose: Logpose, dataset: Path, run_dir: Path, budget: str, message: str
) -> None:
    outcome = logpose("train", dataset, run_dir, *RECIPE, "--overwrite", "--ram-budget", budget)
    assert outcome.code == 2
    assert message in outcome.error
    assert {path.name for path in run_dir.iterdir()} == RESULTS


def test_file_as_run_folder_is_refused(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    outcome = logpose("train", dataset, tmp_path / "run")
    assert outcome.code == 2
    assert "is a file; give the name of a folder" in outcome.error


def test_init_of_another_architecture_is_refused(logpose: Logpose, dataset: Path, model: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", "--init", model, "--model", "seed")
    assert outcome.code == 2
    assert "is a plain, not a seed; use --model plain" in outcome.error
    outcome = logpose("train", dataset, tmp_path / "run", "--init", model, "--set", "model.width=6")
    assert outcome.code == 2
    assert "parameter " in outcome.error and "expected shape" in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["missing", "unsealed", "other version", "damaged chunk"])
def test_unusable_dataset_is_refused(logpose: Logpose, dataset: Path, tmp_path: Path, damage: str) -> None:
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


# Failing ----------------------------------------------------------------------------------------------


def test_diverging_training_stops_and_keeps_the_best_model(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = ("--set", "optimizer.name=sgd", "--lr", "1e30", "--set", "schedule.name=constant")
    outcome = logpose("train", dataset, tmp_path / "first step", *RECIPE, *diverging)
    assert outcome.code == 1
    assert "lower --lr" in outcome.error and "no model is saved yet" in outcome.error

    def set_to_nan(trainer: Trainer) -> None:
        trainer.network.parameters.flat[...] = np.nan

    run_dir = tmp_path / "later"
    before_step(9, monkeypatch, set_to_nan)  # in the second epoch
    outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 1
    assert "at step 9" in outcome.error
    assert f"the best model so far is in {run_dir / 'model.safetensors'}" in outcome.error
    for name in ("model.safetensors", "last.safetensors"):
        tensors = load_checkpoint(run_dir / name).tensors
        assert all(np.isfinite(values).all() for values in tensors.values())
    assert [row["epoch"] for row in metrics(run_dir)] == ["1"]


def test_damaged_chunk_in_mid_training_stops_it_and_loses_nothing(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, start_micro_batches, read = tmp_path / "run", Trainer.start_micro_batches, Split.read_into
    steps: list[int] = []

    def counting_start_micro_batches(self: Trainer, *arguments: Any) -> Any:
        steps.append(self.step)
        return start_micro_batches(self, *arguments)

    def damaged(self: Split, out: np.ndarray, start: int, stop: int) -> Any:
        if len(steps) >= 8:  # in the second epoch
            raise DamageError(Damage("train", "images", 0, (0, 48), Path("shard"), "a bit has flipped", ()), self.path)
        return read(self, out, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "start_micro_batches", counting_start_micro_batches)
        patch.setattr(Split, "read_into", damaged)
        outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 2
    assert "found damage in train images, chunk 0 in shard" in outcome.error
    assert "logpose verify" in outcome.error
    assert load_checkpoint(run_dir / "last.safetensors").progress["step"] == len(steps)
    assert logpose("train", dataset, run_dir, "--resume", "--device", "cpu").code == 0
    assert_same_weights(run_dir, trained)
    assert metrics_without_times(run_dir) == metrics_without_times(trained)


def test_full_disk_is_reported_in_one_line_and_keeps_the_old_checkpoint(
    logpose: Logpose, dataset: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run_dir / "last.safetensors").read_bytes()
    config = (run_dir / "config.toml").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", 4, "--device", "cpu")
    assert outcome.code == 1
    assert "no space left on device" in outcome.error.lower()
    assert (run_dir / "last.safetensors").read_bytes() == before
    assert (run_dir / "config.toml").read_bytes() == config
    assert {path.name for path in run_dir.iterdir()} == RESULTS
