"""The saved state of a training, and reading the files of a run folder, of older versions too."""

import errno
import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, ModelReadError
from jobs.errors import JobError
from jobs.training.info import rank_row
from jobs.training.metrics import EpochRow, write_metrics
from jobs.training.ranks.record import RankRow, RankTimes
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.timing import EpochTimes
from pipeline.errors import ReadError
from tests.jobs.conftest import Logpose
from tests.jobs.training.runs import metrics
from tests.jobs.training.test_timing import ROW

COLUMNS = [
    *("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"),
    *("images_per_second", "wait_seconds", "compute_seconds", "copy_seconds", "validation_seconds"),
    *("save_seconds", "read_seconds", "decode_seconds", "val_top5", "val_macro_f1"),
    *("val_calibration_error", "temperature", "val_calibration_error_scaled", "exchange_seconds"),
]
ADDED_LATER = COLUMNS[COLUMNS.index("compute_seconds") :]


# metrics.csv and summary.json ---------------------------------------------------------------------------


def test_new_columns_follow_the_older_ones(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [ROW])
    found = metrics(tmp_path)[0]
    assert list(found) == COLUMNS
    assert [found[name] for name in ADDED_LATER] == ["180", "1", "10", "3", "2.5", "0.25", *[""] * 5, "0"]


def test_history_round_trips(tmp_path: Path) -> None:
    folder, rows = RunFolder(tmp_path), [ROW, replace(ROW, epoch=4, val_loss=None, val_accuracy=None)]
    write_metrics(folder.metrics, rows)
    assert folder.read_history() == rows


def test_history_of_an_older_version_has_defaults(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    old = [name for name in COLUMNS if name not in ADDED_LATER]
    values = ["1", "10", "0.1", "1.5", "0.4", "", "", "2", "500", "0.5"]
    folder.metrics.write_text(",".join([*old, "column of a newer version"]) + "\n" + ",".join([*values, "7"]) + "\n")
    assert folder.read_history() == [EpochRow(1, 10, 0.1, 1.5, 0.4, None, None, 2.0, 500.0, 0.5)]


@pytest.mark.parametrize("text", ["epoch,step\n1,2\n", "epoch,step\n1,2,3\n", "epoch,step\n1\n", "epoch\nfirst\n"])
def test_damaged_history_is_refused(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(text)
    with pytest.raises(JobError, match=r"^expected .* in .*metrics\.csv"):
        folder.read_history()


def test_summary_of_a_training_is_read(trained: Path, tmp_path: Path) -> None:
    summary = RunFolder(trained).read_summary()
    assert summary is not None and (summary.epochs, summary.train_images, summary.val_images) == (3, 48, 12)
    assert asdict(summary) == json.loads((trained / "summary.json").read_text())
    assert RunFolder(tmp_path).read_summary() is None


def test_summary_of_an_older_version_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    old = {"epoch": 2, "epochs": 3, "seconds": 4.0, "train_pictures": 48, "val_pictures": 12, "of a newer version": 1}
    folder.summary.write_text(json.dumps(old))
    summary = folder.read_summary()
    assert summary is not None and (summary.train_images, summary.val_images, summary.views) == (48, 12, "none")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"epoch": 1}'])
def test_damaged_summary_is_refused(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.summary.write_text(text)
    with pytest.raises(JobError, match=r"expected the summary of a training in .*summary\.json.*; remove it and run"):
        folder.read_summary()


# The state in last.safetensors --------------------------------------------------------------------------


def test_state_without_recipe_and_history_is_under_1000_characters(trained: Path) -> None:
    state = TrainingState.from_json(load_checkpoint(trained / "last.safetensors").progress, trained)
    number = 1 / 3 * 1e5  # seventeen digits
    state.epoch, state.batches, state.step, state.correct, state.rows = (10**9,) * 5
    state.lr = state.loss_sum = number
    state.times = EpochTimes(**{field.name: number for field in fields(EpochTimes)})
    saved = {name: value for name, value in state.to_json().items() if name not in ("recipe", "history")}
    assert len(json.dumps(saved)) < 1000


def test_state_round_trips(tmp_path: Path) -> None:
    state = TrainingState("recipe", "hash", epoch=3, batches=2, step=22, lr=0.1, loss_sum=1 / 3, correct=5, rows=16)
    state.times = EpochTimes(seconds=1 / 3, read_seconds=2 / 3)
    state.history = [replace(ROW, epoch=1), replace(ROW, epoch=2)]
    state.best = state.history[0]
    assert TrainingState.from_json(json.loads(json.dumps(state.to_json())), tmp_path) == state
    state.best = None
    assert TrainingState.from_json(json.loads(json.dumps(state.to_json())), tmp_path) == state


STATES: dict[str, dict[str, Any]] = {
    "best of another epoch": {"best": 3},
    "best below 1": {"best": -1},
    "best of truth": {"best": True},
    "step of text": {"step": "22"},
    "negative rows": {"rows": -1},
    "loss of text": {"loss_sum": "1"},
    "recipe of a number": {"recipe": 1},
    "epoch that is not the next": {"epoch": 2},
    "times of a list": {"times": []},
    "unknown time": {"times": {"hours": 1.0}},
    "history of text": {"history": "none"},
    "row of a list": {"history": [[], []]},
    "row without a column": {"history": [{"epoch": 1}, {"epoch": 2}]},
    "confusion of no epoch": {"confusion_epoch": 3},
    "ranks of text": {"ranks": ["a"]},
    "unknown key": {"more": 1},
}


@pytest.mark.parametrize("values", STATES.values(), ids=STATES)
def test_states_that_contradict_themselves_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    state = TrainingState("recipe", "hash", epoch=3, step=22, history=[replace(ROW, epoch=1), replace(ROW, epoch=2)])
    saved = json.loads(json.dumps(state.to_json()))
    assert TrainingState.from_json(saved, tmp_path) == state
    with pytest.raises(ModelFileError, match=r"does not hold the state of a training \(.*; start again"):
        TrainingState.from_json(saved | values, tmp_path)


def test_what_ranks_did_is_read_from_the_state() -> None:
    """ranks.csv has no checksum, last.safetensors has."""
    row = RankRow(1, 0, "tcp://a:1", "a", "cpu", RankTimes(images=5, seconds=1.25))
    saved = json.loads(json.dumps(row.to_dict()))
    assert rank_row(saved) == row
    assert rank_row({name: value for name, value in saved.items() if name != "seconds"}).times.seconds == 0.0
    for damage in ({"images": "5"}, {"epoch": None}, {"host": 3}):
        with pytest.raises(ModelFileError, match="expected what a rank did"):
            rank_row(saved | damage)


def test_state_of_an_older_version_resumes(logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path) -> None:
    """It had two times, and the whole row of the best epoch."""
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


def test_checkpoint_that_cannot_be_seen_is_not_taken_for_none(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise --resume would begin again, over it. From Python 3.14 on, Path.exists hides the error."""
    stat, folder = os.stat, RunFolder(trained)

    def fail(path: object, **options: Any) -> os.stat_result:
        if str(path).endswith("last.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.faults.PAUSES", ())
    monkeypatch.setattr(os, "stat", fail)
    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))  # noqa: PTH110  # as in Python 3.14
    with pytest.raises(ReadError, match=r"last\.safetensors, found input/output error"):
        folder.checkpoint_to_resume(resume=True, overwrite=False)
    with pytest.raises(ReadError):
        folder.checkpoint_to_resume(resume=False, overwrite=False)


def test_model_that_the_system_fails_to_read_is_not_called_damaged(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr("cnn.checkpoint.read_regular", fail)
    with pytest.raises(ModelReadError, match=r"found stale file handle: check the disk.* run the same command again"):
        load_checkpoint(model)
    assert ModelReadError.exit_code == 1 and not issubclass(ModelReadError, ModelFileError)
