"""Evaluation metrics: accuracy, confusion matrix, scores by class, confidence intervals."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


class ClassScores(NamedTuple):
    """Scores by class, float64 (C,) each; NaN where undefined."""

    precision: np.ndarray  # fraction of the images predicted as the class that are of it
    recall: np.ndarray  # fraction of the images of the class that are predicted as it
    f1: np.ndarray  # the harmonic mean of precision and recall
    images: np.ndarray  # int64 (C,): number of images of the class


class EvaluatedBatch(NamedTuple):
    """A network's sum of losses and outputs for a batch of images with known classes."""

    loss: float
    outputs: np.ndarray  # float32 (B, C), before softmax
    labels: np.ndarray  # int64 (B,), the true classes


@dataclass(frozen=True)
class Evaluation:
    """A network's mean loss and outputs for images with known classes.

    loss: the mean over images.
    outputs: float32 (N, C), before softmax.
    labels: int64 (N,), the true classes.
    """

    loss: float
    outputs: np.ndarray
    labels: np.ndarray

    @property
    def rows(self) -> int:
        """The number of images."""
        return len(self.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted classes, those of the largest outputs: int64 (N,)."""
        return self.outputs.argmax(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, rows being true and columns predicted classes: int64 (C, C)."""
        classes = self.outputs.shape[1]
        pairs = self.labels * classes + self.predicted  # (N,)
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0 to 1; 0 without images."""
        return float((self.predicted == self.labels).sum()) / max(self.rows, 1)

    def top(self, k: int) -> float:
        """Top-`k` accuracy, 0 to 1: the fraction of images whose true class is among the `k` largest outputs."""
        own = np.take_along_axis(self.outputs, self.labels[:, None], axis=1)  # (N, 1)
        before = np.arange(self.outputs.shape[1]) < self.labels[:, None]  # (N, C): equal outputs rank in class order
        ranks = ((self.outputs > own) | ((self.outputs == own) & before)).sum(axis=1)  # (N,) from 0
        return float((ranks < k).sum()) / max(self.rows, 1)

    @property
    def by_class(self) -> ClassScores:
        """Precision, recall, F1 and number of images of each class."""
        correct, predicted = np.diag(self.confusion), self.confusion.sum(axis=0)  # (C,) each
        images = self.confusion.sum(axis=1)  # (C,)
        return ClassScores(
            _ratio(correct, predicted), _ratio(correct, images), _ratio(2 * correct, predicted + images), images
        )

    @property
    def macro_f1(self) -> float:
        """The unweighted mean F1 of the classes that have images; NaN without images."""
        scores = self.by_class
        f1 = scores.f1[scores.images > 0]
        return float(f1.mean()) if len(f1) else math.nan


def wilson_interval(accuracy: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval (Wilson, 1927) of an `accuracy`, 0 to 1, over `rows` images; 95 % at the default z."""
    if not rows:
        return 0.0, 1.0
    centre = (accuracy + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z / (1 + z * z / rows) * math.sqrt(accuracy * (1 - accuracy) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _ratio(count: np.ndarray, total: np.ndarray) -> np.ndarray:
    """count / total, NaN where the total is 0: float64 (C,)."""
    return np.divide(count, total, out=np.full(len(count), np.nan), where=total > 0)
