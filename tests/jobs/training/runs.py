"""Helpers for tests of trainings: compare run folders, stop a training at a given step."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.checkpoint import load_checkpoint
from cnn.training.trainer import Trainer

RESULTS = {
    "model.safetensors", "last.safetensors", "config.toml", "metrics.csv", "classes.csv", "summary.json",
    "curves.png", "confusion.png",
}  # fmt: skip


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(run_dir / "last.safetensors").tensors


def assert_same_weights(one: Path, other: Path) -> None:
    for name, values in weights(one).items():
        np.testing.assert_array_equal(values, weights(other)[name], err_msg=name)


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def metrics_without_times(run_dir: Path) -> list[tuple[str, ...]]:
    names = ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    return [tuple(row[name] for name in names) for row in metrics(run_dir)]


def before_step(number: int, patch: pytest.MonkeyPatch, action: Callable[[Trainer], None]) -> None:
    """Call `action` in every training before its step `number`, counted from 1."""
    start_micro_batches = Trainer.start_micro_batches

    def patched(self: Trainer, *arguments: Any) -> Any:
        if self.step == number - 1:
            action(self)
        return start_micro_batches(self, *arguments)

    patch.setattr(Trainer, "start_micro_batches", patched)


def press_ctrl_c(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stop_unsaved(trainer: Trainer) -> None:
    """As a kill, within this process: nothing is saved."""
    raise KeyboardInterrupt
