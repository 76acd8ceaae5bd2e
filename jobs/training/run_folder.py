"""RUN_DIR: the files of a training, and the state from which it goes on as if it had never stopped."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnn.checkpoint import Checkpoint, ModelCard, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError
from jobs.errors import JobError
from jobs.training.metrics import EpochRow
from jobs.training.timing import EpochTimes


@dataclass
class TrainingState:
    """Where a training stands: `batches` of `epoch` are done, with these sums; JSON beside the tensors.

    JSON keeps every bit of a Python float, so that the sums go on exactly.
    """

    recipe: str  # TOML
    content_hash: str  # of the dataset
    init: str = ""  # the model file it started from, if it did
    dataset: str = ""  # where it was when we last trained on it; an older training does not say
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
    confusion_epoch: int = 0  # which confusion.png shows

    def begin_epoch(self, epoch: int) -> None:
        """Set the sums of the epoch under way to zero."""
        self.epoch = epoch
        self.batches = self.correct = self.rows = 0
        self.loss_sum = 0.0
        self.times = EpochTimes()

    def to_json(self) -> dict[str, Any]:
        """As it is saved: the best epoch by its number, since its row is in the history."""
        return asdict(self) | {"best": self.best.epoch if self.best else None}

    @classmethod
    def from_json(cls, found: dict[str, Any], where: Path) -> "TrainingState":
        """Raises ModelFileError where `found` is of something else, such as the best model's few figures."""
        try:
            rows = [EpochRow(**row) for row in found.pop("history")]
            best = found.pop("best")
            if "times" in found:
                times = EpochTimes(**found.pop("times"))
            else:  # an older training: it noted these two, and the whole row of the best epoch
                times = EpochTimes(seconds=found.pop("seconds"), wait_seconds=found.pop("wait_seconds"))
                best = best["epoch"] if best else None
            return cls(**found, times=times, history=rows, best=rows[best - 1] if best else None)
        except (KeyError, TypeError, IndexError) as error:
            raise ModelFileError(
                f"{where} does not say how far the training was; start again with --overwrite"
            ) from error


class RunFolder:
    """The folder `path` and the names in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.safetensors"
        self.last = path / "last.safetensors"
        self.config = path / "config.toml"
        self.metrics = path / "metrics.csv"
        self.curves = path / "curves.png"
        self.confusion = path / "confusion.png"
        self.classes = path / "classes.csv"
        self.summary = path / "summary.json"
        self.report = path / "report.html"  # by `logpose report`

    def checkpoint_to_resume(self, *, resume: bool, overwrite: bool) -> Checkpoint | None:
        """The checkpoint to go on from, or None to start; refuses to touch a training without being told so."""
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"{self.path} is a file; give the name of a folder for the results")
        if resume and self.last.exists():
            return load_checkpoint(self.last)
        if resume and self.model.exists() and not overwrite:
            raise JobError(
                f"{self.path} holds a model, but no {self.last.name} to go on from; start from the model with"
                f" --init {self.model} in another folder, or start again with --overwrite"
            )
        if not overwrite and (self.last.exists() or self.model.exists()):
            raise JobError(
                f"{self.path} holds a training; add --resume to go on with it, --overwrite to start again, or"
                " give another folder"
            )
        return None

    def clear(self) -> None:
        """Remove what an earlier training left, so that nothing of it is taken for ours."""
        self.path.mkdir(parents=True, exist_ok=True)
        results = self.metrics, self.curves, self.confusion, self.classes, self.summary, self.report
        for file in (self.last, self.model, self.config, *results):
            file.unlink(missing_ok=True)

    def save_last(self, card: ModelCard, tensors: dict[str, np.ndarray], state: TrainingState) -> None:
        """The point to resume from."""
        save_checkpoint(self.last, card, tensors, state.to_json())

    def save_best(self, card: ModelCard, tensors: dict[str, np.ndarray], row: EpochRow) -> None:
        """The model to use, with the figures of its epoch."""
        save_checkpoint(self.model, card, tensors, asdict(row))
