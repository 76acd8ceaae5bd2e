"""The trained network on the validation part: what it says of every image, and which are worth a look."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cnn.evaluation.calibration import MIN_ROWS, Calibration, Reliability, calibrate, reliability
from cnn.evaluation.metrics import Evaluation, wilson_interval
from cnn.inference.predictor import Predictor
from cnn.losses import SoftmaxCrossEntropy
from jobs.console.progress import bar
from pipeline.dataset.store import Split
from pipeline.loader.stream import BatchStream

BATCH_SIZE = 64
_MIN_ROWS = 1e-12  # a probability of 0 is a loss to compare with others, too


class Pair(NamedTuple):
    """A class taken for another: how often, of how many images, and some of them (rows, the surest first)."""

    true: int
    predicted: int
    times: int
    of: int
    rows: list[int]


@dataclass(frozen=True)
class RunEvaluation:
    """What the network says of the validation part.

    named, true    float32 (N,) each: the probability of the class it names, and of the true one
    temperature    of the model file, which these are by
    """

    evaluation: Evaluation
    named: np.ndarray
    true: np.ndarray
    temperature: float
    cross_entropy: bool

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy lies with 95 % confidence."""
        return wilson_interval(self.evaluation.accuracy, self.evaluation.rows)

    @property
    def guessing(self) -> float:
        """The accuracy of always naming the commonest class."""
        return float(self.evaluation.by_class.images.max()) / self.evaluation.rows

    @cached_property
    def calibration(self) -> Calibration | None:
        """None where the loss is another than cross-entropy, or there are too few images."""
        if not self.cross_entropy or self.evaluation.rows < MIN_ROWS:
            return None
        return calibrate(self.evaluation.outputs, self.evaluation.labels)

    def reliability(self, temperature: float) -> Reliability:
        """How often the network is right, by how sure it is with this temperature."""
        return reliability(self.evaluation.outputs, self.evaluation.labels, temperature)

    def worst(self, most: int) -> list[int]:
        """Rows of mistaken images, those first whose label the network believes in least."""
        mistaken = np.flatnonzero(self.evaluation.predicted != self.evaluation.labels)  # (M,)
        loss = -np.log(np.maximum(self.true[mistaken], _MIN_ROWS))  # (M,)
        order = np.lexsort((mistaken, -self.named[mistaken], -loss))[:most]
        return [int(row) for row in mistaken[order]]

    def pairs(self, most: int, images: int) -> list[Pair]:
        """The classes that are most often taken for another."""
        confusion = self.evaluation.confusion.copy()  # (C, C)
        of = confusion.sum(axis=1)  # (C,)
        np.fill_diagonal(confusion, 0)
        some = np.argsort(-confusion, axis=None, kind="stable")[:most]  # (P,)
        found = []
        for true, predicted in zip(*np.unravel_index(some, confusion.shape), strict=True):
            if count := int(confusion[true, predicted]):
                rows = self._rows_of(int(true), int(predicted))[:images]
                found.append(Pair(int(true), int(predicted), count, int(of[true]), rows))
        return found

    def _rows_of(self, true: int, predicted: int) -> list[int]:
        rows = np.flatnonzero((self.evaluation.labels == true) & (self.evaluation.predicted == predicted))  # (M,)
        return [int(row) for row in rows[np.argsort(-self.named[rows], kind="stable")]]


def evaluate_run(predictor: Predictor, val: Split, workers: int) -> RunEvaluation:
    """Show `predictor` every image of a part of one row or more. Raises DamageError where a chunk is damaged.

    What it says is kept, the images are not.
    """
    loss, backend = predictor.loss, predictor.backend
    outputs = np.empty((val.rows, len(predictor.card.class_names)), np.float32)  # (N, C)
    named, true = np.empty(val.rows, np.float32), np.empty(val.rows, np.float32)  # (N,) each
    temperature = predictor.card.temperature
    stream = BatchStream(val, BATCH_SIZE, seed=0, shuffle=False, workers=workers)
    with bar("validating", "images", val.rows, ends=False) as progress:
        for batch in stream.epoch(0):
            logits = predictor.logits(batch.images)  # (B, C)
            scaled = backend.asarray(logits) / temperature  # (B, C)
            probabilities = backend.to_host(loss.probabilities(backend, scaled))  # (B, C)
            outputs[batch.rows] = logits
            each = np.arange(len(logits))
            named[batch.rows] = probabilities[each, logits.argmax(axis=1)]
            true[batch.rows] = probabilities[each, batch.labels]
            progress.update(int(batch.rows[-1]) + 1)
    evaluation = Evaluation(math.nan, outputs, val.labels)  # nobody asks for its loss
    return RunEvaluation(evaluation, named, true, temperature, isinstance(loss, SoftmaxCrossEntropy))
