"""Load a training from its RUN_DIR, and open its dataset."""

import time
from dataclasses import dataclass
from pathlib import Path

from cnn.checkpoint import Checkpoint, load_checkpoint
from cnn.training.recipe import Recipe
from jobs.errors import JobError
from jobs.recipes.config import resolve
from jobs.training.metrics import EpochRow, best_epoch
from jobs.training.run_folder import RunFolder, TrainingState, is_finished
from logpose.common.files import read_regular
from pipeline.dataset.store import Dataset
from pipeline.errors import DatasetError


@dataclass(frozen=True)
class TrainedRun:
    """A finished or unfinished training.

    model     the best model so far, from model.safetensors
    best      the metrics of its epoch
    finished  whether training has ended, by the number of epochs or by patience
    """

    folder: RunFolder
    model: Checkpoint
    state: TrainingState
    recipe: Recipe
    best: EpochRow
    finished: bool

    @property
    def history(self) -> list[EpochRow]:
        """The metrics of each finished epoch."""
        return self.state.history

    @property
    def seconds(self) -> float:
        """Wall time of all finished epochs."""
        return sum(row.seconds for row in self.history)

    @property
    def date(self) -> str:
        """When the model was saved, in local time."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.folder.model.stat().st_mtime))


def load_run(run_dir: Path) -> TrainedRun:
    """Load the training in `run_dir`. Without last.safetensors, its state comes from metrics.csv and config.toml.

    Raises JobError where a file is missing, ModelFileError where one is damaged.
    """
    folder = RunFolder(run_dir)
    if not run_dir.is_dir():
        found = "a file" if run_dir.exists() else "nothing"
        raise JobError(f"expected the folder of a training, found {found} at {run_dir}; give its RUN_DIR")
    if not folder.model.exists():
        raise JobError(_no_model(folder))
    state = _state(folder)
    # The numbers of metrics.csv are rounded.
    model = folder.read_model(state.history if folder.last.exists() else ())
    recipe = resolve(base=state.recipe, base_name=str(folder.config))
    finished = is_finished(state, recipe)
    # A kill right after the model was saved leaves an epoch that is not in the history.
    best = next((row for row in state.history if row.epoch == model.progress.get("epoch")), None)
    if best is None:
        best = EpochRow.from_dict(model.progress, folder.model)
        state.history.append(best)
    return TrainedRun(folder, model, state, recipe, best, finished)


def open_dataset(run: TrainedRun, given: Path | None) -> Dataset:
    """Open the dataset of a training: `given`, or the path it was trained from.

    Raises JobError where it is missing or not the one trained on, DatasetError where it is damaged.
    """
    folder, card, state = run.folder, run.model.card, run.state
    if given is None and not state.dataset:
        raise JobError(f"{folder.path} does not record where its dataset is; give it with --dataset DATASET.zarr")
    path = given or Path(state.dataset)
    try:
        data = Dataset.open(path)
    except DatasetError as error:
        if given or path.exists():
            raise
        raise JobError(
            f"expected the dataset of {folder.path}, found nothing at {path}; if it has moved, give it with"
            " --dataset DATASET.zarr"
        ) from error
    if state.content_hash and data.content_hash != state.content_hash:
        raise JobError(
            f"{folder.path} was trained on another dataset (content {state.content_hash[:8]}, {path} has"
            f" {data.content_hash[:8]}); give the right one with --dataset DATASET.zarr"
        )
    if (data.class_names, (*data.size, 3)) != (card.class_names, card.in_shape):
        raise JobError(
            f"{folder.model} was trained on other classes or another image size than {path} has; give the right dataset"
            " with --dataset DATASET.zarr"
        )
    return data


def _no_model(folder: RunFolder) -> str:
    if folder.last.exists():
        return f"{folder.path} has no {folder.model.name}, since no epoch is finished; wait for the first epoch"
    return f"expected {folder.model.name} of a training, found none in {folder.path}; give its RUN_DIR"


def _state(folder: RunFolder) -> TrainingState:
    if folder.last.exists():
        return TrainingState.from_json(load_checkpoint(folder.last).progress, folder.last)
    for path in (folder.metrics, folder.config):
        if not path.exists():
            raise JobError(
                f"{folder.path} holds {folder.model.name}, but neither {folder.last.name} nor {path.name}; copy one of"
                " them from the training's folder"
            )
    history = folder.read_history()
    recipe = read_regular(folder.config).decode("utf-8")
    return TrainingState(recipe, "", history=history, best=best_epoch(history))
