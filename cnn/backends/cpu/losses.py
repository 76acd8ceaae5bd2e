"""Softmax and cross-entropy, fused into one pass over the rows. N rows, K classes.

Each row has a loss of its own, added up at the end: a sum for each thread would depend on their number.
"""

import math

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.simd import (
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
from cnn.backends.cpu.widths import NARROW


def softmax_cross_entropy(
    logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int, team: Team
) -> tuple[Array, Array]:
    """See `ReferenceBackend.softmax_cross_entropy`."""
    team = team.for_size(logits.size)
    losses, gradient = np.empty(len(logits)), empty(logits.shape, logits.dtype)  # (N,), (N, K)
    weights = np.ones(logits.shape[1], logits.dtype) if class_weights is None else class_weights  # (K,)
    kernel = _hard_label_kernel
    if targets.ndim == 2:
        kernel, targets = _soft_label_kernel, np.ascontiguousarray(targets, logits.dtype)  # (N, K)
    team.run(kernel[NARROW], np.ascontiguousarray(logits), targets, smoothing, weights, denominator, losses, gradient)
    return logits.dtype.type(losses.sum()), gradient


@inner
def _exp_row(z, classes, dst):  # type: ignore[no-untyped-def]
    """dst (K,) = exp(z - max(z)); returns max(z) in float64."""
    peak = np.float64(load_scalar(z, 0))
    for k in range(1, classes):
        peak = max(peak, np.float64(load_scalar(z, k)))
    for k in range(0, classes, NARROW):
        count = min(NARROW, classes - k)
        store_masked(dst, k, exp(load_masked(z, k, count) - full_like(z, peak)), count)
    return peak


@kernel
def _hard_label_kernel(t, threads, logits, labels, smoothing, weights, denominator, losses, gradient):  # type: ignore[no-untyped-def]
    """Slice t of the rows of gradient (N, K) and losses (N,), for class indices (N,). Sums are float64."""
    rows, classes = logits.shape
    for n in range(rows * t // threads, rows * (t + 1) // threads):
        z, d, label = pointer(logits, n * classes), pointer(gradient, n * classes), labels[n]
        peak = _exp_row(z, classes, d)
        total, logit_sum = 0.0, 0.0
        for k in range(classes):
            total += load_scalar(d, k)
            logit_sum += load_scalar(z, k) - peak
        weight, log_total, uniform = weights[label] / denominator, math.log(total), smoothing / classes
        label_log_p = load_scalar(z, label) - peak - log_total
        losses[n] = -weight * (uniform * (logit_sum - classes * log_total) + (1.0 - smoothing) * label_log_p)
        for k in range(0, classes, NARROW):
            count, smooth_grad = min(NARROW, classes - k), full_like(z, -weight * uniform)
            store_masked(d, k, fma(load_masked(d, k, count), full_like(z, weight / total), smooth_grad), count)
        store_scalar(d, label, load_scalar(d, label) - weight * (1.0 - smoothing))


@kernel
def _soft_label_kernel(t, threads, logits, targets, smoothing, weights, denominator, losses, gradient):  # type: ignore[no-untyped-def]
    """As `_hard_label_kernel`, for soft labels (N, K), each row of which sums to 1."""
    rows, classes = logits.shape
    for n in range(rows * t // threads, rows * (t + 1) // threads):
        z, d, values = pointer(logits, n * classes), pointer(gradient, n * classes), pointer(targets, n * classes)
        peak, uniform = _exp_row(z, classes, d), smoothing / classes
        total, weight, target_logits = 0.0, 0.0, 0.0
        for k in range(classes):
            value = np.float64(load_scalar(values, k))
            total += load_scalar(d, k)
            weight += value * weights[k]
            target_logits += (uniform + (1.0 - smoothing) * value) * (load_scalar(z, k) - peak)
        weight /= denominator
        losses[n] = -weight * (target_logits - math.log(total))
        for k in range(0, classes, NARROW):
            count = min(NARROW, classes - k)
            target = fma(load_masked(values, k, count), full_like(z, 1.0 - smoothing), full_like(z, uniform))
            p = load_masked(d, k, count) * full_like(z, 1.0 / total)
            store_masked(d, k, (p - target) * full_like(z, weight), count)
