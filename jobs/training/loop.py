"""The training loop."""

from cnn.evaluation.metrics import Evaluation
from jobs.console.interrupts import DeferredInterrupt
from jobs.console.output import say
from jobs.console.progress import Bar, bar, plural
from jobs.errors import Interrupted, RanksLostError
from jobs.training.artifacts import Artifacts
from jobs.training.engine import Engine, StepResult
from jobs.training.epoch_report import report_epoch
from jobs.training.metrics import validation_metrics
from jobs.training.run_folder import TrainingState, is_finished
from jobs.training.summary import Summary
from pipeline.errors import PipelineError


class Training:
    """The loop over epochs: train, validate, save, report."""

    def __init__(self, engine: Engine, state: TrainingState, artifacts: Artifacts, resume_command: str) -> None:
        self.engine, self.recipe, self.state = engine, engine.recipe, state
        self.artifacts, self.resume_command = artifacts, resume_command
        self.clock, self.interrupt = engine.clock, DeferredInterrupt()
        engine.stop_requested = lambda: self.interrupt.requested

    def run(self) -> Summary:
        """Train until the last epoch, or until patience runs out; return the summary.

        Raises Interrupted after Ctrl-C, NonFiniteError where training diverges, PipelineError for a damaged dataset,
        WriteError and OSError where a file cannot be written.
        """
        with self.interrupt:
            while True:
                try:
                    return self._run()
                except RanksLostError:  # and the state with them
                    self._restore()

    def _run(self) -> Summary:
        with self.clock("save"):
            self.artifacts.begin()
        while not is_finished(self.state, self.recipe):
            try:
                self._train_epoch()
                evaluation = self._validate()
            except PipelineError:  # the dataset is damaged, the weights are not: resume once it is repaired
                # If it has been replaced, they may be of mixed images: not saved.
                self._save_checkpoint()
                raise
            self._end_epoch(evaluation)
        return self.artifacts.finish()

    def _restore(self) -> None:
        """Go back to the last checkpoint. Raises Interrupted after Ctrl-C, KeyboardInterrupt where nothing is saved."""
        if not self.artifacts.restore():
            if self.interrupt.requested:
                raise KeyboardInterrupt
            say("all ranks were lost; beginning again")
            return
        self.clock.times = self.state.times
        if self.interrupt.requested:
            raise self._interrupted()
        say(f"all ranks were lost; going on from the checkpoint after {self._done()}")

    def _train_epoch(self) -> None:
        state = self.state
        title, rows = f"epoch {state.epoch}/{self.recipe.epochs}", self.artifacts.data.train.rows
        with bar(title, "images", rows, done=state.rows, ends=False) as progress:
            for results in self.engine.epoch(state.epoch, state.batches):
                for result in results:
                    self._count(result, progress)
                self._save_if_due(progress)

    def _count(self, result: StepResult, progress: Bar | None = None) -> None:
        self.state.add_batch(result.batch)
        self.state.lr = result.lr
        if progress:
            progress.update(self.state.rows, f"loss {self.state.loss_sum / self.state.rows:.3f}")

    def _validate(self) -> Evaluation | None:
        rows = self.artifacts.data.val.rows
        if not rows:
            return None
        with self.clock("validation"), bar("validating", "images", rows, ends=False) as progress:

            def show(done: int) -> None:
                progress.update(done)
                self._save_if_due()  # all batches of the epoch are done: a resumed training validates again

            return self.engine.validate(show)

    def _end_epoch(self, evaluation: Evaluation | None) -> None:
        self.artifacts.data.check_unchanged()
        with self.clock("validation"):
            metrics = validation_metrics(evaluation, self.recipe.loss) if evaluation else {}
        self.state.ranks += [each.to_dict() for each in self.engine.take_activity()]
        row = self.state.end_epoch(metrics)
        self.clock.times = self.state.times  # saving counts for the next epoch
        with self.clock("save"):
            self.artifacts.save_epoch(row, evaluation)
        report_epoch(self.state, self.recipe)

    def _save_if_due(self, progress: Bar | None = None) -> None:
        if self.interrupt.requested:
            self._save_checkpoint(progress)
            with self.clock("save"):
                self.artifacts.draw()
            raise self._interrupted()
        if self.artifacts.checkpoint_is_due():
            self._save_checkpoint(progress)

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"saved after {self._done()}; resume with: {self.resume_command}")

    def _done(self) -> str:
        return f"{plural(self.state.batches, 'step')} of epoch {self.state.epoch}"

    def _save_checkpoint(self, progress: Bar | None = None) -> None:
        self.artifacts.data.check_unchanged()
        with self.clock("save"):
            snapshot = self.engine.snapshot()
        for result in snapshot.results:
            self._count(result, progress)
        with self.clock("save"):
            self.artifacts.save_checkpoint(snapshot)
