"""Where a training computes: in this process, or on the ranks of a cluster (`ranks/`). The loop sees an `Engine`."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from cnn.checkpoint import ModelCard, load_checkpoint
from cnn.evaluation.metrics import Evaluation
from cnn.inputs.training_inputs import MicroBatch
from cnn.training.pending import BatchResult, PendingBatch
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.training.ranks.record import RankRow
from jobs.training.setup import Streams
from jobs.training.timing import EpochClock

Tensors: TypeAlias = dict[str, np.ndarray]
Progress: TypeAlias = Callable[[int], None]  # is given the number of images done


class StepResult(NamedTuple):
    """The result of a training step, and its learning rate; `step` is the number of steps before it."""

    step: int
    batch: BatchResult
    lr: float


def result_of(pending: PendingBatch) -> StepResult:
    """Wait for a step. Raises NonFiniteError."""
    return StepResult(pending.step, pending.result(), pending.lr)


class Snapshot(NamedTuple):
    """The state of a training after its last step, and the results of the steps that `epoch` has not yielded yet.

    tensors: everything that an exact resume needs, see `Trainer.tensors`.
    best: tensors of the network that is evaluated and saved.
    """

    results: list[StepResult]
    tensors: Tensors
    best: Tensors


class Engine(Protocol):
    """Trains and evaluates. Time is added to `clock`, which the loop reads."""

    recipe: Recipe
    clock: EpochClock
    stop_requested: Callable[[], bool]  # whether the user pressed Ctrl-C: no more waiting for ranks

    @property
    def step(self) -> int:
        """Number of steps so far, as far as this process knows; those of `epoch` may run ahead of their results."""
        ...

    def epoch(self, number: int, start: int) -> Iterator[list[StepResult]]:
        """Train an epoch from its step `start` on; yield results of its steps, as they come: perhaps none.

        Raises PipelineError for a damaged dataset, NonFiniteError where training diverges, and RanksLostError where all
        ranks are lost.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Return the state. May be called between two results. Raises what `epoch` does."""
        ...

    def take_activity(self) -> list[RankRow]:
        """Return what each rank did since the last call: nothing without ranks."""
        ...

    def validate(self, progress: Progress) -> Evaluation:
        """Evaluate the network on the validation split. Raises what `epoch` does."""
        ...

    def evaluate_saved(self, model: Path, views: str) -> Evaluation:
        """Evaluate a saved model on the validation split, with test-time augmentation. Raises what `epoch` does."""
        ...


class LocalEngine:
    """Trains in this process."""

    def __init__(self, trainer: Trainer, streams: Streams, card: ModelCard, clock: EpochClock) -> None:
        self.trainer, self.streams, self.clock, self.recipe = trainer, streams, clock, trainer.recipe
        self.stop_requested: Callable[[], bool] = lambda: False
        self._card = card
        self._pending: PendingBatch | None = None  # started; its result was not yielded yet

    @property
    def step(self) -> int:
        return self.trainer.step

    def epoch(self, number: int, start: int) -> Iterator[list[StepResult]]:
        stream, clock = self.streams.train, self.clock
        steps = stream.micro_batches(number, start=start)
        with closing(steps):
            for batches in steps:
                clock.add_stream(stream.times)
                with clock("compute"):
                    parts = [MicroBatch(batch.images, batch.labels, batch.rows) for batch in batches]
                    started = self.trainer.start_micro_batches(parts, batches[0].global_rows)
                before = self._finish()  # a GPU computes the step that was started meanwhile
                self._pending = started
                yield before  # perhaps none: a checkpoint may be due after each step that was started
        clock.add_stream(stream.times)
        if last := self._finish():
            yield last

    def snapshot(self) -> Snapshot:
        results = self._finish()
        return Snapshot(results, self.trainer.tensors(), self.trainer.eval_network.tensors())

    def take_activity(self) -> list[RankRow]:
        return []

    def validate(self, progress: Progress) -> Evaluation:
        return self.trainer.evaluate(self._val_batches(progress))

    def evaluate_saved(self, model: Path, views: str) -> Evaluation:
        network = self._card.build_network(self.trainer.backend, seed=None)
        load_checkpoint(model).load_into(network)
        return self.trainer.evaluate(self._val_batches(lambda done: None), views, network)

    def _finish(self) -> list[StepResult]:
        """Wait for the pending step; its result, or nothing if there is none."""
        if self._pending is None:
            return []
        pending, self._pending = self._pending, None
        with self.clock("compute"):
            return [result_of(pending)]

    def _val_batches(self, progress: Progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert self.streams.val
        done = 0
        for batch in self.streams.val.epoch(0):
            yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
            done += len(batch.labels)
            progress(done)
