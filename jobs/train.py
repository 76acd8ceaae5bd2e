"""A dataset -> a trained network, and everything in RUN_DIR that shows how it went."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnn.backend import Backend, pick_backend
from cnn.checkpoint import ModelCard, initialise_from, load_checkpoint
from cnn.errors import NonFiniteError
from cnn.metrics import Evaluation
from cnn.train import Recipe, Trainer
from jobs.config import Wishes, describe, differences, loss_of, model_of, model_toml, resolve, to_toml
from jobs.cores import usable_cores
from jobs.drawings import draw_confusion, draw_curves
from jobs.errors import Interrupted, JobError
from jobs.files import write_text_atomically
from jobs.interrupts import CtrlC
from jobs.metrics import EpochRow, is_better, write_metrics
from jobs.progress import Bar, bar, duration, plural
from jobs.run_folder import RunFolder, TrainingState
from jobs.timing import Stopwatch, time_lines
from pipeline.errors import OptionError, PipelineError
from pipeline.place import only_one
from pipeline.reader import StreamTimes
from pipeline.schema import COPIES_FILE
from pipeline.store import Dataset
from pipeline.stream import BatchStream

DRAWING_SHARE = 0.05  # of the time, at most, goes into pictures of the training
MEASURED_PIXELS = 5_000 * 32 * 32  # from which a network computes what it does not learn


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
    checkpoint_steps: int | None = None,
    ram_budget: int = 1_000_000_000,
) -> int:
    """Train on `dataset` as `wishes` say; with `resume`, go on with what `run_dir` holds.

    Within an epoch the point to resume from is saved every `checkpoint_minutes` or `checkpoint_steps`,
    whichever comes first. The buffers of pictures read ahead take `ram_budget` bytes at most.
    """
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

    workers = workers or usable_cores()
    streams = _open_streams(data, recipe, workers, ram_budget)
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
    elif trainer.network.is_measured:
        some = max(1, MEASURED_PIXELS // (data.size[0] * data.size[1]))  # rows are in random order
        trainer.measure(data.train.read(0, min(data.train.rows, some)))
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with only_one(run_dir.with_name(f".{run_dir.name}.lock"), f"training into {run_dir}"):
        if not checkpoint:
            folder.clear()
        write_text_atomically(folder.config, to_toml(recipe))
        if state.history:
            write_metrics(folder.metrics, state.history)
        training = Training(data, folder, card, trainer, state, streams, checkpoint_minutes, checkpoint_steps)
        try:
            training.run()
        except NonFiniteError as error:
            kept = f"{folder.model} keeps the best so far" if state.best else "no model is saved yet"
            raise NonFiniteError(f"{error}, and start again with --overwrite; {kept}") from error
        training.print_with_views()
    print(f"done{_best(state)}; see {folder.model}, {folder.curves.name} and {folder.confusion.name}")
    return 0


class Streams(NamedTuple):
    """The pictures to train on and, if there are any, those to validate."""

    train: BatchStream
    val: BatchStream | None


class Training:
    """The loop over epochs: train, validate, keep the best, save, show."""

    def __init__(
        self,
        data: Dataset,
        folder: RunFolder,
        card: ModelCard,
        trainer: Trainer,
        state: TrainingState,
        streams: Streams,
        checkpoint_minutes: float,
        checkpoint_steps: int | None,
    ) -> None:
        self.data, self.folder, self.card, self.trainer, self.state = data, folder, card, trainer, state
        self.recipe, self.streams = trainer.recipe, streams
        self.checkpoint_seconds, self.checkpoint_steps = 60 * checkpoint_minutes, checkpoint_steps
        self.saved = self.drawn = time.monotonic()
        self.saved_step = state.step
        self.drawing_took = 0.0
        self.stopwatch = Stopwatch()
        self.undrawn = bool(state.history)
        self.judged: tuple[EpochRow, Evaluation] | None = None  # the best epoch, till it is drawn

    def run(self) -> None:
        """Go on to the last epoch.

        Raises Interrupted after Ctrl-C, NonFiniteError where it diverges, DatasetError where the data is damaged.
        """
        if not self.state.step:
            self._save_last()  # from here on there always is a point to go on from
        with CtrlC() as self.ctrl_c:
            try:
                for epoch in range(self.state.epoch, self.recipe.epochs + 1):
                    self._train_epoch(epoch)
                    self._end_epoch(epoch, self._validate())
            except PipelineError:  # the data is at fault, not what was learned: once it is mended, we go on
                self._save_last()
                raise

    def _train_epoch(self, epoch: int) -> None:
        state, stream = self.state, self.streams.train
        what = f"epoch {epoch}/{self.recipe.epochs}"
        with bar(what, "pictures", self.data.train.rows, done=state.rows, ends=False) as progress:
            before = stream.times
            for batch in stream.epoch(epoch, start=state.batches):
                before = self._charge_data(before)
                state.lr = self.trainer.lr
                result = self.trainer.train_batch(batch.images, batch.labels, batch.rows)
                state.times.compute_seconds += self._lap()
                state.loss_sum += result.loss_sum
                state.correct += result.correct
                state.rows += result.rows
                state.batches += 1
                state.step = self.trainer.step
                progress.update(state.rows, f"loss {state.loss_sum / state.rows:.3f}")
                self._lap()  # so that it is not taken for saving
                self._save_if_due()
            self._charge_data(before)

    def _validate(self) -> Evaluation | None:
        if self.streams.val is None:
            return None
        with bar("validating", "pictures", self.data.val.rows, ends=False) as progress:
            evaluation = self.trainer.evaluate(self._val_batches(self.streams.val, progress))
        self.state.times.validation_seconds += self._lap()
        return evaluation

    def _val_batches(self, stream: BatchStream, progress: Bar) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        done = 0
        for batch in stream.epoch(0):
            yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
            done += len(batch.labels)
            progress.update(done)
            self.state.times.validation_seconds += self._lap()
            self._save_if_due()  # with all batches of the epoch done: resuming validates again

    def _end_epoch(self, epoch: int, evaluation: Evaluation | None) -> None:
        """Keep the best, save where we are, and tell. What that takes is charged to the next epoch."""
        state = self.state
        self._lap()
        row = EpochRow(
            epoch=epoch,
            step=state.step,
            lr=state.lr,
            train_loss=state.loss_sum / state.rows,
            train_accuracy=state.correct / state.rows,
            val_loss=evaluation.loss if evaluation else None,
            val_accuracy=evaluation.accuracy if evaluation else None,
            images_per_second=state.rows / state.times.training,
            **asdict(state.times),
        )
        best = is_better(row, state.best)
        if best:
            # Before the point to resume from: should we be killed in between, this epoch is judged again.
            self.folder.save_best(self.card, self.trainer.network.tensors(), row)
            state.best = row
            self.judged = (row, evaluation) if evaluation else None
        state.history.append(row)
        state.begin_epoch(epoch + 1)
        self.undrawn = True
        if epoch == self.recipe.epochs:
            self._draw()
            write_metrics(self.folder.metrics, state.history)
            self._save_last()  # at the very end: from here on a rerun has nothing more to do
        else:
            self._save_last()
            write_metrics(self.folder.metrics, state.history)
            if time.monotonic() - self.drawn >= self.drawing_took / DRAWING_SHARE:
                self._draw()
        self._charge_saving()
        left = (self.recipe.epochs - epoch) * row.seconds
        lines = [_epoch_line(row, self.recipe.epochs, best and evaluation is not None, left), *time_lines(row)]
        print("\n".join(lines), flush=True)

    def _save_if_due(self) -> None:
        if self.ctrl_c.asked:
            self._save_last()
            self._draw()
            command = ["logpose", "train", str(self.data.path), str(self.folder.path), "--resume"]
            raise Interrupted(
                f"saved after {plural(self.state.batches, 'step')} of epoch {self.state.epoch}; go on with:"
                f" {shlex.join(command)}"
            )
        steps = self.state.step - self.saved_step
        often = self.checkpoint_steps is not None and steps >= self.checkpoint_steps
        if often or time.monotonic() - self.saved >= self.checkpoint_seconds:
            self._save_last()

    def _save_last(self) -> None:
        self._charge_saving()  # what the end of an epoch has written before
        self.folder.save_last(self.card, self.trainer.tensors(), self.state)
        self.saved, self.saved_step = time.monotonic(), self.state.step
        self._charge_saving()

    def _draw(self) -> None:
        if not self.undrawn:
            return
        began = time.monotonic()
        draw_curves(self.folder.curves, self.state.history)
        best = self.state.best
        if self.judged is None and best and best.val_loss is not None and self.state.confusion_epoch != best.epoch:
            self.judged = self._judge_again(best)  # a kill came before this could be drawn
        if self.judged:
            row, evaluation = self.judged
            right = f"{evaluation.accuracy:.1%} of {plural(evaluation.rows, 'picture')} right"
            title = f"Validation after epoch {row.epoch}: {right}"
            draw_confusion(self.folder.confusion, evaluation.confusion, self.data.class_names, title)
            self.state.confusion_epoch = row.epoch
            self.judged = None
        self.undrawn = False
        self.drawn = time.monotonic()
        self.drawing_took = self.drawn - began

    def _judge_again(self, best: EpochRow, views: str = "none") -> tuple[EpochRow, Evaluation] | None:
        """Validate the network of the best epoch once more; None where the file has that of a later one by now."""
        assert self.streams.val is not None, "there is a best by validation"
        checkpoint = load_checkpoint(self.folder.model)
        if checkpoint.progress["epoch"] != best.epoch:
            return None  # the kill came right after it was saved: that epoch will be judged and drawn
        network = self.card.build_network(self.trainer.backend, seed=None)
        checkpoint.load_into(network)
        mean, std = np.array(self.data.mean), np.array(self.data.std)  # (3,)
        judge = Trainer(network, self.recipe, mean, std, self.data.train.rows)
        return best, judge.evaluate(((batch.images, batch.labels) for batch in self.streams.val.epoch(0)), views)

    def print_with_views(self) -> None:
        """Say what the best network gets right with the recipe's views, if it has any, and without."""
        best, views = self.state.best, self.recipe.views
        if views == "none" or best is None or best.val_accuracy is None:
            return
        judged = self._judge_again(best, views)
        assert judged, "no later epoch follows the last"
        with_views, without = f"{judged[1].accuracy:.2%}", f"{best.val_accuracy:.2%}"
        print(f"epoch {best.epoch} with views {views}: validation accuracy {with_views}, {without} without")

    def _lap(self) -> float:
        """Seconds since the last lap: of the epoch in any case, of a part of it if the caller says so."""
        spent = self.stopwatch.lap()
        self.state.times.seconds += spent
        return spent

    def _charge_data(self, before: StreamTimes) -> StreamTimes:
        """Note what batches took, by the stream's own account; returns its times now."""
        self._lap()
        now, times = self.streams.train.times, self.state.times
        spent = now.since(before)
        times.wait_seconds += spent.wait
        times.copy_seconds += spent.copy
        times.read_seconds += spent.read
        times.decode_seconds += spent.decode
        return now

    def _charge_saving(self) -> None:
        self.state.times.save_seconds += self._lap()


def _open_streams(data: Dataset, recipe: Recipe, workers: int, ram_budget: int) -> Streams:
    """Both streams, within the budget together: validation takes the little it needs, training what is left."""
    batch_size, seed = recipe.batch_size, recipe.seed
    val, note = None, ""
    if data.val.rows:
        val = BatchStream(data.val, batch_size, seed=seed, shuffle=False, workers=workers)
        ram_budget = max(0, ram_budget - val.ram_bytes)
        note = f" (validation takes {-(-val.ram_bytes // 10**6)} MB of it)"
    try:
        return Streams(BatchStream(data.train, batch_size, seed=seed, workers=workers, ram_budget=ram_budget), val)
    except OptionError as error:
        raise OptionError(f"{error}{note}") from error


def _same_recipe(wishes: Wishes, state: TrainingState, folder: RunFolder) -> Recipe:
    """The recipe the training began with; only its number of epochs may be wished otherwise."""
    recipe = resolve(wishes, state.recipe, str(folder.config))
    # Read and written once more, since an older training does not say what was added to recipes since.
    before = to_toml(resolve(Wishes(), state.recipe, str(folder.config)))
    changed = [line for line in differences(before, to_toml(recipe)) if not line.startswith("train.epochs ")]
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
