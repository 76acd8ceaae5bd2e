"""Evaluate a model on the validation split: accuracy, most common confusions, mistakes with the highest loss."""

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
_MIN_PROBABILITY = 1e-12  # so that the loss of a probability of 0 is finite


class Confusion(NamedTuple):
    """A true class predicted as another class.

    wrong  images of the true class predicted as the other
    total  images of the true class
    rows   some of these images, those predicted with the highest confidence first
    """

    true: int
    predicted: int
    wrong: int
    total: int
    rows: list[int]


@dataclass(frozen=True)
class ValidationResult:
    """A model's outputs for the validation split.

    confidence        float32 (N,): the probability of the predicted class
    true_probability  float32 (N,): the probability of the true class
    temperature       of the model file; both probabilities use it
    cross_entropy     whether the model was trained with the softmax cross-entropy
    """

    evaluation: Evaluation
    confidence: np.ndarray
    true_probability: np.ndarray
    temperature: float
    cross_entropy: bool

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy."""
        return wilson_interval(self.evaluation.accuracy, self.evaluation.rows)

    @property
    def baseline(self) -> float:
        """The accuracy of always predicting the most common class."""
        return float(self.evaluation.by_class.images.max()) / self.evaluation.rows

    @cached_property
    def calibration(self) -> Calibration | None:
        """None where the loss is not the cross-entropy, or there are too few images."""
        if not self.cross_entropy or self.evaluation.rows < MIN_ROWS:
            return None
        return calibrate(self.evaluation.outputs, self.evaluation.labels)

    def reliability(self, temperature: float) -> Reliability:
        """Accuracy by confidence, with the outputs divided by this temperature."""
        return reliability(self.evaluation.outputs, self.evaluation.labels, temperature)

    def top_losses(self, count: int) -> list[int]:
        """Rows of the misclassified images with the highest loss, highest first."""
        wrong = np.flatnonzero(self.evaluation.predicted != self.evaluation.labels)  # (M,)
        loss = -np.log(np.maximum(self.true_probability[wrong], _MIN_PROBABILITY))  # (M,)
        order = np.lexsort((wrong, -self.confidence[wrong], -loss))[:count]
        return [int(row) for row in wrong[order]]

    def top_confusions(self, count: int, images: int) -> list[Confusion]:
        """The `count` most common confusions, with up to so many `images` each."""
        confusion = self.evaluation.confusion.copy()  # (C, C)
        totals = confusion.sum(axis=1)  # (C,)
        np.fill_diagonal(confusion, 0)
        largest = np.argsort(-confusion, axis=None, kind="stable")[:count]  # (P,)
        found = []
        for true, predicted in zip(*np.unravel_index(largest, confusion.shape), strict=True):
            if wrong := int(confusion[true, predicted]):
                rows = self._rows_of(int(true), int(predicted))[:images]
                found.append(Confusion(int(true), int(predicted), wrong, int(totals[true]), rows))
        return found

    def _rows_of(self, true: int, predicted: int) -> list[int]:
        rows = np.flatnonzero((self.evaluation.labels == true) & (self.evaluation.predicted == predicted))  # (M,)
        return [int(row) for row in rows[np.argsort(-self.confidence[rows], kind="stable")]]


def evaluate_model(predictor: Predictor, val: Split, workers: int) -> ValidationResult:
    """Evaluate `predictor` on a split with at least one row. Raises DamageError where a chunk is damaged."""
    loss, backend = predictor.loss, predictor.backend
    outputs = np.empty((val.rows, len(predictor.card.class_names)), np.float32)  # (N, C)
    confidence, true_probability = np.empty(val.rows, np.float32), np.empty(val.rows, np.float32)  # (N,) each
    temperature = predictor.card.temperature
    stream = BatchStream(val, BATCH_SIZE, seed=0, shuffle=False, workers=workers)
    with bar("validating", "images", val.rows, ends=False) as progress:
        for batch in stream.epoch(0):
            logits = predictor.logits(batch.images)  # (B, C)
            scaled = backend.asarray(logits) / temperature  # (B, C)
            probabilities = backend.to_host(loss.probabilities(backend, scaled))  # (B, C)
            outputs[batch.rows] = logits
            each = np.arange(len(logits))
            confidence[batch.rows] = probabilities[each, logits.argmax(axis=1)]
            true_probability[batch.rows] = probabilities[each, batch.labels]
            progress.update(int(batch.rows[-1]) + 1)
    evaluation = Evaluation(math.nan, outputs, val.labels)  # the report does not use the mean loss
    return ValidationResult(
        evaluation, confidence, true_probability, temperature, isinstance(loss, SoftmaxCrossEntropy)
    )
