"""The loop over epochs: train, validate, keep the best, save, show."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from cnn.checkpoint import ModelCard, load_checkpoint
from cnn.evaluation.calibration import MIN_ROWS, calibrate
from cnn.evaluation.metrics import Evaluation, wilson_interval
from cnn.losses import Loss, SoftmaxCrossEntropy
from cnn.training.trainer import Recipe, Trainer
from jobs.console.interrupts import DeferredInterrupt
from jobs.console.output import say
from jobs.console.progress import Bar, bar, duration, plural
from jobs.errors import Interrupted
from jobs.training.metrics import EpochRow, is_better, write_classes, write_metrics
from jobs.training.plots import draw_confusion, draw_curves
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.summary import Summary, summary_lines, write_summary
from jobs.training.timing import Stopwatch, time_lines
from pipeline.dataset.store import Dataset
from pipeline.errors import PipelineError
from pipeline.loader.reader import StreamTimes
from pipeline.loader.stream import BatchStream

DRAWING_SHARE = 0.05  # of the time, at most, goes into images of the training


class Streams(NamedTuple):
    """The images to train on and, if there are any, those to validate."""

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
        self.evaluated: tuple[EpochRow, Evaluation] | None = None  # the best epoch, till it is drawn

    def run(self) -> None:
        """Go on to the last epoch, or till patience is lost.

        Raises Interrupted after Ctrl-C, NonFiniteError where it diverges, DatasetError where the data is damaged.
        """
        if not self.state.step:
            self._save_last()  # from here on there always is a point to go on from
        self._make_up_for_best()
        with DeferredInterrupt() as self.interrupt:
            while not is_finished(self.state, self.recipe):
                try:
                    self._train_epoch(self.state.epoch)
                    evaluated = self._validate()
                except PipelineError:  # the data is at fault, not what was learned: once it is mended, we go on
                    self._save_last()
                    raise
                self._end_epoch(self.state.epoch, *evaluated)
            self._conclude()

    def _train_epoch(self, epoch: int) -> None:
        state, stream = self.state, self.streams.train
        what = f"epoch {epoch}/{self.recipe.epochs}"
        with bar(what, "images", self.data.train.rows, done=state.rows, ends=False) as progress:
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

    def _validate(self) -> tuple[Evaluation | None, dict[str, Any]]:
        """What the network makes of the validation part, and the columns of metrics.csv that come from it."""
        if self.streams.val is None:
            return None, {"val_loss": None, "val_accuracy": None}
        with bar("validating", "images", self.data.val.rows, ends=False) as progress:
            evaluation = self.trainer.evaluate(self._val_batches(self.streams.val, progress))
        figures = _validation_figures(evaluation, self.recipe.loss)
        self.state.times.validation_seconds += self._lap()
        return evaluation, figures

    def _val_batches(self, stream: BatchStream, progress: Bar) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        done = 0
        for batch in stream.epoch(0):
            yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
            done += len(batch.labels)
            progress.update(done)
            self.state.times.validation_seconds += self._lap()
            self._save_if_due()  # with all batches of the epoch done: resuming validates again

    def _end_epoch(self, epoch: int, evaluation: Evaluation | None, figures: dict[str, Any]) -> None:
        """Keep the best, save where we are, and tell. What that takes is charged to the next epoch."""
        state = self.state
        self._lap()
        row = self._row(epoch, figures)
        best = is_better(row, state.best)
        if best:
            state.best = row
            self.evaluated = (row, evaluation) if evaluation else None
        state.history.append(row)
        state.begin_epoch(epoch + 1)
        self.undrawn = True
        finished = is_finished(state, self.recipe)
        left = 0.0 if finished else (self.recipe.epochs - epoch) * row.seconds
        lines = [_epoch_line(row, self.recipe.epochs, best and evaluation is not None, left), *time_lines(row)]
        self._save_last()
        if best:  # after the point to go on from: should we be killed in between, it can be made from that
            self._save_best(row)
        if not finished:
            write_metrics(self.folder.metrics, state.history)
            if time.monotonic() - self.drawn >= self.drawing_took / DRAWING_SHARE:
                self._draw()
            self._charge_saving()
        say("\n".join(lines))

    def _conclude(self) -> None:
        """Write all that there is at the end; should we be killed in between, a rerun does it again."""
        self._draw()
        write_metrics(self.folder.metrics, self.state.history)
        self._summarise()
        self._save_last()  # at the very end: from here on a rerun has nothing more to do

    def _row(self, epoch: int, figures: dict[str, Any]) -> EpochRow:
        """The figures of an epoch that is over."""
        state = self.state
        return EpochRow(
            epoch=epoch,
            step=state.step,
            lr=state.lr,
            train_loss=state.loss_sum / state.rows,
            train_accuracy=state.correct / state.rows,
            images_per_second=state.rows / state.times.training,
            **figures,
            **asdict(state.times),
        )

    def _save_if_due(self) -> None:
        if self.interrupt.requested:
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

    def _save_best(self, row: EpochRow) -> None:
        card = replace(self.card, temperature=row.temperature or 1.0)
        self.folder.save_best(card, self.trainer.outcome.tensors(), row)

    def _make_up_for_best(self) -> None:
        """Save the best network where a kill came before that: it is the one to go on from."""
        best = self.state.best
        if best is None or best.step != self.state.step:
            return
        if not self.folder.model.exists() or load_checkpoint(self.folder.model).progress["epoch"] != best.epoch:
            self._save_best(best)

    def _draw(self) -> None:
        if not self.undrawn:
            return
        began = time.monotonic()
        draw_curves(self.folder.curves, self.state.history)
        best = self.state.best
        drawn = self.state.confusion_epoch if self.folder.classes.exists() else 0
        if self.evaluated is None and best and best.val_loss is not None and drawn != best.epoch:
            self.evaluated = self._evaluate_best(best)  # a kill came before this could be drawn
        if self.evaluated:
            row, evaluation = self.evaluated
            right = f"{evaluation.accuracy:.1%} of {plural(evaluation.rows, 'image')} right"
            title = f"Validation after epoch {row.epoch}: {right}"
            draw_confusion(self.folder.confusion, evaluation.confusion, self.data.class_names, title)
            write_classes(self.folder.classes, self.data.class_names, evaluation.by_class)
            self.state.confusion_epoch = row.epoch
            self.evaluated = None
        self.undrawn = False
        self.drawn = time.monotonic()
        self.drawing_took = self.drawn - began

    def _evaluate_best(self, best: EpochRow, views: str = "none") -> tuple[EpochRow, Evaluation] | None:
        """Validate the network of the best epoch once more; None where the file has that of another one."""
        assert self.streams.val is not None, "there is a best by validation"
        checkpoint = load_checkpoint(self.folder.model)
        if checkpoint.progress["epoch"] != best.epoch:
            return None  # older versions saved the best first: after a kill, that epoch comes again, and is drawn
        network = self.card.build_network(self.trainer.backend, seed=None)
        checkpoint.load_into(network)
        batches = ((batch.images, batch.labels) for batch in self.streams.val.epoch(0))
        return best, self.trainer.evaluate(batches, views, network)

    def _summarise(self) -> None:
        """Judge the best network once more, with the recipe's views if it has any, and write what came of it all."""
        best, views, rows = self.state.best, self.recipe.views, self.data.val.rows
        assert best, "an epoch is over"
        seconds = sum(row.seconds for row in self.state.history)
        summary = Summary(best.epoch, len(self.state.history), seconds, self.data.train.rows, rows)
        if best.val_accuracy is not None:
            low, high = wilson_interval(best.val_accuracy, rows)
            summary = replace(
                summary, accuracy=best.val_accuracy, accuracy_low=low, accuracy_high=high, top5=best.val_top5,
                macro_f1=best.val_macro_f1, calibration_error=best.val_calibration_error,
                calibration_error_scaled=best.val_calibration_error_scaled, temperature=best.temperature,
            )  # fmt: skip
            if views != "none" and (evaluated := self._evaluate_best(best, views)):
                summary = replace(summary, views=views, accuracy_with_views=evaluated[1].accuracy)
        write_summary(self.folder.summary, summary)
        for line in summary_lines(summary):
            say(line)

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


def is_finished(state: TrainingState, recipe: Recipe) -> bool:
    """Whether all epochs are done, or the last `recipe.patience` of them, if that is given, were no better."""
    done, best = len(state.history), state.best.epoch if state.best else 0
    return done >= recipe.epochs or 0 < recipe.patience <= done - best


def _validation_figures(evaluation: Evaluation, loss: Loss) -> dict[str, float]:
    """The columns of metrics.csv that come from validating."""
    outputs, labels = evaluation.outputs, evaluation.labels
    figures = {"val_loss": evaluation.loss, "val_accuracy": evaluation.accuracy, "val_macro_f1": evaluation.macro_f1}
    if outputs.shape[1] > 5:
        figures["val_top5"] = evaluation.top(5)
    if isinstance(loss, SoftmaxCrossEntropy) and len(labels) >= MIN_ROWS:
        calibration = calibrate(outputs, labels)
        figures["temperature"] = calibration.temperature
        figures["val_calibration_error"] = calibration.error
        figures["val_calibration_error_scaled"] = calibration.error_scaled
    return figures


def _epoch_line(row: EpochRow, epochs: int, best: bool, left: float) -> str:
    parts = [f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"]
    parts.append(f"train loss {row.train_loss:.3f} accuracy {row.train_accuracy:5.1%}")
    if row.val_accuracy is not None:
        parts.append(f"val loss {row.val_loss:.3f} accuracy {row.val_accuracy:5.1%}{' best' if best else '     '}")
    speed = f"{row.images_per_second:,.0f} images/s"
    parts.append(f"{duration(row.seconds)}, {speed}" + (f", {duration(left)} left" if left else ""))
    return "  ".join(parts)
