"""Softmax and cross-entropy as one pass over the rows. N rows, K classes."""

import math

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.functions import exponential
from cnn.backends.cpu.simd import LANES, fma, inner, like, load_first, number_at, pointer, put_number, store_first
from cnn.backends.cpu.team import Team, kernel


def softmax_cross_entropy(
    logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int, team: Team
) -> tuple[Array, Array]:
    """See `ReferenceBackend.softmax_cross_entropy`."""
    team = team.worth(logits.size)
    losses, gradient = np.zeros(team.threads), np.empty(logits.shape, logits.dtype)  # (T,), (N, K)
    weights = np.ones(logits.shape[1], logits.dtype) if class_weights is None else class_weights  # (K,)
    pass_over = _softmax_cross_entropy
    if targets.ndim == 2:
        pass_over, targets = _softmax_cross_entropy_of_values, np.ascontiguousarray(targets, logits.dtype)  # (N, K)
    team.run(pass_over, np.ascontiguousarray(logits), targets, smoothing, weights, denominator, losses, gradient)
    return logits.dtype.type(losses.sum()), gradient


@inner
def _exponentials(z, classes, to):  # type: ignore[no-untyped-def]
    """exp(z - the largest z) of a row is written to `to`; the largest, in float64, is returned."""
    peak = np.float64(number_at(z, 0))
    for k in range(1, classes):
        peak = max(peak, np.float64(number_at(z, k)))
    for k in range(0, classes, LANES):
        count = min(LANES, classes - k)
        store_first(to, k, exponential(load_first(z, k, count) - like(z, peak)), count)
    return peak


@kernel
def _softmax_cross_entropy(  # type: ignore[no-untyped-def]
    t, threads, logits, labels, smoothing, weights, denominator, losses, gradient
):
    """losses (T,): the sum over share t of the rows; gradient (N, K) is written. Sums are float64."""
    rows, classes = logits.shape
    for n in range(rows * t // threads, rows * (t + 1) // threads):
        z, d, label = pointer(logits, n * classes), pointer(gradient, n * classes), labels[n]
        peak = _exponentials(z, classes, d)
        total, sum_of_logits = 0.0, 0.0
        for k in range(classes):
            total += number_at(d, k)
            sum_of_logits += number_at(z, k) - peak
        weight, log_total, even = weights[label] / denominator, math.log(total), smoothing / classes
        of_label = number_at(z, label) - peak - log_total  # log p of the true class
        losses[t] -= weight * (even * (sum_of_logits - classes * log_total) + (1.0 - smoothing) * of_label)
        for k in range(0, classes, LANES):
            count, of_even = min(LANES, classes - k), like(z, -weight * even)
            store_first(d, k, fma(load_first(d, k, count), like(z, weight / total), of_even), count)
        put_number(d, label, number_at(d, label) - weight * (1.0 - smoothing))


@kernel
def _softmax_cross_entropy_of_values(  # type: ignore[no-untyped-def]
    t, threads, logits, targets, smoothing, weights, denominator, losses, gradient
):
    """As `_softmax_cross_entropy`, for targets (N, K) of which each row sums to 1."""
    rows, classes = logits.shape
    for n in range(rows * t // threads, rows * (t + 1) // threads):
        z, d, values = pointer(logits, n * classes), pointer(gradient, n * classes), pointer(targets, n * classes)
        peak, even = _exponentials(z, classes, d), smoothing / classes
        total, weight, of_targets = 0.0, 0.0, 0.0
        for k in range(classes):
            value = np.float64(number_at(values, k))
            total += number_at(d, k)
            weight += value * weights[k]
            of_targets += (even + (1.0 - smoothing) * value) * (number_at(z, k) - peak)
        weight /= denominator
        losses[t] -= weight * (of_targets - math.log(total))
        for k in range(0, classes, LANES):
            count = min(LANES, classes - k)
            target = fma(load_first(values, k, count), like(z, 1.0 - smoothing), like(z, even))
            p = load_first(d, k, count) * like(z, 1.0 / total)
            store_first(d, k, (p - target) * like(z, weight), count)
