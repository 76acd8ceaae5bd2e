"""Confidence calibration: expected calibration error and temperature scaling.

Of the images predicted with a confidence of 90 %, nine in ten should be correct. Label smoothing makes a network
under-confident, long training over-confident. Dividing its outputs by one temperature before the softmax corrects most
of it, and changes no predicted class (Guo et al., 2017, "On Calibration of Modern Neural Networks").
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MIN_ROWS = 10  # the smallest number of images to calibrate with
_BINS = 15
_MIN_TEMPERATURE, MAX_TEMPERATURE = 0.02, 50.0
_MAX_FIT_ROWS = 10_000  # images that a temperature is fitted to
_BLOCK = 4096  # rows whose probabilities are in memory at a time


@dataclass(frozen=True)
class Calibration:
    """The best temperature for some images, and their expected calibration error without and with scaling, 0 to 1.

    `error_scaled` is cross-validated: each half is scaled with the temperature fitted to the other half.
    """

    temperature: float
    error: float
    error_scaled: float


class Reliability(NamedTuple):
    """Reliability diagram: images by confidence, in B bins of equal width from 0 to 1."""

    images: np.ndarray  # int64 (B,)
    confidence: np.ndarray  # float64 (B,): the mean probability of the predicted class, NaN in an empty bin
    accuracy: np.ndarray  # float64 (B,): the fraction of correct predictions, NaN in an empty bin

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: the mean over images of |confidence - accuracy| of their bin."""
        filled = self.images > 0  # (B,)
        gaps = np.abs(self.confidence[filled] - self.accuracy[filled])
        return float((gaps * self.images[filled]).sum() / max(self.images.sum(), 1))


def calibrate(outputs: np.ndarray, labels: np.ndarray) -> Calibration:
    """Calibrate outputs (N, C) before the softmax, of images of true classes (N,) in random order."""
    return Calibration(
        fit_temperature(outputs, labels),
        reliability(outputs, labels).error,
        reliability(outputs, labels, temperatures_by_halves(outputs, labels)).error,
    )


def temperatures_by_halves(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each of outputs (N, C) of true classes (N,), the temperature fitted to the other half: float64 (N,)."""
    temperatures = np.empty(len(labels))  # (N,)
    halves = slice(None, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        temperatures[half] = fit_temperature(outputs[other], labels[other])
    return temperatures


def reliability(
    outputs: np.ndarray, labels: np.ndarray, temperature: float | np.ndarray = 1.0, bins: int = _BINS
) -> Reliability:
    """The reliability diagram of outputs (N, C), divided by a temperature () or (N,), for true classes (N,)."""
    confidences = confidence(outputs, temperature)  # (N,)
    correct = outputs.argmax(axis=1) == labels  # (N,)
    which = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)  # (N,); a bin includes its upper end
    images = np.bincount(which, minlength=bins)  # (B,)
    sums = (np.bincount(which, weights, bins) for weights in (confidences, correct))
    return Reliability(
        images, *(np.divide(sum_, images, out=np.full(bins, np.nan), where=images > 0) for sum_ in sums)
    )


def confidence(outputs: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """The probability of the predicted class, from outputs (N, C) divided by a temperature () or (N,): float64 (N,)."""
    each = np.broadcast_to(temperature, len(outputs))  # (N,)
    blocks = (slice(first, first + _BLOCK) for first in range(0, len(outputs), _BLOCK))
    found = [softmax(outputs[at] / each[at, None]).max(axis=1) for at in blocks]  # (B,) each
    return np.concatenate([np.empty(0), *found])


def fit_temperature(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest cross-entropy for outputs (N, C) and true classes (N,); 1 without images.

    The cross-entropy is convex in 1 / temperature: bisection finds where its slope is 0. One uniform
    pseudo-observation acts as a prior; without it the optimum is T -> 0 when every prediction is correct (cf. Platt,
    1999).
    """
    z = outputs[:_MAX_FIT_ROWS].astype(np.float64)  # (N, C)
    if not len(z):
        return 1.0
    prior = 1.0 / (len(z) + 1)  # the weight of the pseudo-observation
    own = np.take_along_axis(z, labels[: len(z), None], axis=1)[:, 0]  # (N,)
    target = (1.0 - prior) * own + prior * z.mean(axis=1)  # (N,)

    def slope(temperature: float) -> float:
        expected = (softmax(z / temperature) * z).sum(axis=1)  # (N,)
        return float((expected - target).mean())

    low, high = np.log(_MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(16):  # to a relative precision of 1e-4
        middle = (low + high) / 2
        if slope(float(np.exp(middle))) > 0.0:  # over-confident
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Softmax of outputs (N, C) over the classes: float64 (N, C)."""
    exponentials = np.exp((outputs - outputs.max(axis=1, keepdims=True)).astype(np.float64))  # (N, C)
    return exponentials / exponentials.sum(axis=1, keepdims=True)
