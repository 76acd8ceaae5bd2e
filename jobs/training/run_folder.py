"""RUN_DIR: the files of a training, and the state that an exact resume needs."""

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnn.checkpoint import Checkpoint, ModelCard, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError
from cnn.training.pending import BatchResult
from cnn.training.recipe import Recipe
from jobs.errors import JobError
from jobs.training.metrics import EpochRow, is_better, read_metrics
from jobs.training.summary import Summary, read_summary
from jobs.training.timing import EpochTimes
from logpose.common.files import make_folder


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
        try:
            rows = [EpochRow(**row) for row in values.pop("history")]
            best = values.pop("best")
            if "times" in values:
                times = EpochTimes(**values.pop("times"))
            else:  # an older version, with two times only and the whole row of the best epoch
                times = EpochTimes(seconds=values.pop("seconds"), wait_seconds=values.pop("wait_seconds"))
                best = best["epoch"] if best else None
            return cls(**values, times=times, history=rows, best=rows[best - 1] if best else None)
        except (KeyError, TypeError, IndexError) as error:
            raise ModelFileError(
                f"{source} does not hold the state of a training; start again with --overwrite"
            ) from error


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

    def read_history(self) -> list[EpochRow]:
        """Read metrics.csv: a row per finished epoch, so none during the first. Raises JobError where it is damaged."""
        return read_metrics(self.metrics) if self.metrics.exists() else []

    def read_summary(self) -> Summary | None:
        """Read summary.json; None while the training is not finished. Raises JobError where it is damaged."""
        return read_summary(self.summary)

    def checkpoint_to_resume(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """Return the checkpoint to resume from, or None to start a training.

        Raises JobError where the folder holds a training and neither option allows to touch it, and where `path` is
        a file; ModelFileError where the checkpoint is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"{self.path} is a file; give the name of a folder for the results")
        if resume and self.last.exists():
            return load_checkpoint(self.last)
        if resume and self.model.exists() and not overwrite:
            raise JobError(
                f"{self.path} holds a model, but no {self.last.name} to resume from; start from the model with"
                f" --init {self.model} in another folder, or start again with --overwrite"
            )
        if not overwrite and (self.last.exists() or self.model.exists()):
            raise JobError(
                f"{self.path} holds a training; add --resume to continue it, --overwrite to start again, or give"
                " another folder"
            )
        return None

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
        results = self.metrics, self.curves, self.confusion, self.classes, self.summary, self.report, self.ranks
        for file in (self.last, self.model, self.config, *results):
            file.unlink(missing_ok=True)

    def save_last(self, card: ModelCard, tensors: dict[str, np.ndarray], state: TrainingState) -> None:
        """Write the checkpoint to resume from. Raises WriteError."""
        save_checkpoint(self.last, card, tensors, state.to_json())

    def save_best(self, card: ModelCard, tensors: dict[str, np.ndarray], row: EpochRow) -> None:
        """Write the best model, with the metrics of its epoch. Raises WriteError."""
        save_checkpoint(self.model, card, tensors, asdict(row))
