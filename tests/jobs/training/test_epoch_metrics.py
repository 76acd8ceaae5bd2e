"""Where an epoch's time goes: each part charged to its column, the shares in a line, and the verdict."""

import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.training.trainer import BatchResult
from jobs.console.progress import _Lines
from jobs.training import loop as job
from jobs.training.metrics import EpochRow, write_metrics
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.timing import EpochTimes, Stopwatch, time_lines
from pipeline.dataset.shard_format import ReadSeconds
from pipeline.dataset.store import Split
from pipeline.loader.reader import StreamTimes
from pipeline.loader.stream import Batch, BatchStream
from tests.jobs.conftest import RECIPE, Logpose

COLUMNS = [
    *("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"),
    *("images_per_second", "wait_seconds", "compute_seconds", "copy_seconds", "validation_seconds"),
    *("save_seconds", "read_seconds", "decode_seconds", "val_top5", "val_macro_f1"),
    *("val_calibration_error", "temperature", "val_calibration_error_scaled"),
]
ADDED_LATER = COLUMNS[COLUMNS.index("compute_seconds") :]
ROW = EpochRow(
    epoch=3, step=30, lr=0.1, train_loss=1.5, train_accuracy=0.4, val_loss=1.0, val_accuracy=0.5, seconds=200.0,
    images_per_second=500.0, wait_seconds=4.0, compute_seconds=180.0, copy_seconds=1.0, validation_seconds=10.0,
    save_seconds=3.0, read_seconds=2.5, decode_seconds=0.25,
)  # fmt: skip


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Figures ------------------------------------------------------------------------------------------------


def test_new_columns_come_after_those_that_were_there(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [ROW])
    found = metrics(tmp_path)[0]
    assert list(found) == COLUMNS
    assert [found[name] for name in ADDED_LATER] == ["180", "1", "10", "3", "2.5", "0.25", *[""] * 5]


def test_the_parts_of_an_epoch_in_a_line() -> None:
    assert time_lines(ROW) == [
        "         time: compute 90.0 %, validation 5.0 %, waiting for data 2.0 %, saving 1.5 %, other 1.5 %;"
        " behind it: reading 2.50 s, decoding 0.25 s, copying 1.00 s"
    ]


def test_what_takes_no_time_is_not_mentioned() -> None:
    kept = replace(ROW, read_seconds=0.0, decode_seconds=0.004)
    assert time_lines(kept)[0].endswith("other 1.5 %; behind it: copying 1.00 s")
    assert time_lines(replace(kept, copy_seconds=0.0))[0].endswith("other 1.5 %")


def test_a_sum_that_is_over_by_rounding_leaves_nothing_else() -> None:
    assert "other 0.0 %" in time_lines(replace(ROW, seconds=197.0 - 1e-9))[0]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((3.0, 2.0, 1.0), "reading takes most of the readers' time; a faster or a local disk helps"),
        ((1.0, 3.0, 2.0), "decoding takes most of the readers' time; more --workers help, or a dataset built with"),
        ((2.0, 1.0, 3.0), "copying takes most of the readers' time; more --workers help"),
    ],
)
def test_who_waits_longer_than_a_tenth_is_told_what_helps(times: tuple[float, ...], words: str) -> None:
    read, decode, copy = times
    row = replace(ROW, wait_seconds=20.0, read_seconds=read, decode_seconds=decode, copy_seconds=copy)
    assert len(time_lines(row)) == 1  # a tenth is not more than a tenth
    _, verdict = time_lines(replace(row, wait_seconds=20.5))
    assert verdict.strip().startswith(f"data is the bottleneck: {words}")


def test_the_training_part_is_what_is_neither_validation_nor_saving() -> None:
    assert EpochTimes(seconds=10.0, validation_seconds=2.0, save_seconds=1.0, wait_seconds=3.0).training == 7.0


def test_every_time_is_a_column() -> None:
    assert {field.name for field in fields(EpochTimes)} < set(COLUMNS)


# Where the moments of a training go ---------------------------------------------------------------------


class Clock:
    """Stands still until it is told what something takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock by which all that a training does takes exactly so long, in powers of two: sums are exact."""
    clock = Clock()
    monkeypatch.setattr("jobs.training.timing.time", clock)

    class SlowStream(BatchStream):
        """1 s to wait for every batch; behind it, 4 s of reading, 2 s of decoding and 0.5 s of copying.

        In the end 0.25 s to close, while 1 s of reading ends.
        """

        batches = epochs = 0

        @property
        def times(self) -> StreamTimes:
            count = float(self.batches)
            return StreamTimes(wait=count, copy=0.5 * count, read=4.0 * count + self.epochs, decode=2.0 * count)

        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            for batch in super().epoch(number, start):
                self.batches += 1
                clock.tick(1.0)
                yield batch
            self.epochs += 1
            clock.tick(0.25)

    monkeypatch.setattr("jobs.training.train.BatchStream", SlowStream)

    def takes(seconds: float, owner: Any, name: str) -> None:
        """Let a method take so long, beside what is called within."""
        does = getattr(owner, name)

        def slowly(*arguments: Any) -> Any:
            clock.tick(seconds)
            return does(*arguments)

        monkeypatch.setattr(owner, name, slowly)

    takes(5.0, job.Trainer, "train_batch")
    takes(3.0, job.Trainer, "evaluate")
    takes(0.5, RunFolder, "save_last")
    takes(0.25, RunFolder, "save_best")
    takes(16.0, job, "write_metrics")
    takes(32.0, job, "draw_curves")
    takes(0.125, _Lines, "update")
    return clock


# Of 6 batches to train on and 2 to validate, after the point to begin from was saved.
FIRST = {
    "seconds": 43.0, "compute_seconds": 30.0, "wait_seconds": 6.0, "validation_seconds": 5.5, "save_seconds": 0.5,
    "read_seconds": 25.0, "decode_seconds": 12.0, "copy_seconds": 3.0,
}  # fmt: skip


def times(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in FIRST}


def test_every_moment_is_charged_to_its_part(
    logpose: Logpose, dataset: Path, tmp_path: Path, clock: Clock
) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 2)
    assert (outcome.code, outcome.err) == (0, "")
    first, second = metrics(tmp_path / "run")
    assert times(first) == FIRST
    # The end of the first: the best model, the last, metrics.csv and the curves.
    assert times(second) == FIRST | {"seconds": 91.25, "save_seconds": 0.25 + 0.5 + 16 + 32}
    for row in (first, second):
        assert float(row["images_per_second"]) == pytest.approx(48 / 37, rel=1e-5)
    lines = outcome.out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("epoch 1/2"))
    assert lines[begin + 1].startswith("         time: compute 69.8 %, validation 12.8 %, waiting for data 14.0 %")
    assert lines[begin + 1].endswith("other 2.3 %; behind it: reading 25.00 s, decoding 12.00 s, copying 3.00 s")
    assert lines[begin + 2].startswith("         data is the bottleneck: reading takes most")
    assert lines[begin + 3].startswith("epoch 2/2")
    assert lines[begin + 4].startswith("         time: ")  # of the longer epoch, a tenth is not waited for
    assert lines[begin + 5].startswith("epoch 2: ") and lines[begin + 6].startswith("calibration error ")
    assert lines[begin + 7].startswith("done")


def test_saving_within_the_epoch_is_no_training_and_no_validation(
    logpose: Logpose, dataset: Path, tmp_path: Path, clock: Clock
) -> None:
    arguments = (*RECIPE, "--epochs", 1, "--checkpoint-minutes", 0)  # after each of the 8 batches
    assert logpose("train", dataset, tmp_path / "run", *arguments).code == 0
    assert times(metrics(tmp_path / "run")[0]) == FIRST | {"seconds": 43.0 + 8 * 0.5, "save_seconds": 0.5 + 8 * 0.5}


def test_without_validation_nothing_is_charged_to_it(
    logpose: Logpose, image_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    assert logpose("build", image_folder, tmp_path / "whole.zarr", "--size", 16, "--val", 0).code == 0
    assert logpose("train", tmp_path / "whole.zarr", tmp_path / "run", *RECIPE, "--epochs", 1).code == 0
    found = times(metrics(tmp_path / "run")[0])
    assert found["validation_seconds"] == 0.0
    assert found["seconds"] == 0.5 + 8 * (1 + 5 + 0.125) + 0.25


def test_the_sums_survive_an_interruption(
    logpose: Logpose, dataset: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = job.Trainer.train_batch

    def interrupted(self: job.Trainer, *arguments: Any) -> Any:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return steps(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(job.Trainer, "train_batch", interrupted)
        assert logpose("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 1).code == 130
    assert logpose("train", dataset, tmp_path / "run", "--resume", "--device", "cpu").code == 0
    assert times(metrics(tmp_path / "run")[0]) == FIRST


def test_real_parts_are_no_more_than_the_whole(trained: Path) -> None:
    for row in metrics(trained):
        found = times(row)
        kept = {"read_seconds", "decode_seconds"} if row["epoch"] != "1" else set()  # the set is small: it is read once
        assert {name for name, part in found.items() if part == 0} == kept
        parts = [found[f"{part}_seconds"] for part in ("compute", "wait", "validation", "save")]
        assert sum(parts) <= found["seconds"] * (1 + 1e-4)  # six digits are written


@pytest.mark.parametrize(("slow", "words"), [("read", "reading takes most"), ("decode", "decoding takes most")])
def test_slow_data_is_seen_and_said(
    logpose: Logpose, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, words: str
) -> None:
    """Real clocks, a step that takes no time, and half a second for each chunk."""
    reads = Split.read_into

    def slowly(self: Split, *arguments: Any) -> ReadSeconds:
        seconds = reads(self, *arguments)
        time.sleep(0.5)
        return seconds._replace(**{slow: 0.5})

    def at_once(self: job.Trainer, images: Any, labels: Any, rows: Any) -> BatchResult:
        self.step += 1
        return BatchResult(1.0, 1, len(rows))

    monkeypatch.setattr(Split, "read_into", slowly)
    monkeypatch.setattr(job.Trainer, "train_batch", at_once)
    assert logpose("build", image_folder, tmp_path / "whole.zarr", "--size", 16, "--val", 0).code == 0
    outcome = logpose("train", tmp_path / "whole.zarr", tmp_path / "run", *RECIPE, "--epochs", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"data is the bottleneck: {words}" in outcome.out
    assert metrics(tmp_path / "run")[0][f"{slow}_seconds"] == "0.5"


def test_the_stopwatch_has_no_gaps() -> None:
    stopwatch = Stopwatch()
    began = stopwatch.began
    laps = [stopwatch.lap() for _ in range(5)]
    assert min(laps) >= 0
    assert sum(laps) == pytest.approx(stopwatch.began - began)


# The state that a training goes on from -----------------------------------------------------------------


def test_the_state_is_small(trained: Path) -> None:
    """What a resume needs beside the arrays, the recipe and what is past."""
    state = TrainingState.from_json(load_checkpoint(trained / "last.safetensors").progress, trained)
    figure = 1 / 3 * 1e5  # seventeen digits
    state.epoch, state.batches, state.step, state.correct, state.rows = (10**9,) * 5
    state.lr = state.loss_sum = figure
    state.times = EpochTimes(**{field.name: figure for field in fields(EpochTimes)})
    saved = {name: value for name, value in state.to_json().items() if name not in ("recipe", "history")}
    assert len(json.dumps(saved)) < 1000


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = TrainingState("recipe", "hash", epoch=3, batches=2, step=22, lr=0.1, loss_sum=1 / 3, correct=5, rows=16)
    state.times = EpochTimes(seconds=1 / 3, read_seconds=2 / 3)
    state.history = [replace(ROW, epoch=1), replace(ROW, epoch=2)]
    state.best = state.history[0]
    assert TrainingState.from_json(json.loads(json.dumps(state.to_json())), tmp_path) == state
    state.best = None
    assert TrainingState.from_json(json.loads(json.dumps(state.to_json())), tmp_path) == state


def test_a_training_that_an_older_version_began_goes_on(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path
) -> None:
    """It knew two times, and kept the whole row of the best epoch."""
    checkpoint = load_checkpoint(trained / "last.safetensors")
    state = TrainingState.from_json(checkpoint.progress, trained)
    best = state.best
    assert best is not None
    old = asdict(state) | {"seconds": 0.25, "wait_seconds": 0.125}
    del old["times"]
    for row in (*old["history"], old["best"]):
        for name in ADDED_LATER:
            del row[name]
    again = TrainingState.from_json(json.loads(json.dumps(old)), trained)
    assert again.times == EpochTimes(seconds=0.25, wait_seconds=0.125)
    assert again.best is not None and again.best.epoch == best.epoch
    assert again.best.compute_seconds == again.best.save_seconds == 0.0

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    save_checkpoint(run_dir / "last.safetensors", checkpoint.card, checkpoint.tensors, old)
    outcome = logpose("train", dataset, run_dir, "--resume", "--epochs", 4, "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    rows = metrics(run_dir)
    assert [row["compute_seconds"] == "0" for row in rows] == [True, True, True, False]
    assert [row["train_loss"] for row in rows[:3]] == [row["train_loss"] for row in metrics(trained)]
