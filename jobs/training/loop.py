"""The training loop."""

from collections.abc import Iterator

import numpy as np

from cnn.evaluation.metrics import Evaluation
from cnn.inputs.training_inputs import MicroBatch
from cnn.training.pending import PendingBatch
from cnn.training.trainer import Trainer
from jobs.console.interrupts import DeferredInterrupt
from jobs.console.progress import Bar, bar, plural
from jobs.errors import Interrupted
from jobs.training.artifacts import Artifacts
from jobs.training.epoch_report import report_epoch
from jobs.training.metrics import validation_metrics
from jobs.training.run_folder import TrainingState, is_finished
from jobs.training.setup import Streams
from jobs.training.summary import Summary
from jobs.training.timing import EpochClock
from pipeline.errors import PipelineError


class Training:
    """The loop over epochs: train, validate, save, report."""

    def __init__(
        self, trainer: Trainer, state: TrainingState, streams: Streams, artifacts: Artifacts, resume_command: str
    ) -> None:
        self.trainer, self.recipe, self.state, self.streams = trainer, trainer.recipe, state, streams
        self.artifacts, self.resume_command = artifacts, resume_command
        self.clock, self.interrupt = EpochClock(state.times), DeferredInterrupt()
        self._pending: PendingBatch | None = None  # started, but not yet counted in `state`

    def run(self) -> Summary:
        """Train until the last epoch, or until patience runs out; return the summary.

        Raises Interrupted after Ctrl-C, NonFiniteError where training diverges, PipelineError for a damaged dataset,
        WriteError and OSError where a file cannot be written.
        """
        with self.clock("save"):
            self.artifacts.begin()
        with self.interrupt:
            while not is_finished(self.state, self.recipe):
                try:
                    self._train_epoch()
                    evaluation = self._validate()
                except PipelineError:  # the dataset is damaged, the weights are not: resume once it is repaired
                    self._finish_batch()
                    self._save_checkpoint()
                    raise
                self._end_epoch(evaluation)
            return self.artifacts.finish()

    def _train_epoch(self) -> None:
        state, clock, stream = self.state, self.clock, self.streams.train
        title, rows = f"epoch {state.epoch}/{self.recipe.epochs}", self.artifacts.data.train.rows
        with bar(title, "images", rows, done=state.rows, ends=False) as progress:
            for batches in stream.micro_batches(state.epoch, start=state.batches):
                clock.add_stream(stream.times)
                state.lr = self.trainer.lr
                with clock("compute"):
                    parts = [MicroBatch(batch.images, batch.labels, batch.rows) for batch in batches]
                    started = self.trainer.start_micro_batches(parts, batches[0].global_rows)
                self._finish_batch(progress)  # the one before: a GPU computes this one meanwhile
                self._pending = started
                self._save_if_due(progress)
            clock.add_stream(stream.times)
            self._finish_batch(progress)

    def _finish_batch(self, progress: Bar | None = None) -> None:
        """Wait for the pending batch, if there is one, and count it."""
        if self._pending is None:
            return
        with self.clock("compute"):
            result = self._pending.result()
        self._pending = None
        self.state.add_batch(result)
        if progress:
            progress.update(self.state.rows, f"loss {self.state.loss_sum / self.state.rows:.3f}")

    def _validate(self) -> Evaluation | None:
        if self.streams.val is None:
            return None
        with self.clock("validation"):
            return self.trainer.evaluate(self._val_batches())

    def _val_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert self.streams.val
        done, rows = 0, self.artifacts.data.val.rows
        with bar("validating", "images", rows, ends=False) as progress:
            for batch in self.streams.val.epoch(0):
                yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
                done += len(batch.labels)
                progress.update(done)
                self._save_if_due()  # all batches of the epoch are done: a resumed training validates again

    def _end_epoch(self, evaluation: Evaluation | None) -> None:
        with self.clock("validation"):
            metrics = validation_metrics(evaluation, self.recipe.loss) if evaluation else {}
        row = self.state.end_epoch(metrics)
        self.clock.times = self.state.times  # saving counts for the next epoch
        with self.clock("save"):
            self.artifacts.save_epoch(row, evaluation)
        report_epoch(self.state, self.recipe)

    def _save_if_due(self, progress: Bar | None = None) -> None:
        if self.interrupt.requested:
            self._finish_batch(progress)
            self._save_checkpoint()
            with self.clock("save"):
                self.artifacts.draw()
            done = f"{plural(self.state.batches, 'step')} of epoch {self.state.epoch}"
            raise Interrupted(f"saved after {done}; resume with: {self.resume_command}")
        if self.artifacts.checkpoint_is_due():
            self._finish_batch(progress)
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        with self.clock("save"):
            self.artifacts.save_checkpoint()
