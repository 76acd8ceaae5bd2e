"""A dataset -> a trained network, and everything in RUN_DIR that shows how it went."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cnn.backend import Backend, pick_backend
from cnn.checkpoint import ModelCard, initialise_from, load_checkpoint
from cnn.errors import NonFiniteError
from cnn.metrics import Evaluation
from cnn.train import Recipe, Trainer
from jobs.config import Wishes, describe, differences, loss_of, model_of, model_toml, resolve, to_toml
from jobs.cores import usable_cores
from jobs.errors import Interrupted, JobError
from jobs.files import write_text_atomically
from jobs.interrupts import CtrlC
from jobs.metrics import EpochRow, is_better, write_metrics
from jobs.progress import Bar, bar, duration, plural
from jobs.report import draw_confusion, draw_curves
from jobs.run_folder import RunFolder, TrainingState
from pipeline.schema import COPIES_FILE
from pipeline.store import Dataset
from pipeline.stream import BatchStream

DRAWING_SHARE = 0.05  # of the time, at most, goes into pictures of the training


def train(
    dataset: Path,
    run_dir: Path,
    wishes: Wishes,
    *,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    init: Path | None = None,
    overwrite: bool = False,
    checkpoint_minutes: float = 5.0,
) -> int:
    """Train on `dataset` as `wishes` say; with `resume`, go on with what `run_dir` holds."""
    data = Dataset.open(dataset)
    folder = RunFolder(run_dir)
    checkpoint = folder.checkpoint_to_resume(resume=resume, overwrite=overwrite)
    start = load_checkpoint(init) if init and checkpoint is None else None
    if checkpoint:
        state = TrainingState.from_json(checkpoint.progress, folder.last)
        recipe = _same_recipe(wishes, state, folder)
        _check_same_dataset(data, state, folder)
    else:
        # A saved model brings its architecture along; the recipe's other parts are free.
        base = model_toml(start.card.model, start.card.model_options) if start else ""
        recipe = resolve(wishes, base, str(init))
        state = TrainingState(to_toml(recipe), data.content_hash)
    print(_describe_data(data))
    if data.attributes.copies is not None and data.attributes.copies.leaks:
        leaks = f"{data.attributes.copies.leaks:,} of the {plural(data.val.rows, 'picture')} to validate"
        print(f"{leaks} are copies of some to train on, so that the accuracy flatters: see {dataset / COPIES_FILE}")
    if len(state.history) >= recipe.epochs:
        done = plural(len(state.history), "epoch")
        print(f"{run_dir} is finished ({done}{_best(state)}); to go on, give more --epochs")
        return 0

    backend = pick_backend(device)
    card = _card(data, recipe)
    trainer = _trainer(card, recipe, backend, data)
    print(backend.description)
    print(f"{card.model}, {trainer.network.parameters.size:,} parameters")
    print(describe(recipe))
    if checkpoint:
        trainer.load_tensors(checkpoint.tensors, state.step)
        steps = f", after {plural(state.batches, 'step')} of it" if state.batches else ""
        print(f"going on with epoch {state.epoch}{steps}")
    elif start:
        print(f"starting from {start.path}")
        for note in initialise_from(trainer.network, card, start):
            print(note)
    if not checkpoint:
        folder.clear()
    write_text_atomically(folder.config, to_toml(recipe))
    if state.history:
        write_metrics(folder.metrics, state.history)

    workers = workers or usable_cores()
    training = Training(data, folder, card, trainer, state, workers, checkpoint_minutes)
    try:
        training.run()
    except NonFiniteError as error:
        kept = f"{folder.model} keeps the best so far" if state.best else "no model is saved yet"
        raise NonFiniteError(f"{error}, and start again with --overwrite; {kept}") from error
    print(f"done{_best(state)}; see {folder.model}, {folder.curves.name} and {folder.confusion.name}")
    return 0


class Training:
    """The loop over epochs: train, validate, keep the best, save, show."""

    def __init__(
        self,
        data: Dataset,
        folder: RunFolder,
        card: ModelCard,
        trainer: Trainer,
        state: TrainingState,
        workers: int,
        checkpoint_minutes: float,
    ) -> None:
        self.data, self.folder, self.card, self.trainer, self.state = data, folder, card, trainer, state
        self.recipe = trainer.recipe
        batch_size, seed = self.recipe.batch_size, self.recipe.seed
        self.train_stream = BatchStream(data.train, batch_size, seed=seed, workers=workers)
        self.val_stream: BatchStream | None = None
        if data.val.rows:
            self.val_stream = BatchStream(data.val, batch_size, seed=seed, shuffle=False, workers=workers)
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.saved = self.drawn = time.monotonic()
        self.drawing_took = self.val_seconds = 0.0
        self.undrawn = bool(state.history)
        self.judged: tuple[EpochRow, Evaluation] | None = None  # the best epoch, till it is drawn

    def run(self) -> None:
        """Go on to the last epoch. Raises Interrupted after Ctrl-C, NonFiniteError where it diverges."""
        if not self.state.step:
            self._save_last()  # from here on there always is a point to go on from
        with CtrlC() as self.ctrl_c:
            for epoch in range(self.state.epoch, self.recipe.epochs + 1):
                self._train_epoch(epoch)
                self._end_epoch(epoch, self._validate())
        self._draw()

    def _train_epoch(self, epoch: int) -> None:
        state = self.state
        what = f"epoch {epoch}/{self.recipe.epochs}"
        with bar(what, "pictures", self.data.train.rows, done=state.rows, ends=False) as progress:
            stream = self.train_stream
            began, waited = time.monotonic(), stream.wait_seconds
            for batch in stream.epoch(epoch, start=state.batches):
                state.lr = self.trainer.lr
                result = self.trainer.train_batch(batch.images, batch.labels, batch.rows)
                state.loss_sum += result.loss_sum
                state.correct += result.correct
                state.rows += result.rows
                state.batches += 1
                state.step = self.trainer.step
                now = time.monotonic()
                state.seconds += now - began
                state.wait_seconds += stream.wait_seconds - waited
                began, waited = now, stream.wait_seconds
                progress.update(state.rows, f"loss {state.loss_sum / state.rows:.3f}")
                self._save_if_due()

    def _validate(self) -> Evaluation | None:
        if self.val_stream is None:
            return None
        began = time.monotonic()
        with bar("validating", "pictures", self.data.val.rows, ends=False) as progress:
            evaluation = self.trainer.evaluate(self._val_batches(self.val_stream, progress))
        self.val_seconds = time.monotonic() - began
        return evaluation

    def _val_batches(self, stream: BatchStream, progress: Bar) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        done = 0
        for batch in stream.epoch(0):
            yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
            done += len(batch.labels)
            progress.update(done)
            self._save_if_due()  # with all batches of the epoch done: resuming validates again

    def _end_epoch(self, epoch: int, evaluation: Evaluation | None) -> None:
        """Keep the best, save where we are, and tell."""
        state = self.state
        row = EpochRow(
            epoch=epoch,
            step=state.step,
            lr=state.lr,
            train_loss=state.loss_sum / state.rows,
            train_accuracy=state.correct / state.rows,
            val_loss=evaluation.loss if evaluation else None,
            val_accuracy=evaluation.accuracy if evaluation else None,
            seconds=state.seconds + self.val_seconds,
            images_per_second=state.rows / state.seconds,
            wait_seconds=state.wait_seconds,
        )
        best = is_better(row, state.best)
        if best:
            # Before the point to resume from: should we be killed in between, this epoch is judged again.
            self.folder.save_best(self.card, self.trainer.network.tensors(), row)
            state.best = row
            self.judged = (row, evaluation) if evaluation else None
        state.history.append(row)
        state.begin_epoch(epoch + 1)
        self._save_last()
        write_metrics(self.folder.metrics, state.history)
        self.undrawn = True
        if time.monotonic() - self.drawn >= self.drawing_took / DRAWING_SHARE:
            self._draw()
        left = (self.recipe.epochs - epoch) * row.seconds
        print(_epoch_line(row, self.recipe.epochs, best and evaluation is not None, left), flush=True)

    def _save_if_due(self) -> None:
        if self.ctrl_c.asked:
            self._save_last()
            self._draw()
            command = ["logpose", "train", str(self.data.path), str(self.folder.path), "--resume"]
            raise Interrupted(
                f"saved after {plural(self.state.batches, 'step')} of epoch {self.state.epoch}; go on with:"
                f" {shlex.join(command)}"
            )
        if time.monotonic() - self.saved >= self.checkpoint_seconds:
            self._save_last()

    def _save_last(self) -> None:
        self.folder.save_last(self.card, self.trainer.tensors(), self.state)
        self.saved = time.monotonic()

    def _draw(self) -> None:
        if not self.undrawn:
            return
        began = time.monotonic()
        draw_curves(self.folder.curves, self.state.history)
        if self.judged:
            row, evaluation = self.judged
            right = f"{evaluation.accuracy:.1%} of {plural(evaluation.rows, 'picture')} right"
            title = f"Validation after epoch {row.epoch}: {right}"
            draw_confusion(self.folder.confusion, evaluation.confusion, self.data.class_names, title)
            self.judged = None
        self.undrawn = False
        self.drawn = time.monotonic()
        self.drawing_took = self.drawn - began


def _same_recipe(wishes: Wishes, state: TrainingState, folder: RunFolder) -> Recipe:
    """The recipe the training began with; only its number of epochs may be wished otherwise."""
    recipe = resolve(wishes, state.recipe, str(folder.config))
    changed = [line for line in differences(state.recipe, to_toml(recipe)) if not line.startswith("train.epochs ")]
    if changed:
        raise JobError(
            f"{folder.path} was begun with another recipe: {'; '.join(changed)}; leave that out to go on, or"
            " start again with --overwrite"
        )
    state.recipe = to_toml(recipe)
    return recipe


def _check_same_dataset(data: Dataset, state: TrainingState, folder: RunFolder) -> None:
    if data.content_hash != state.content_hash:
        raise JobError(
            f"{folder.path} was begun with another dataset (content {state.content_hash[:8]}, {data.path} has"
            f" {data.content_hash[:8]}); give that one, or start again with --overwrite or --init"
        )


def _card(data: Dataset, recipe: Recipe) -> ModelCard:
    name, options = model_of(recipe)
    return ModelCard(
        model=name,
        model_options=options,
        in_shape=(*data.size, 3),
        class_names=data.class_names,
        fit=data.fit,
        mean=data.mean,
        std=data.std,
        loss=loss_of(recipe),
    )


def _trainer(card: ModelCard, recipe: Recipe, backend: Backend, data: Dataset) -> Trainer:
    network = card.build_network(backend, recipe.seed)
    return Trainer(network, recipe, np.array(data.mean), np.array(data.std), data.train.rows)


def _describe_data(data: Dataset) -> str:
    height, width = data.size
    val = f"{data.val.rows:,} to validate" if data.val.rows else "none to validate: the last epoch counts as the best"
    classes = plural(len(data.class_names), "class", "classes")
    pictures = plural(data.train.rows, "picture")
    return f"{data.path}: {classes}, {width}×{height} ({data.fit}); {pictures} to train on, {val}"


def _epoch_line(row: EpochRow, epochs: int, best: bool, left: float) -> str:
    parts = [f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"]
    parts.append(f"train loss {row.train_loss:.3f} accuracy {row.train_accuracy:5.1%}")
    if row.val_accuracy is not None:
        parts.append(f"val loss {row.val_loss:.3f} accuracy {row.val_accuracy:5.1%}{' best' if best else '     '}")
    speed = f"{row.images_per_second:,.0f} pictures/s"
    parts.append(f"{duration(row.seconds)}, {speed}" + (f", {duration(left)} left" if left else ""))
    return "  ".join(parts)


def _best(state: TrainingState) -> str:
    if state.best is None or state.best.val_accuracy is None:
        return ""
    return f", best validation accuracy {state.best.val_accuracy:.1%} in epoch {state.best.epoch}"
