"""RUN_DIR: the files of a training, and the state that an exact resume needs."""

import shlex
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnn.checkpoint import Checkpoint, ModelCard, is_model_file, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError
from cnn.training.pending import BatchResult
from cnn.training.recipe import Recipe
from jobs.errors import JobError
from jobs.training.metrics import EpochRow, is_better, read_metrics
from jobs.training.summary import Summary, read_summary
from jobs.training.timing import EpochTimes
from logpose.common.files import make_folder, read_regular
from logpose.common.records import RecordError, parse_record
from pipeline.faults import is_there


@dataclass
class TrainingState:
    """Progress of a training, saved as JSON beside the tensors: `batches` of `epoch` are done, with these sums.

    JSON keeps every bit of a Python float, so a resumed training continues the sums exactly.
    """

    recipe: str  # TOML
    content_hash: str  # of the dataset
    init: str = ""  # the model file it started from, if any
    dataset: str = ""  # path of the dataset when it was last trained on; empty in older trainings
    device: str = ""  # when it was last trained: see `device_text`; without instructions or empty in older trainings
    epoch: int = 1
    batches: int = 0
    step: int = 0  # of the whole training
    lr: float = 0.0  # of the last step
    loss_sum: float = 0.0
    correct: int = 0
    rows: int = 0
    times: EpochTimes = field(default_factory=EpochTimes)
    history: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None
    ranks: list[dict[str, Any]] = field(default_factory=list)  # rows of ranks.csv
    confusion_epoch: int = 0  # the epoch that confusion.png and classes.csv show
    files: dict[str, int] = field(default_factory=dict)  # CRC-32 of the other files, once the training is finished

    def add_batch(self, result: BatchResult) -> None:
        """Count one training step of the current epoch."""
        self.step += 1
        self.batches += 1
        self.loss_sum += result.loss_sum
        self.correct += result.correct
        self.rows += result.rows

    def end_epoch(self, validation: dict[str, Any]) -> EpochRow:
        """Append the current epoch to the history, update `best`, begin the next epoch; return the new row.

        `validation` holds the columns that come from validation: see `metrics.validation_metrics`.
        """
        row = EpochRow(
            epoch=self.epoch,
            step=self.step,
            lr=self.lr,
            train_loss=self.loss_sum / self.rows,
            train_accuracy=self.correct / self.rows,
            images_per_second=self.rows / self.times.training,
            **({"val_loss": None, "val_accuracy": None} | validation),
            **asdict(self.times),
        )
        if is_better(row, self.best):
            self.best = row
        self.history.append(row)
        self.epoch += 1
        self.batches = self.correct = self.rows = 0
        self.loss_sum, self.times = 0.0, EpochTimes()
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON; the best epoch by its number, since its row is in the history."""
        return asdict(self) | {"best": self.best.epoch if self.best else None}

    @classmethod
    def from_json(cls, values: dict[str, Any], source: Path) -> "TrainingState":
        """Read what `to_json` returned, in an older version too. Raises ModelFileError for anything else."""
        values = dict(values)
        try:
            number = values.pop("best", None)
            if "times" not in values:  # an older version, with two times only and the whole row of the best epoch
                times = {name: values.pop(name) for name in ("seconds", "wait_seconds") if name in values}
                values["times"] = times
                number = number["epoch"] if number else None
            state = parse_record(cls, values)
            state._check(number)
        except (RecordError, TypeError, KeyError) as error:
            raise ModelFileError(
                f"{source} does not hold the state of a training ({error}); start again with --overwrite"
            ) from error
        state.best = state.history[number - 1] if number else None
        return state

    def _check(self, best: Any) -> None:
        """Raise RecordError where numbers contradict each other; `best` is that of the best epoch."""
        done = len(self.history)
        counts = (self.batches, self.step, self.rows, self.correct)
        numbers_fit = [row.epoch for row in self.history] == list(range(1, done + 1)) and self.epoch == done + 1
        best_fits = best is None or (type(best) is int and 0 < best <= done)
        sums_fit = self.batches <= self.rows and self.correct <= self.rows and (self.batches > 0) == (self.rows > 0)
        times = asdict(self.times).values()
        in_range = min(*counts, *times) >= 0 and 0 <= self.confusion_epoch <= done
        if not (numbers_fit and best_fits and sums_fit and in_range):
            raise RecordError("its epochs and steps contradict each other")


def is_finished(state: TrainingState, recipe: Recipe) -> bool:
    """Return whether all epochs are done, or the last `recipe.patience` of them (0: any number) brought no best."""
    done, best = len(state.history), state.best.epoch if state.best else 0
    return done >= recipe.epochs or 0 < recipe.patience <= done - best


def model_option(card: ModelCard) -> list[str]:
    """Return --model with the class of a user's own network; nothing if it is of a notebook, or of logpose."""
    return ["--model", card.model_class] if card.model_class and not _in_notebook(card) else []


def _in_notebook(card: ModelCard) -> bool:
    """Whether the network's class is of a notebook or a script, which a command cannot import."""
    return card.model_class.startswith("__main__:")


class RunFolder:
    """The folder `path` of a training, and the paths of the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.safetensors"  # the best epoch
        self.last = path / "last.safetensors"  # the checkpoint to resume from
        self.config = path / "config.toml"
        self.metrics = path / "metrics.csv"
        self.curves = path / "curves.png"
        self.confusion = path / "confusion.png"
        self.classes = path / "classes.csv"
        self.summary = path / "summary.json"
        self.ranks = path / "ranks.csv"  # of a training on ranks
        self.report = path / "report.html"  # by `logpose report`

    @property
    def results(self) -> tuple[Path, ...]:
        """The files that can be made again from the two model files."""
        return self.config, self.metrics, self.classes, self.summary, self.curves, self.confusion, self.ranks

    def read_state(self) -> TrainingState | None:
        """Read the state in last.safetensors; None without that file. Raises ModelFileError where it is damaged."""
        if not is_there(self.last):
            return None
        return TrainingState.from_json(load_checkpoint(self.last).progress, self.last)

    def read_history(self) -> list[EpochRow]:
        """Return the rows of the finished epochs, none during the first: of last.safetensors, or else metrics.csv.

        Raises ModelFileError or JobError where that is damaged.
        """
        if state := self.read_state():
            return state.history
        return read_metrics(self.metrics) if is_there(self.metrics) else []

    def read_summary(self) -> Summary | None:
        """Read summary.json; None while the training is not finished. Raises JobError where it is damaged."""
        state = self.read_state()
        if state and self.summary.name in self.damaged(state) and is_there(self.summary):
            raise JobError(f"{self.summary} is damaged; run 'logpose train' with --resume, which makes it again")
        return read_summary(self.summary)

    def read_model(self, history: Sequence[EpochRow]) -> Checkpoint:
        """Read model.safetensors. Raises ModelFileError where it is damaged, or of another training than `history`."""
        model = load_checkpoint(self.model)
        row = next((row for row in history if row.epoch == model.progress.get("epoch")), None)
        if row and any(model.progress.get(name, value) != value for name, value in row.scores().items()):
            raise ModelFileError(f"{self.model} is of another training than {self.last}; copy the right one there")
        return model

    def checksums(self) -> dict[str, int]:
        """CRC-32 of each result that is there, by name."""
        return {file.name: zlib.crc32(read_regular(file)) for file in self.results if file.is_file()}

    def damaged(self, state: TrainingState) -> list[str]:
        """Return the names of the files that are missing, or not as the finished training in `state` left them."""
        found = self.checksums()
        damaged = [name for name, checksum in state.files.items() if found.get(name) != checksum]
        try:
            if not state.files and not read_summary(self.summary):  # of an older training, without checksums
                damaged.append(self.summary.name)
        except JobError:
            damaged.append(self.summary.name)
        try:
            self.read_model(state.history)
        except ModelFileError:
            damaged.append(self.model.name)
        return damaged

    def remove(self, names: Sequence[str]) -> None:
        """Remove these results, so that they are made again. Raises OSError."""
        drawn_together = {self.classes.name, self.confusion.name}
        for file in self.results:
            if file.name in names or (file.name in drawn_together and drawn_together & {*names}):
                file.unlink(missing_ok=True)

    def is_training(self) -> bool:
        """Whether the folder holds a training, even if it is damaged."""
        return any(is_model_file(file) for file in (self.last, self.model))

    def check(self) -> None:
        """Raise JobError where the folder holds other files and no training: these are never touched."""
        if is_there(self.path) and not self.path.is_dir():
            raise JobError(f"{self.path} is a file; give the name of a folder for the results")
        if not is_there(self.path) or self.is_training():
            return
        others = sorted(file.name for file in self.path.iterdir() if not file.name.startswith("."))
        if others:
            names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            raise JobError(f"{self.path} holds no training but other files ({names}); give a new or an empty folder")

    def checkpoint_to_resume(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Return the checkpoint to resume from, or None to start a training. Call it under the folder's lock.

        Raises JobError where the folder holds a training and neither option allows to touch it, and what `check` does;
        ModelFileError where the checkpoint is damaged.
        """
        self.check()
        if resume and is_there(self.last):
            return load_checkpoint(self.last)
        if resume and is_there(self.model) and not overwrite:
            raise JobError(
                f"{self.path} holds a model, but no {self.last.name} to resume from; start from the model with"
                f" --init {self.model} in another folder, or start again with --overwrite"
            )
        if not overwrite and (is_there(self.last) or is_there(self.model)):
            raise self.exists_error()
        return None

    def exists_error(self) -> JobError:
        """The error for a folder that holds another training, or an unfinished one."""
        return JobError(
            f"{self.path} holds a training; add --resume to continue it, --overwrite to start again, or give"
            " another folder"
        )

    def resume_command(self, dataset: Path, card: ModelCard, **options: Any) -> str:
        """Return the command line that resumes the training with `options`; for a class of a notebook, Python's call.

        Options that are None are left out.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if _in_notebook(card):
            also = "".join(f", {name}={value!r}" for name, value in given.items())
            return f"logpose.train({str(dataset)!r}, {str(self.path)!r}, resume=True{also})"
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        command = ["logpose", "train", str(dataset), str(self.path), "--resume", *model_option(card), *words]
        return shlex.join(command)

    def clear(self) -> None:
        """Remove the files of an earlier training; create the folder if it is missing. Raises OSError."""
        make_folder(self.path)
        for file in (*self.results, self.report, self.last, self.model):  # models last: they tell that it is a training
            file.unlink(missing_ok=True)

    def save_last(self, card: ModelCard, tensors: dict[str, np.ndarray], state: TrainingState) -> None:
        """Write the checkpoint to resume from. Raises WriteError."""
        save_checkpoint(self.last, card, tensors, state.to_json())

    def save_best(self, card: ModelCard, tensors: dict[str, np.ndarray], row: EpochRow) -> None:
        """Write the best model, with the metrics of its epoch. Raises WriteError."""
        save_checkpoint(self.model, card, tensors, asdict(row))
