"""Whether a network is right as often as it says: of pictures named with 90 %, nine in ten.

Networks are not, by themselves: label smoothing leaves them too timid, long training too bold. One number mends most of
it: outputs are divided by a temperature before they become probabilities (Guo et al., 2017, "On Calibration of Modern
Neural Networks"). No picture's label changes by it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_BINS = 15
_LEAST, _MOST = 0.02, 50.0  # temperatures; where all pictures are right, or none, there is no best one
_ENOUGH_ROWS = 20_000


@dataclass(frozen=True)
class Calibration:
    """The temperature that suits some pictures best, and the calibration error without and with one, 0 to 1.

    `error_scaled` is of pictures that the temperature was not chosen by: each half is scaled with that of the other.
    """

    temperature: float
    error: float
    error_scaled: float


class Reliability(NamedTuple):
    """Pictures by how sure the network is of them, in bins of equal width from 0 to 1."""

    pictures: np.ndarray  # int64 (B,)
    confidence: np.ndarray  # float64 (B,): the mean probability of the label, NaN in an empty bin
    accuracy: np.ndarray  # float64 (B,): the share that is right

    @property
    def error(self) -> float:
        """The expected calibration error: how far the two are apart, on average over pictures."""
        some = self.pictures > 0
        gaps = np.abs(self.confidence[some] - self.accuracy[some])
        return float((gaps * self.pictures[some]).sum() / max(self.pictures.sum(), 1))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = _BINS) -> Reliability:
    """From each class's probability (N, C) and the true classes (N,)."""
    confidence = probabilities.max(axis=1).astype(np.float64)  # (N,)
    right = probabilities.argmax(axis=1) == labels  # (N,)
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # (N,); a bin includes its upper end
    pictures = np.bincount(which, minlength=bins)  # (B,)
    sums = (np.bincount(which, weights, bins) for weights in (confidence, right))
    return Reliability(
        pictures, *(np.divide(sum_, pictures, out=np.full(bins, np.nan), where=pictures > 0) for sum_ in sums)
    )


def calibrate(outputs: np.ndarray, labels: np.ndarray) -> Calibration:
    """For outputs (N, C) before the softmax and true classes (N,), in random order, at least one."""
    halves = slice(None, None, 2), slice(1, None, 2)
    scaled = np.empty(outputs.shape)  # (N, C)
    for half, other in (halves, halves[::-1]):
        scaled[half] = softmax(outputs[half] / fit_temperature(outputs[other], labels[other]))
    return Calibration(
        fit_temperature(outputs, labels),
        reliability(softmax(outputs), labels).error,
        reliability(scaled, labels).error,
    )


def fit_temperature(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least cross-entropy for outputs (N, C) and true classes (N,); 1 if there are none.

    In 1 / temperature the cross-entropy is convex: its slope is zero in one place, found by halving.
    """
    z = outputs[:_ENOUGH_ROWS].astype(np.float64)  # (N, C)
    if not len(z):
        return 1.0
    own = np.take_along_axis(z, labels[: len(z), None], axis=1)[:, 0]  # (N,)

    def slope(temperature: float) -> float:
        expected = (softmax(z / temperature) * z).sum(axis=1)  # (N,)
        return float((expected - own).mean())

    low, high = np.log(_LEAST), np.log(_MOST)
    for _ in range(24):  # to a millionth
        middle = (low + high) / 2
        if slope(float(np.exp(middle))) > 0.0:  # too sure of itself
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Outputs (N, C) as probabilities: float64 (N, C)."""
    exponentials = np.exp((outputs - outputs.max(axis=1, keepdims=True)).astype(np.float64))  # (N, C)
    return exponentials / exponentials.sum(axis=1, keepdims=True)
