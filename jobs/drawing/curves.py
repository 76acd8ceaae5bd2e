"""Shared by both drawings of the training curves: `plots` (PNG) and the report's charts (SVG)."""

from collections.abc import Sequence

from jobs.training.metrics import EpochRow

MAX_MARKERS = 40  # epochs; with more, a curve has no markers


def loss_limit(history: Sequence[EpochRow]) -> float:
    """Upper end of the loss axis: a little above the largest training or validation loss."""
    losses = [loss for row in history for loss in (row.train_loss, row.val_loss) if loss is not None]
    return 1.06 * max(losses, default=1.0) or 1.0
