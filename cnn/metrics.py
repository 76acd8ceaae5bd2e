"""What a network got right."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """The outcome over a set of pictures: mean loss, and `confusion` int64 (C, C), [true class, predicted class]."""

    loss: float
    confusion: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of pictures whose largest output is their true class, 0 to 1."""
        return float(np.trace(self.confusion)) / max(self.rows, 1)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often each true class (row) was taken for each class (column): int64 (classes, classes)."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
