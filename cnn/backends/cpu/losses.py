"""Softmax and cross-entropy as one pass over the rows. N rows, K classes."""

import math

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.simd import (
    LANES,
    fma,
    full_like,
    inner,
    load_masked,
    load_scalar,
    pointer,
    store_masked,
    store_scalar,
)
from cnn.backends.cpu.team import Team, kernel
from cnn.backends.cpu.vector_math import exp


def softmax_cross_entropy(
    logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int, team: Team
) -> tuple[Array, Array]:
    """See `ReferenceBackend.softmax_cross_entropy`."""
    team = team.for_size(logits.size)
    losses, gradient = np.zeros(team.threads), np.empty(logits.shape, logits.dtype)  # (T,), (N, K)
    weights = np.ones(logits.shape[1], logits.dtype) if class_weights is None else class_weights  # (K,)
    pass_over = _softmax_cross_entropy
    if targets.ndim == 2:
        pass_over, targets = _softmax_cross_entropy_of_values, np.ascontiguousarray(targets, logits.dtype)  # (N, K)
    team.run(pass_over, np.ascontiguousarray(logits), targets, smoothing, weights, denominator, losses, gradient)
    return logits.dtype.type(losses.sum()), gradient


@inner
def _exponentials(z, classes, dst):  # type: ignore[no-untyped-def]
    """exp(z - the largest z) of a row is written to `to`; the largest, in float64, is returned."""
    peak = np.float64(load_scalar(z, 0))
    for k in range(1, classes):
        peak = max(peak, np.float64(load_scalar(z, k)))
    for k in range(0, classes, LANES):
        count = min(LANES, classes - k)
        store_masked(dst, k, exp(load_masked(z, k, count) - full_like(z, peak)), count)
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
            total += load_scalar(d, k)
            sum_of_logits += load_scalar(z, k) - peak
        weight, log_total, even = weights[label] / denominator, math.log(total), smoothing / classes
        of_label = load_scalar(z, label) - peak - log_total  # log p of the true class
        losses[t] -= weight * (even * (sum_of_logits - classes * log_total) + (1.0 - smoothing) * of_label)
        for k in range(0, classes, LANES):
            count, of_even = min(LANES, classes - k), full_like(z, -weight * even)
            store_masked(d, k, fma(load_masked(d, k, count), full_like(z, weight / total), of_even), count)
        store_scalar(d, label, load_scalar(d, label) - weight * (1.0 - smoothing))


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
            value = np.float64(load_scalar(values, k))
            total += load_scalar(d, k)
            weight += value * weights[k]
            of_targets += (even + (1.0 - smoothing) * value) * (load_scalar(z, k) - peak)
        weight /= denominator
        losses[t] -= weight * (of_targets - math.log(total))
        for k in range(0, classes, LANES):
            count = min(LANES, classes - k)
            target = fma(load_masked(values, k, count), full_like(z, 1.0 - smoothing), full_like(z, even))
            p = load_masked(d, k, count) * full_like(z, 1.0 / total)
            store_masked(d, k, (p - target) * full_like(z, weight), count)
