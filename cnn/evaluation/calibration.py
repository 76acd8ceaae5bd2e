"""Whether a network is right as often as it says: of images named with 90 %, nine in ten.

Networks are not, by themselves: label smoothing leaves them too timid, long training too bold. One number mends most of
it: outputs are divided by a temperature before they become probabilities (Guo et al., 2017, "On Calibration of Modern
Neural Networks"). No image's label changes by it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MIN_ROWS = 10  # with fewer images there is nothing to calibrate by
_BINS = 15
_MIN_ROWS, _MOST = 0.02, 50.0  # temperatures
_ENOUGH_ROWS = 10_000  # to choose one by
_BLOCK = 4096  # rows whose probabilities are in memory at a time


@dataclass(frozen=True)
class Calibration:
    """The temperature that suits some images best, and the calibration error without and with one, 0 to 1.

    `error_scaled` is of images that the temperature was not chosen by: each half is scaled with that of the other.
    """

    temperature: float
    error: float
    error_scaled: float


class Reliability(NamedTuple):
    """Images by how sure the network is of them, in bins of equal width from 0 to 1."""

    images: np.ndarray  # int64 (B,)
    confidence: np.ndarray  # float64 (B,): the mean probability of the label, NaN in an empty bin
    accuracy: np.ndarray  # float64 (B,): the share that is right

    @property
    def error(self) -> float:
        """The expected calibration error: how far the two are apart, on average over images."""
        some = self.images > 0
        gaps = np.abs(self.confidence[some] - self.accuracy[some])
        return float((gaps * self.images[some]).sum() / max(self.images.sum(), 1))


def calibrate(outputs: np.ndarray, labels: np.ndarray) -> Calibration:
    """For outputs (N, C) before the softmax and true classes (N,), in random order."""
    return Calibration(
        fit_temperature(outputs, labels),
        reliability(outputs, labels).error,
        reliability(outputs, labels, temperatures_by_halves(outputs, labels)).error,
    )


def temperatures_by_halves(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each of outputs (N, C) of true classes (N,) the temperature that suits the other half: float64 (N,)."""
    temperatures = np.empty(len(labels))  # (N,)
    halves = slice(None, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        temperatures[half] = fit_temperature(outputs[other], labels[other])
    return temperatures


def reliability(
    outputs: np.ndarray, labels: np.ndarray, temperature: float | np.ndarray = 1.0, bins: int = _BINS
) -> Reliability:
    """How often outputs (N, C) are right about the true classes (N,), by how sure they are.

    They are divided by a temperature, () or one for each, (N,).
    """
    sure = confidence(outputs, temperature)  # (N,)
    right = outputs.argmax(axis=1) == labels  # (N,)
    which = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)  # (N,); a bin includes its upper end
    images = np.bincount(which, minlength=bins)  # (B,)
    sums = (np.bincount(which, weights, bins) for weights in (sure, right))
    return Reliability(
        images, *(np.divide(sum_, images, out=np.full(bins, np.nan), where=images > 0) for sum_ in sums)
    )


def confidence(outputs: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """The probability of the likeliest class by outputs (N, C), divided by a temperature, () or (N,): float64 (N,)."""
    each = np.broadcast_to(temperature, len(outputs))  # (N,)
    blocks = (slice(first, first + _BLOCK) for first in range(0, len(outputs), _BLOCK))
    found = [softmax(outputs[at] / each[at, None]).max(axis=1) for at in blocks]  # (B,) each
    return np.concatenate([np.empty(0), *found])


def fit_temperature(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least cross-entropy for outputs (N, C) and true classes (N,); 1 if there are none.

    In 1 / temperature the cross-entropy is convex: its slope is zero in one place, found by halving. One more image
    is thought of, of which every class is as likely: or else, where all are right, no temperature would be low enough
    (as Platt, 1999, has it for two classes).
    """
    z = outputs[:_ENOUGH_ROWS].astype(np.float64)  # (N, C)
    if not len(z):
        return 1.0
    thought = 1.0 / (len(z) + 1)
    own = np.take_along_axis(z, labels[: len(z), None], axis=1)[:, 0]  # (N,)
    target = (1.0 - thought) * own + thought * z.mean(axis=1)  # (N,)

    def slope(temperature: float) -> float:
        expected = (softmax(z / temperature) * z).sum(axis=1)  # (N,)
        return float((expected - target).mean())

    low, high = np.log(_MIN_ROWS), np.log(_MOST)
    for _ in range(16):  # to a part in ten thousand
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
