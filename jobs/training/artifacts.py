"""The files that a training writes, in an order that makes a kill at any moment safe."""

import time
import zlib
from dataclasses import dataclass, replace

from cnn.checkpoint import ModelCard, load_checkpoint
from cnn.errors import ModelFileError
from cnn.evaluation.metrics import Evaluation
from jobs.console.progress import plural
from jobs.drawing.plots import draw_confusion, draw_curves
from jobs.training.engine import Engine, Snapshot, Tensors
from jobs.training.metrics import EpochRow, write_classes, write_metrics
from jobs.training.ranks.record import write_ranks
from jobs.training.run_folder import RunFolder, TrainingState, is_finished
from jobs.training.summary import Summary, summarise, to_json
from logpose.common.files import write_atomically
from pipeline.dataset.store import Dataset
from pipeline.faults import is_there

MAX_DRAWING_FRACTION = 0.05  # of the time


@dataclass
class Artifacts:
    """Writes checkpoints, metrics and drawings of a training into its run folder.

    last.safetensors is always written first. After a kill, the other files can be made again: model.safetensors from
    last.safetensors, if the last epoch is the best, and the others from the history and model.safetensors.
    """

    folder: RunFolder
    data: Dataset
    card: ModelCard
    engine: Engine
    state: TrainingState
    checkpoint_minutes: float
    checkpoint_steps: int | None

    def __post_init__(self) -> None:
        self._saved_at = self._drawn_at = time.monotonic()
        self.saved_step = self.state.step  # that of last.safetensors
        self._drawn_epochs, self._drawing_seconds = 0, 0.0
        self._best_evaluation: Evaluation | None = None  # until it is drawn

    def begin(self) -> None:
        """Write the first checkpoint and, after it, what else there is by now.

        When resuming, that includes the best model, if a kill came before it was written.

        Raises WriteError, ModelFileError.
        """
        state = self.state
        if not state.step:
            self.save_checkpoint(self.engine.snapshot())
        write_atomically(self.folder.config, state.recipe)
        if not is_finished(state, self.engine.recipe):
            for file in (self.folder.summary, self.folder.report):  # they describe an earlier end
                file.unlink(missing_ok=True)
        if state.history:
            write_metrics(self.folder.metrics, state.history)
        best = state.best
        if best is None:
            return
        try:
            saved = self.folder.read_model(state.history).progress.get("epoch")
        except ModelFileError:  # missing, damaged, or of another training
            if best.step != state.step and is_finished(state, self.engine.recipe):
                raise
            saved = None
        if best.step == state.step and saved != best.epoch:  # otherwise the weights are not those of the best epoch
            self._save_best(best, self.engine.snapshot().best)

    def checkpoint_is_due(self) -> bool:
        """Return whether the last checkpoint is older than `checkpoint_minutes` or `checkpoint_steps`."""
        steps = self.engine.step - self.saved_step  # ahead of the state while a step is pending
        if self.checkpoint_steps is not None and steps >= self.checkpoint_steps:
            return True
        return time.monotonic() - self._saved_at >= 60 * self.checkpoint_minutes

    def save_checkpoint(self, snapshot: Snapshot) -> None:
        """Write last.safetensors, of the state and the snapshot of the same step. Raises WriteError."""
        self.folder.save_last(self.card, snapshot.tensors, self.state)
        self._saved_at, self.saved_step = time.monotonic(), self.state.step

    def save_epoch(self, row: EpochRow, evaluation: Evaluation | None) -> None:
        """Write checkpoint, best model, metrics.csv and, now and then, the drawings, after the epoch of `row`.

        Raises WriteError, OSError, and PipelineError where the best epoch must be evaluated again.
        """
        snapshot = self.engine.snapshot()
        self.save_checkpoint(snapshot)
        if row is self.state.best:
            self._best_evaluation = evaluation
            self._save_best(row, snapshot.best)
        if self.state.ranks:
            write_ranks(self.folder.ranks, self.state.ranks)
        if not is_finished(self.state, self.engine.recipe):  # else `finish` writes them
            write_metrics(self.folder.metrics, self.state.history)
            if time.monotonic() - self._drawn_at >= self._drawing_seconds / MAX_DRAWING_FRACTION:
                self.draw()

    def draw(self) -> None:
        """Write curves.png and, for the best epoch, confusion.png and classes.csv, unless they are up to date.

        Raises OSError, and PipelineError where the best epoch must be evaluated again.
        """
        folder, state, best = self.folder, self.state, self.state.best
        if self._drawn_epochs == len(state.history):
            return
        began = time.monotonic()
        draw_curves(folder.curves, state.history)
        shown = state.confusion_epoch if is_there(folder.classes) else 0
        evaluation = None
        if best and best.val_loss is not None and shown != best.epoch:
            evaluation = self._best_evaluation or self.evaluate_best()  # the former is lost after a kill
        if best and evaluation:
            accuracy = f"{evaluation.accuracy:.1%} of {plural(evaluation.rows, 'image')} correct"
            title = f"Validation after epoch {best.epoch}: {accuracy}"
            draw_confusion(folder.confusion, evaluation.confusion, self.data.class_names, title)
            write_classes(folder.classes, self.data.class_names, evaluation.by_class)
            state.confusion_epoch = best.epoch
        self._best_evaluation = None
        self._drawn_epochs, self._drawn_at = len(state.history), time.monotonic()
        self._drawing_seconds = self._drawn_at - began

    def finish(self) -> Summary:
        """Write all files, summary.json included, and note their checksums; return the summary.

        Raises what `draw` does.
        """
        state, data, views = self.state, self.data, self.engine.recipe.views
        assert state.best, "at least one epoch is done"
        self.draw()
        write_metrics(self.folder.metrics, state.history)
        evaluation = self.evaluate_best(views) if data.val.rows and views != "none" else None
        with_views = evaluation.accuracy if evaluation else None
        summary = summarise(state.history, state.best, data.train.rows, data.val.rows, views, with_views, state.device)
        if state.ranks:
            write_ranks(self.folder.ranks, state.ranks)
        text = to_json(summary)
        state.files = {**self.folder.checksums(), self.folder.summary.name: zlib.crc32(text.encode())}
        self.save_checkpoint(self.engine.snapshot())
        write_atomically(self.folder.summary, text)  # last: with it, and its checksum, a rerun has nothing to do
        return summary

    def evaluate_best(self, views: str = "none") -> Evaluation | None:
        """Evaluate model.safetensors on the validation split, with the test-time augmentation `views`.

        Returns None where it holds another epoch than the best: older versions saved it before the checkpoint, and a
        kill in between means that its epoch is trained again. Raises PipelineError, ModelFileError, NonFiniteError.
        """
        assert self.state.best, "the best epoch was validated"
        if load_checkpoint(self.folder.model).progress["epoch"] != self.state.best.epoch:
            return None
        return self.engine.evaluate_saved(self.folder.model, views)

    def restore(self) -> bool:
        """Go back to the state of last.safetensors; return whether there is one. Raises ModelFileError if damaged."""
        if not is_there(self.folder.last):
            return False
        saved = TrainingState.from_json(load_checkpoint(self.folder.last).progress, self.folder.last)
        vars(self.state).update(vars(saved))
        self._saved_at, self.saved_step = time.monotonic(), saved.step
        return True

    def _save_best(self, row: EpochRow, tensors: Tensors) -> None:
        self.folder.save_best(replace(self.card, temperature=row.temperature or 1.0), tensors, row)
