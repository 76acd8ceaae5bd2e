"""Train a network from Python, and inspect the results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from cnn.losses import Loss
from cnn.models import Model as Architecture
from cnn.training.optimizers import Optimizer
from cnn.training.recipe import Recipe
from cnn.training.schedules import Schedule
from jobs.errors import JobError
from jobs.options import ReportOptions, TrainOptions
from jobs.training.metrics import EpochRow
from jobs.training.run_folder import RunFolder
from jobs.training.summary import Summary
from jobs.training.train import train as train_job
from logpose.arguments import checked_options, checked_path, running
from logpose.model import Model, load
from pipeline.dataset.store import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(Sequence[EpochRow]):
    """The epochs of a training, one `EpochRow` each; `history["val_accuracy"]` is a column.

    A notebook displays its curves.

    >>> history = logpose.load_run("runs/colours").history
    >>> len(history), history[-1].epoch, len(history["train_loss"])
    (3, 3, 3)
    """

    def __init__(self, rows: Sequence[EpochRow]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[EpochRow]:
        return iter(self._rows)

    @overload
    def __getitem__(self, key: int) -> EpochRow: ...
    @overload
    def __getitem__(self, key: slice) -> History: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: int | slice | str) -> EpochRow | History | list[Any]:
        if isinstance(key, slice):
            return History(self._rows[key])
        if isinstance(key, str):
            columns = [field.name for field in fields(EpochRow)]
            if key not in columns:
                raise KeyError(f"no column is called '{key}'; there are {', '.join(columns)}")
            return [getattr(row, key) for row in self._rows]
        return self._rows[key]

    def __repr__(self) -> str:
        lines = ["epoch  train loss  train acc  val loss  val acc"]
        for row in self._rows:
            val = "" if row.val_accuracy is None else f"  {row.val_loss:8.3f}  {row.val_accuracy:7.1%}"
            lines.append(f"{row.epoch:5}  {row.train_loss:10.3f}  {row.train_accuracy:9.1%}{val}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns by name, as `pandas.DataFrame` takes them."""
        return {field.name: self[field.name] for field in fields(EpochRow)}

    def plot(self) -> Figure:
        """Plot loss and accuracy by epoch; return the Matplotlib figure."""
        from jobs.drawing.plots import curves_figure

        return curves_figure(self._rows)

    def _repr_png_(self) -> bytes | None:
        if not self._rows:
            return None
        from jobs.drawing.plots import figure_png

        return figure_png(self.plot())


class TrainingRun:
    """A training and its folder, as `train` and `load_run` return it.

    path     of the folder
    history  metrics of each epoch so far
    summary  metrics of the best epoch once the training is finished, else None
    model    the best network so far

    >>> run = logpose.load_run("runs/colours")
    >>> run.path.name, run.summary.epochs, run.model.class_names
    ('colours', 3, ('blue', 'green', 'red'))
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def history(self) -> History:
        return History(self._folder.read_history())

    @property
    def summary(self) -> Summary | None:
        return self._folder.read_summary()

    @property
    def model(self) -> Model:
        return load(self.path)

    def report(
        self, out: str | Path | None = None, *, dataset: str | Path | None = None, quiet: bool = False
    ) -> Path:
        """Write the HTML report of the training, by default into its folder; return its path.

        `dataset` is needed if the training's own has moved. Raises LogposeError where there is no model yet, or no such
        dataset.
        """
        from jobs.report import report

        options = checked_options(ReportOptions, out=out, dataset=dataset)
        with running(quiet):
            return report(self.path, options)

    def __repr__(self) -> str:
        summary = self.summary
        if summary is None:
            return f"TrainingRun({self.path}: {len(self.history)} epochs, not finished)"
        accuracy = "" if summary.accuracy is None else f", accuracy {summary.accuracy:.1%} on validation"
        return f"TrainingRun({self.path}: {summary.epochs} epochs, best {summary.epoch}{accuracy})"


def load_run(path: str | Path) -> TrainingRun:
    """Open the folder of a training.

    Raises:
        LogposeError: There is no training in it.

    >>> logpose.load_run("runs/colours").history[0].epoch
    1
    """
    folder = RunFolder(checked_path("path", path))
    with running(quiet=True):
        found = folder.last.exists() or folder.model.exists()
    if not found:
        raise JobError(
            f"expected the folder of a training, found no model in {path}; train one first, or check the path"
        )
    return TrainingRun(folder)


def train(
    data: Dataset | str | Path,
    run_dir: str | Path | None = None,
    *,
    model: Architecture | str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    patience: int | None = None,
    optimizer: Optimizer | str | None = None,
    schedule: Schedule | str | None = None,
    loss: Loss | str | None = None,
    recipe: Recipe | str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    ranks: int | None = None,
    scheduler: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto",
    threads: int | None = None,
    workers: int | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    ram_budget: int = 10**9,
    cache: Literal["auto", "device", "none"] = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> TrainingRun:
    """Train a network on a dataset.

    Ctrl-C saves a checkpoint and raises `LogposeError`; with `resume=True` the same call then ends with the same
    weights, bit for bit, as without the interruption.

    Args:
        data: The dataset, or its path.
        run_dir: Folder for the results; None: the first free one of runs/NAME, runs/NAME-2, …
        model: Architecture: a name such as "resnet9", or an object such as one of a class with `register_model`.
        epochs, batch_size, lr, seed, patience: Values of the recipe; None: the recipe's own.
        optimizer, schedule, loss: Names such as "sgd", or objects such as `logpose.optimizers.SGD(lr=0.1)`.
        recipe: What to start from: a name such as "best", a TOML file, or a `Recipe`.
        values: More values of the recipe, such as {"augment.cutout": 0.3}.
        ranks: Divide each batch among this many processes, or GPUs, for the same result; needs "train.micro_batch".
        scheduler: Address of a Dask cluster, on whose workers to train.
        device: Where to compute; "auto" takes a GPU if one works.
        precision: Of a GPU's products and feature maps; "auto" is bf16 if the card has it.
        threads: Computing threads on a CPU, which do not change the result; None: one per CPU.
        workers: Threads that read and decode images; None: one per CPU.
        resume: Resume the training in `run_dir`; start if there is none.
        init: A saved model to start from; its classes may differ.
        ram_budget: Bytes for images; if all fit in, they are read once.
        cache: Where the training images are kept: "device" is the GPU's memory, "auto" the same if they take at most
            half of what is free, "none" not there.
        overwrite: Replace a finished training; without it, a call that would repeat one returns that.
        quiet: Print nothing.

    Raises:
        LogposeError: The recipe or the dataset cannot be used, or training diverged or was interrupted.

    >>> run = logpose.train("colours.zarr", "runs/sgd", model="plain", epochs=2, optimizer="sgd", quiet=True)
    >>> len(run.history), run.model.size
    (2, (16, 16))
    """
    path = data.path if isinstance(data, Dataset) else checked_path("data", data)
    folder = _free_folder(path) if run_dir is None else checked_path("run_dir", run_dir)
    start: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule, "loss": loss}
    texts = {f"{name}.name": part for name, part in start.items() if isinstance(part, str) and name != "model"}
    objects = {name: part for name, part in start.items() if part is not None and not isinstance(part, str)}
    if values is not None and not (isinstance(values, Mapping) and all(isinstance(key, str) for key in values)):
        raise JobError(f'values: expected a dictionary such as {{"augment.cutout": 0.3}}, found {values!r}; write one')
    name, file = None, None  # of the recipe
    if isinstance(recipe, os.PathLike) or (isinstance(recipe, str) and recipe.endswith(".toml")):
        file = checked_path("recipe", recipe)
    elif isinstance(recipe, str):
        name = recipe
    elif recipe is not None and not isinstance(recipe, Recipe):
        raise JobError(f"recipe: expected a name, a TOML file or a logpose.Recipe, found {recipe!r}; write 'best'")
    options = checked_options(
        TrainOptions, model=model if isinstance(model, str) else None, epochs=epochs, batch_size=batch_size, lr=lr,
        seed=seed, patience=patience, recipe=name, config=file, ranks=ranks, scheduler=scheduler, device=device,
        precision=precision, threads=threads, workers=workers, resume=resume, init=init, ram_budget=ram_budget,
        cache=cache, overwrite=overwrite,
        set=[f"{key}={_toml(key, value)}" for key, value in {**texts, **(values or {})}.items()],
    )  # fmt: skip
    with running(quiet):
        return TrainingRun(train_job(path, folder, options, recipe if isinstance(recipe, Recipe) else None, objects))


def _free_folder(dataset: Path) -> Path:
    """The first of runs/NAME, runs/NAME-2, … that does not exist."""
    first = Path("runs") / dataset.resolve().stem
    numbered = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(folder for folder in chain([first], numbered) if not folder.exists())


def _toml(key: str, value: Any) -> str:
    """A recipe's value as TOML; `none` where there is none. Raises JobError for what TOML cannot hold."""
    try:
        return "none" if value is None else json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        raise JobError(
            f"values: expected a number, text, True, False or a list for '{key}', found {value!r}; correct it"
        ) from None


def _plain(value: Any) -> Any:
    """A NumPy number or array as Python's. Raises TypeError for other objects."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError
