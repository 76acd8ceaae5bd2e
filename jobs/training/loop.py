"""The training loop."""

from collections.abc import Iterator

import numpy as np

from cnn.evaluation.metrics import Evaluation
from cnn.training.trainer import Trainer
from jobs.console.interrupts import DeferredInterrupt
from jobs.console.output import detail, say
from jobs.console.progress import Bar, bar, duration, plural
from jobs.errors import Interrupted
from jobs.training.artifacts import Artifacts
from jobs.training.metrics import EpochRow, validation_metrics
from jobs.training.run_folder import TrainingState, is_finished
from jobs.training.setup import Streams
from jobs.training.summary import Summary
from jobs.training.timing import EpochClock, bottleneck, time_lines
from pipeline.errors import PipelineError
from pipeline.loader.stream import BatchStream


class Training:
    """The loop over epochs: train, validate, save, report."""

    def __init__(
        self, trainer: Trainer, state: TrainingState, streams: Streams, artifacts: Artifacts, resume_command: str
    ) -> None:
        self.trainer, self.recipe, self.state, self.streams = trainer, trainer.recipe, state, streams
        self.artifacts, self.resume_command = artifacts, resume_command
        self.clock = EpochClock(state.times)

    def run(self) -> Summary:
        """Train until the last epoch, or until patience runs out; return the summary.

        Raises Interrupted after Ctrl-C, NonFiniteError where training diverges, PipelineError for a damaged dataset,
        WriteError and OSError where a file cannot be written.
        """
        with self.clock("save"):
            self.artifacts.begin()
        with DeferredInterrupt() as self.ctrl_c:
            while not is_finished(self.state, self.recipe):
                try:
                    self._train_epoch()
                    evaluation = self._validate()
                except PipelineError:  # the dataset is damaged, the weights are not: resume once it is repaired
                    with self.clock("save"):
                        self.artifacts.save_checkpoint()
                    raise
                self._end_epoch(evaluation)
            return self.artifacts.finish()

    def _train_epoch(self) -> None:
        state, clock, stream = self.state, self.clock, self.streams.train
        title, rows = f"epoch {state.epoch}/{self.recipe.epochs}", self.artifacts.data.train.rows
        with bar(title, "images", rows, done=state.rows, ends=False) as progress:
            for batch in stream.epoch(state.epoch, start=state.batches):
                clock.add_stream(stream.times)
                state.lr = self.trainer.lr
                with clock("compute"):
                    result = self.trainer.train_batch(batch.images, batch.labels, batch.rows)
                state.add_batch(result)
                progress.update(state.rows, f"loss {state.loss_sum / state.rows:.3f}")
                self._save_if_due()
            clock.add_stream(stream.times)

    def _validate(self) -> Evaluation | None:
        stream, rows = self.streams.val, self.artifacts.data.val.rows
        if stream is None:
            return None
        with self.clock("validation"), bar("validating", "images", rows, ends=False) as progress:
            return self.trainer.evaluate(self._val_batches(stream, progress))

    def _val_batches(self, stream: BatchStream, progress: Bar) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        done = 0
        for batch in stream.epoch(0):
            yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
            done += len(batch.labels)
            progress.update(done)
            self._save_if_due()  # all batches of the epoch are done: a resumed training validates again

    def _save_if_due(self) -> None:
        if self.ctrl_c.requested:
            with self.clock("save"):
                self.artifacts.save_checkpoint()
                self.artifacts.draw()
            done = f"{plural(self.state.batches, 'step')} of epoch {self.state.epoch}"
            raise Interrupted(f"saved after {done}; resume with: {self.resume_command}")
        if self.artifacts.checkpoint_is_due():
            with self.clock("save"):
                self.artifacts.save_checkpoint()

    def _end_epoch(self, evaluation: Evaluation | None) -> None:
        with self.clock("validation"):
            metrics = validation_metrics(evaluation, self.recipe.loss) if evaluation else {}
        row = self.state.end_epoch(metrics)
        self.clock.times = self.state.times  # saving is charged to the next epoch
        with self.clock("save"):
            self.artifacts.save_epoch(row, evaluation)
        self._report(row)

    def _report(self, row: EpochRow) -> None:
        left = 0.0 if is_finished(self.state, self.recipe) else (self.recipe.epochs - row.epoch) * row.seconds
        say(epoch_line(row, self.recipe.epochs, row is self.state.best, left))
        for line in time_lines(row):
            detail(line)
        *earlier, last = (bottleneck([each]) for each in self.state.history[-2:])
        if last and last not in earlier:  # once, not in every epoch
            say(f"  data is the bottleneck ({last.activity}): {last.remedy}")


def epoch_line(row: EpochRow, epochs: int, is_best: bool, seconds_left: float) -> str:
    """Return the result of an epoch as a line of at most 80 columns."""
    parts = [f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"]
    parts.append(f"loss {_loss(row.train_loss)} acc {_percent(row.train_accuracy)}")
    if row.val_loss is not None and row.val_accuracy is not None:
        best = "best" if is_best else "    "
        parts.append(f"val {_loss(row.val_loss)} {_percent(row.val_accuracy)} {best}")
    parts.append(duration(row.seconds))
    if seconds_left:
        parts.append(f"{duration(seconds_left) if seconds_left < 36_000 else f'{seconds_left / 3600:.0f} h'} left")
    return "  ".join(parts)


def _loss(loss: float) -> str:
    """At least five columns, and no more below 10,000."""
    return f"{loss:.3f}" if loss < 10 else f"{loss:5.4g}" if loss < 10_000 else f"{loss:.0e}"


def _percent(fraction: float) -> str:
    """Five columns."""
    return f"{fraction:5.1%}" if fraction < 0.9995 else " 100%"
