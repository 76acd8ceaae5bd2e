"""Softmax and cross-entropy as one pass over the rows. N rows, K classes."""

import math

import numpy as np

from cnn.backend import Array
from cnn.backends.cpu.simd import number_at, pointer, put_number
from cnn.backends.cpu.team import Team, kernel


def softmax_cross_entropy(
    logits: Array, labels: Array, smoothing: float, class_weights: Array | None, denominator: int, team: Team
) -> tuple[Array, Array]:
    """See `ReferenceBackend.softmax_cross_entropy`."""
    team = team.worth(logits.size)
    losses, gradient = np.zeros(team.threads), np.empty(logits.shape, logits.dtype)  # (T,), (N, K)
    weights = np.ones(logits.shape[1], logits.dtype) if class_weights is None else class_weights  # (K,)
    team.run(
        _softmax_cross_entropy, np.ascontiguousarray(logits), labels, smoothing, weights, denominator, losses, gradient
    )
    return logits.dtype.type(losses.sum()), gradient


@kernel
def _softmax_cross_entropy(  # type: ignore[no-untyped-def]
    t, threads, logits, labels, smoothing, weights, denominator, losses, gradient
):
    """losses (T,): the sum over share t of the rows; gradient (N, K) is written. Sums are float64."""
    rows, classes = logits.shape
    for n in range(rows * t // threads, rows * (t + 1) // threads):
        z, d, label = pointer(logits, n * classes), pointer(gradient, n * classes), labels[n]
        peak = np.float64(number_at(z, 0))
        for k in range(1, classes):
            peak = max(peak, np.float64(number_at(z, k)))
        total = 0.0
        for k in range(classes):
            power = math.exp(number_at(z, k) - peak)
            put_number(d, k, power)
            total += power
        log_total, weight = math.log(total), weights[label] / denominator
        for k in range(classes):
            target = smoothing / classes + (1.0 - smoothing if k == label else 0.0)
            losses[t] -= weight * target * (number_at(z, k) - peak - log_total)
            put_number(d, k, weight * (number_at(d, k) / total - target))
