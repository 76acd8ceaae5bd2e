"""What a network got right."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


class ClassScores(NamedTuple):
    """How well each class is recognised, float64 (C,) each; NaN where there is nothing to judge by."""

    precision: np.ndarray  # of the images taken for the class, the share that is of it
    recall: np.ndarray  # of the images of the class, the share taken for it
    f1: np.ndarray  # their harmonic mean
    images: np.ndarray  # int64 (C,): of the class


@dataclass(frozen=True)
class Evaluation:
    """A network's mean loss and `outputs`, float32 (N, C), for images of the true classes `labels`, int64 (N,)."""

    loss: float
    outputs: np.ndarray
    labels: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class of each image's largest output: int64 (N,)."""
        return self.outputs.argmax(axis=1)

    @cached_property
    def confusion(self) -> np.ndarray:
        """How often each true class (row) was taken for each class (column): int64 (C, C)."""
        classes = self.outputs.shape[1]
        pairs = self.labels * classes + self.predicted  # (N,)
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    @property
    def accuracy(self) -> float:
        """The share of images whose largest output is their true class, 0 to 1."""
        return float((self.predicted == self.labels).sum()) / max(self.rows, 1)

    def top(self, k: int) -> float:
        """The share of images whose true class is among their `k` largest outputs, 0 to 1."""
        own = np.take_along_axis(self.outputs, self.labels[:, None], axis=1)  # (N, 1)
        before = np.arange(self.outputs.shape[1]) < self.labels[:, None]  # (N, C): of equals the first comes first
        ranks = ((self.outputs > own) | ((self.outputs == own) & before)).sum(axis=1)  # (N,) from 0
        return float((ranks < k).sum()) / max(self.rows, 1)

    @property
    def by_class(self) -> ClassScores:
        right, taken = np.diag(self.confusion), self.confusion.sum(axis=0)  # (C,) each
        images = self.confusion.sum(axis=1)  # (C,)
        return ClassScores(
            _share(right, taken), _share(right, images), _share(2 * right, taken + images), images
        )

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1, whatever their sizes; classes without images are left out."""
        scores = self.by_class
        f1 = scores.f1[scores.images > 0]
        return float(f1.mean()) if len(f1) else math.nan


def wilson_interval(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true share lies, with 95 % confidence, if `share` of `rows` images were right (Wilson, 1927)."""
    if not rows:
        return 0.0, 1.0
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    reach = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0: float64 (C,)."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
