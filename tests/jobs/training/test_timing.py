"""Wall-clock accounting: every moment is charged to one phase; the lines that report it."""

import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.backends.base import KernelProgress
from cnn.backends.cpu import CpuBackend
from cnn.training.pending import BatchResult, PendingBatch
from cnn.training.trainer import Trainer
from jobs.console.progress import _Lines
from jobs.training import artifacts
from jobs.training.metrics import EpochRow
from jobs.training.run_folder import RunFolder
from jobs.training.timing import Bottleneck, EpochClock, EpochTimes, bottleneck, time_lines
from pipeline.dataset.shard_format import ReadSeconds
from pipeline.dataset.store import Split
from pipeline.loader.reader import StreamTimes
from pipeline.loader.stream import Batch, BatchStream
from tests.jobs.conftest import RECIPE, Logpose
from tests.jobs.training.runs import before_step, metrics, press_ctrl_c

ROW = EpochRow(
    epoch=3, step=30, lr=0.1, train_loss=1.5, train_accuracy=0.4, val_loss=1.0, val_accuracy=0.5, seconds=200.0,
    images_per_second=500.0, wait_seconds=4.0, compute_seconds=180.0, copy_seconds=1.0, validation_seconds=10.0,
    save_seconds=3.0, read_seconds=2.5, decode_seconds=0.25,
)  # fmt: skip


class FakeTime:
    """Replaces the module `time`; only `tick` advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


# The lines ----------------------------------------------------------------------------------------------


def test_time_lines_show_phases_and_reader_threads() -> None:
    assert time_lines(ROW) == [
        "  time: compute 90.0%, wait 2.0%, validation 5.0%, save 1.5%, other 1.5%",
        "  readers: reading 2.50 s, decoding 0.25 s, copying 1.00 s",
    ]


def test_time_lines_omit_idle_readers() -> None:
    idle = replace(ROW, read_seconds=0.0, decode_seconds=0.004)
    assert time_lines(idle)[1] == "  readers: copying 1.00 s"
    assert len(time_lines(replace(idle, copy_seconds=0.0))) == 1


def test_rounding_does_not_make_the_rest_negative() -> None:
    assert "other 0.0%" in time_lines(replace(ROW, seconds=197.0 - 1e-9))[0]


@pytest.mark.parametrize(
    ("seconds", "activity", "remedy"),
    [
        ((3.0, 2.0, 1.0), "reading", "use a faster disk"),
        ((1.0, 3.0, 2.0), "decoding", "use more --workers, or build --codec none"),
        ((2.0, 1.0, 3.0), "copying", "use more --workers"),
    ],
)
def test_bottleneck_is_named_above_a_tenth_of_the_time(
    seconds: tuple[float, ...], activity: str, remedy: str
) -> None:
    read, decode, copy = seconds
    row = replace(ROW, wait_seconds=20.0, read_seconds=read, decode_seconds=decode, copy_seconds=copy)
    assert bottleneck([row]) is None
    found = bottleneck([replace(row, wait_seconds=20.5)])
    assert isinstance(found, Bottleneck) and found.activity == activity and found.remedy.startswith(remedy)
    assert len(f"  data is the bottleneck ({found.activity}): {found.remedy}") <= 80


# The clock ----------------------------------------------------------------------------------------------


def test_training_seconds_leave_out_validation_and_saving() -> None:
    assert EpochTimes(seconds=10.0, validation_seconds=2.0, save_seconds=1.0, wait_seconds=3.0).training == 7.0


def test_every_time_is_a_column_of_metrics_csv() -> None:
    assert {field.name for field in fields(EpochTimes)} < {field.name for field in fields(EpochRow)}


def test_clock_charges_the_innermost_block(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    monkeypatch.setattr("jobs.training.timing.time", fake)
    clock = EpochClock(EpochTimes())
    fake.tick(1.0)
    with clock("validation"):
        fake.tick(2.0)
        with pytest.raises(ValueError, match="full"), clock("save"):
            fake.tick(4.0)
            raise ValueError("disk full")
        fake.tick(8.0)
    fake.tick(16.0)
    with clock("compute"):
        pass
    assert clock.times == EpochTimes(seconds=31.0, validation_seconds=10.0, save_seconds=4.0)
    clock.times = EpochTimes()
    with clock("compute"):
        fake.tick(0.5)
    assert clock.times == EpochTimes(seconds=0.5, compute_seconds=0.5)


def test_clock_adds_the_growth_of_the_streams_times() -> None:
    clock = EpochClock(EpochTimes())
    clock.add_stream(StreamTimes(wait=1.0, read=4.0))
    clock.times = EpochTimes()
    clock.add_stream(StreamTimes(wait=1.5, read=4.0, copy=2.0))
    assert clock.times == EpochTimes(wait_seconds=0.5, copy_seconds=2.0)


# A training with a fake clock ---------------------------------------------------------------------------


@pytest.fixture
def _fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each step of a training a fixed duration, a sum of powers of two, so that totals are exact."""
    fake = FakeTime()
    monkeypatch.setattr("jobs.training.timing.time", fake)

    class SlowStream(BatchStream):
        """Each batch: 1 s of waiting, in parallel to 4 s of reading, 2 s of decoding and 0.5 s of copying.

        Closing an epoch: 0.25 s, in parallel to 1 s of reading.
        """

        batches = epochs = 0

        @property
        def times(self) -> StreamTimes:
            count = float(self.batches)
            return StreamTimes(wait=count, copy=0.5 * count, read=4.0 * count + self.epochs, decode=2.0 * count)

        def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
            return self.slow(super().epoch(number, start))

        def micro_batches(self, number: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
            return self.slow(super().micro_batches(number, start))

        def slow(self, steps: Iterator[Any]) -> Iterator[Any]:
            for step in steps:
                self.batches += 1
                fake.tick(1.0)
                yield step
            self.epochs += 1
            fake.tick(0.25)

    monkeypatch.setattr("jobs.training.setup.BatchStream", SlowStream)

    def slow_down(seconds: float, owner: Any, name: str) -> None:
        """Let a function take this much longer."""
        function = getattr(owner, name)

        def slow(*arguments: Any) -> Any:
            fake.tick(seconds)
            return function(*arguments)

        monkeypatch.setattr(owner, name, slow)

    def compile_slowly(self: CpuBackend, rehearsal: object, progress: KernelProgress, processes: object = None) -> None:
        progress(0, 20)
        fake.tick(64.0)
        progress(20, 20)

    monkeypatch.setattr(CpuBackend, "prepare", compile_slowly)
    slow_down(5.0, Trainer, "start_micro_batches")
    slow_down(3.0, Trainer, "evaluate")
    slow_down(0.5, RunFolder, "save_last")
    slow_down(0.25, RunFolder, "save_best")
    slow_down(16.0, artifacts, "write_metrics")
    slow_down(32.0, artifacts, "draw_curves")
    slow_down(0.125, _Lines, "update")


# Of 6 training and 2 validation batches, after the first checkpoint.
FIRST = {
    "seconds": 43.0, "compute_seconds": 30.0, "wait_seconds": 6.0, "validation_seconds": 5.5, "save_seconds": 0.5,
    "read_seconds": 25.0, "decode_seconds": 12.0, "copy_seconds": 3.0,
}  # fmt: skip


def times(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in FIRST}


@pytest.mark.usefixtures("_fake_time")
def test_every_moment_of_a_training_is_charged_to_its_phase(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 2)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("compiling kernels, once, about ") == 1  # before the first epoch, and part of none
    first, second = metrics(tmp_path / "run")
    assert times(first) == FIRST
    # The end of the first epoch: best model, checkpoint, metrics.csv and curves.
    assert times(second) == FIRST | {"seconds": 91.25, "save_seconds": 0.25 + 0.5 + 16 + 32}
    for row in (first, second):
        assert float(row["images_per_second"]) == pytest.approx(48 / 37, rel=1e-5)
    lines = outcome.out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("epoch 1/2  "))
    assert lines[begin].endswith("  43 s  43 s left")
    assert lines[begin + 1].startswith("  data is the bottleneck (reading): use a faster disk")
    assert lines[begin + 2].startswith("epoch 2/2  ")  # the second waits for less than a tenth
    assert lines[begin + 3].startswith("epoch 2: ")


@pytest.mark.usefixtures("_fake_time")
def test_saving_within_the_epoch_is_charged_to_saving(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    arguments = (*RECIPE, "--epochs", 1, "--checkpoint-minutes", 0)  # after each of the 8 batches
    assert logpose("train", dataset, tmp_path / "run", *arguments).code == 0
    assert times(metrics(tmp_path / "run")[0]) == FIRST | {"seconds": 43.0 + 8 * 0.5, "save_seconds": 0.5 + 8 * 0.5}


@pytest.mark.usefixtures("_fake_time")
def test_without_validation_nothing_is_charged_to_it(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    assert logpose("build", image_folder, tmp_path / "whole.zarr", "--size", 16, "--val", 0).code == 0
    assert logpose("train", tmp_path / "whole.zarr", tmp_path / "run", *RECIPE, "--epochs", 1).code == 0
    found = times(metrics(tmp_path / "run")[0])
    assert found["validation_seconds"] == 0.0
    assert found["seconds"] == 0.5 + 8 * (1 + 5 + 0.125) + 0.25


@pytest.mark.usefixtures("_fake_time")
def test_times_survive_an_interruption(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(4, patch, press_ctrl_c)
        assert logpose("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 1).code == 130
    assert logpose("train", dataset, tmp_path / "run", "--resume", "--device", "cpu").code == 0
    assert times(metrics(tmp_path / "run")[0]) == FIRST


# Real clocks --------------------------------------------------------------------------------------------


def test_real_phases_add_up_to_at_most_the_total(trained: Path) -> None:
    for row in metrics(trained):
        found = times(row)
        cached = {"read_seconds", "decode_seconds"} if row["epoch"] != "1" else set()  # small: read only once
        assert {name for name, seconds in found.items() if seconds == 0} == cached
        phases = [found[f"{phase}_seconds"] for phase in ("compute", "wait", "validation", "save")]
        assert sum(phases) <= found["seconds"] * (1 + 1e-4)  # six digits are written


@pytest.mark.parametrize(("slow", "activity"), [("read", "reading"), ("decode", "decoding")])
def test_slow_data_is_reported_as_the_bottleneck(
    logpose: Logpose, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, activity: str
) -> None:
    """A training step takes no time, each chunk half a second."""
    read_into = Split.read_into

    def slow_read_into(self: Split, *arguments: Any) -> ReadSeconds:
        seconds = read_into(self, *arguments)
        time.sleep(0.5)
        return seconds._replace(**{slow: 0.5})

    def instant_start_micro_batches(self: Trainer, parts: Any, rows: int) -> PendingBatch:
        self.step += 1
        started = PendingBatch(self.step - 1, 0.1, rows, lambda: np.zeros(4), lambda batch: None)
        started.settled = BatchResult(1.0, 1, rows)
        return started

    monkeypatch.setattr(Split, "read_into", slow_read_into)
    monkeypatch.setattr(Trainer, "start_micro_batches", instant_start_micro_batches)
    assert logpose("build", image_folder, tmp_path / "whole.zarr", "--size", 16, "--val", 0).code == 0
    outcome = logpose("train", tmp_path / "whole.zarr", tmp_path / "run", *RECIPE, "--epochs", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"data is the bottleneck ({activity}): use" in outcome.out
    assert metrics(tmp_path / "run")[0][f"{slow}_seconds"] == "0.5"
