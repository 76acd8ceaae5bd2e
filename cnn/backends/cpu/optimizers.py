"""The optimizers' steps and the gradient's norm: one pass over the flat vectors, eight numbers at a time.

Factors that are the same for all numbers are computed in double precision, and enter the loop in the vectors' own. The
kernels do all whole lanes of numbers; the last few go through the reference's array code.
"""

import math
from collections.abc import Iterator

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.simd import LANES, fma, full_like, load, pointer, sqrt, store, to_float64
from cnn.backends.cpu.team import Team, kernel
from cnn.backends.reference import ReferenceBackend

_REFERENCE = ReferenceBackend()


def squared_norm(vector: Array, team: Team) -> float:
    """See `ReferenceBackend.squared_norm`."""
    team = team.for_size(vector.size)
    sums = np.zeros((team.threads, LANES))
    team.run(_squared_norm, vector, sums)
    return float(sums.sum()) + _REFERENCE.squared_norm(vector[vector.size // LANES * LANES :])


def sgd_step(
    weights: Array, gradient: Array, velocity: Array, decayed: int, gradient_scale: float,
    lr: float, momentum: float, nesterov: bool, weight_decay: float, team: Team,
) -> None:
    """See `ReferenceBackend.sgd_step`."""
    for whole, rest, decay in _stretches(weights.size, decayed, weight_decay):
        w, g, v = weights[whole], gradient[whole], velocity[whole]
        team.for_size(w.size).run(_sgd_step, w, g, v, gradient_scale, lr, momentum, nesterov, decay)
        w, g, v = weights[rest], gradient[rest], velocity[rest]
        _REFERENCE.sgd_step(w, g, v, w.size, gradient_scale, lr, momentum, nesterov, decay)


def adamw_step(
    weights: Array, gradient: Array, first: Array, second: Array, decayed: int, gradient_scale: float,
    lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int, team: Team,
) -> None:
    """See `ReferenceBackend.adamw_step`."""
    for whole, rest, decay in _stretches(weights.size, decayed, weight_decay):
        w, g, m, v = weights[whole], gradient[whole], first[whole], second[whole]
        rate, root_scale = lr / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)
        team.for_size(w.size).run(
            _adamw_step, w, g, m, v, gradient_scale, rate, root_scale, beta1, beta2, epsilon, 1.0 - lr * decay
        )
        w, g, m, v = weights[rest], gradient[rest], first[rest], second[rest]
        _REFERENCE.adamw_step(w, g, m, v, w.size, gradient_scale, lr, beta1, beta2, epsilon, decay, step)


def _stretches(size: int, decayed: int, weight_decay: float) -> Iterator[tuple[slice, slice, float]]:
    """The vectors' two stretches, decayed and not, each as its whole lanes and its last few numbers."""
    for first, last, decay in ((0, decayed, weight_decay), (decayed, size, 0.0)):
        middle = last - (last - first) % LANES
        yield slice(first, middle), slice(middle, last), decay


@kernel
def _squared_norm(t, threads, vector, sums):  # type: ignore[no-untyped-def]
    """sums (T, LANES) float64: of the squares of share t of vector (size,), as two sums that need not wait."""
    pairs = vector.size // (2 * LANES)
    src, dst = pointer(vector, 0), pointer(sums, t * LANES)
    even, odd = full_like(dst, 0), full_like(dst, 0)
    for i in range(pairs * t // threads, pairs * (t + 1) // threads):
        first = to_float64(load(src, 2 * i * LANES))
        second = to_float64(load(src, (2 * i + 1) * LANES))
        even, odd = fma(first, first, even), fma(second, second, odd)
    if t == 0 and vector.size // LANES > 2 * pairs:
        last = to_float64(load(src, 2 * pairs * LANES))
        even = fma(last, last, even)
    store(dst, 0, even + odd)


@kernel
def _sgd_step(t, threads, weights, gradient, velocity, scale, lr, momentum, nesterov, decay):  # type: ignore[no-untyped-def]
    """All (size,); weights and velocity are changed."""
    groups = weights.size // LANES
    w, g, v = pointer(weights, 0), pointer(gradient, 0), pointer(velocity, 0)
    for i in range(groups * t // threads * LANES, groups * (t + 1) // threads * LANES, LANES):
        slope = fma(full_like(w, decay), load(w, i), load(g, i) * full_like(w, scale))
        speed = fma(full_like(w, momentum), load(v, i), slope)
        store(v, i, speed)
        if nesterov:
            speed = fma(full_like(w, momentum), speed, slope)
        store(w, i, fma(full_like(w, -lr), speed, load(w, i)))


@kernel
def _adamw_step(  # type: ignore[no-untyped-def]
    t, threads, weights, gradient, first, second, scale, rate, root_scale, beta1, beta2, epsilon, keep
):
    """All (size,); weights, first and second are changed. Rate and root_scale have the moments' corrections in them."""
    groups = weights.size // LANES
    w, g, m, v = pointer(weights, 0), pointer(gradient, 0), pointer(first, 0), pointer(second, 0)
    for i in range(groups * t // threads * LANES, groups * (t + 1) // threads * LANES, LANES):
        slope = load(g, i) * full_like(w, scale)
        mean = fma(full_like(w, beta1), load(m, i), slope * full_like(w, 1.0 - beta1))
        square = fma(full_like(w, beta2), load(v, i), slope * slope * full_like(w, 1.0 - beta2))
        store(m, i, mean)
        store(v, i, square)
        root = fma(sqrt(square), full_like(w, root_scale), full_like(w, epsilon))
        store(w, i, fma(full_like(w, keep), load(w, i), full_like(w, -rate) * (mean / root)))
