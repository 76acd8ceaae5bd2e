"""Results of training steps, and steps whose result the device has not reported yet."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cnn.errors import NonFiniteError


class BatchResult(NamedTuple):
    """Sum of the losses and number of correct predictions of a training batch, before its update."""

    loss_sum: float
    correct: int
    rows: int


class PendingBatch:
    """A training step that was started. A GPU may still compute it; `result` waits for it.

    step: number of updates before it.
    lr: its learning rate.
    rows: number of images.
    read_outcome: waits for the step's outcome (4,) float64: see `cnn.backends.base.OK`.
    settle: sets `settled`, after that of all earlier batches.
    """

    def __init__(
        self, step: int, lr: float, rows: int,
        read_outcome: Callable[[], np.ndarray], settle: Callable[["PendingBatch"], None],
    ) -> None:
        self.step, self.lr, self.rows = step, lr, rows
        self.read_outcome, self._settle = read_outcome, settle
        self.settled: BatchResult | NonFiniteError | None = None

    def result(self) -> BatchResult:
        """Wait for the step.

        Raises `NonFiniteError` where its loss or gradient, or that of a pending step before it, is not finite. The
        weights are as before that step then, to which the trainer has gone back.
        """
        if self.settled is None:
            self._settle(self)
        if isinstance(self.settled, NonFiniteError):
            raise self.settled
        assert self.settled is not None
        return self.settled
