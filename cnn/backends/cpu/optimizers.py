"""Optimizer steps and the gradient norm: one pass over the flat vectors.

Scalar factors are computed in double precision and converted to the vectors' own. The kernels process whole SIMD
vectors; a remainder shorter than one goes through the reference.
"""

import math
from collections.abc import Iterator

import numpy as np

from cnn.backends.base import OK, SCALE, Array
from cnn.backends.cpu.simd import fma, full_like, load, pointer, sqrt, store, to_float64
from cnn.backends.cpu.team import Team, kernel, portion_count
from cnn.backends.cpu.widths import NARROW
from cnn.backends.reference import ReferenceBackend

_REFERENCE = ReferenceBackend()


def squared_norm(vector: Array, team: Team) -> float:
    """See `ReferenceBackend.squared_norm`."""
    team = team.for_size(vector.size)
    sums = np.zeros((portion_count(vector.size), NARROW))  # (S, NARROW); finite in a rehearsal, which sums nothing
    team.run(_squared_norm[NARROW], vector, sums)
    return float(sums.sum()) + _REFERENCE.squared_norm(vector[vector.size // NARROW * NARROW :])


def sgd_step(
    weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
    lr: float, momentum: float, nesterov: bool, weight_decay: float, team: Team,
) -> None:
    """See `ReferenceBackend.sgd_step`."""
    if not outcome[OK]:
        return
    scale = float(outcome[SCALE])
    for full, rest, decay in _sections(weights.size, decayed, weight_decay):
        w, g, v = weights[full], gradient[full], velocity[full]
        team.for_size(w.size).run(_sgd_step[NARROW], w, g, v, scale, lr, momentum, nesterov, decay)
        w, g, v = weights[rest], gradient[rest], velocity[rest]
        _REFERENCE.sgd_step(w, g, v, w.size, outcome, lr, momentum, nesterov, decay)


def adamw_step(
    weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
    lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int, team: Team,
) -> None:
    """See `ReferenceBackend.adamw_step`."""
    if not outcome[OK]:
        return
    scale = float(outcome[SCALE])
    for full, rest, decay in _sections(weights.size, decayed, weight_decay):
        w, g, m, v = weights[full], gradient[full], first[full], second[full]
        rate, root_scale = lr / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)
        team.for_size(w.size).run(
            _adamw_step[NARROW], w, g, m, v, scale, rate, root_scale, beta1, beta2, epsilon, 1.0 - lr * decay
        )
        w, g, m, v = weights[rest], gradient[rest], first[rest], second[rest]
        _REFERENCE.adamw_step(w, g, m, v, w.size, outcome, lr, beta1, beta2, epsilon, decay, step)


def _sections(size: int, decayed: int, weight_decay: float) -> Iterator[tuple[slice, slice, float]]:
    """The sections with and without weight decay, each as (its whole SIMD vectors, the remainder, the decay)."""
    for first, last, decay in ((0, decayed, weight_decay), (decayed, size, 0.0)):
        middle = last - (last - first) % NARROW
        yield slice(first, middle), slice(middle, last), decay


@kernel
def _squared_norm(t, threads, vector, sums):  # type: ignore[no-untyped-def]
    """sums (S, NARROW) float64 = the sums of squares of the portions of vector (size,), in two accumulators each."""
    pairs, portions = vector.size // (2 * NARROW), len(sums)
    src = pointer(vector, 0)
    for s in range(portions * t // threads, portions * (t + 1) // threads):
        dst = pointer(sums, s * NARROW)
        even, odd = full_like(dst, 0), full_like(dst, 0)
        for i in range(pairs * s // portions, pairs * (s + 1) // portions):
            first = to_float64(load(src, 2 * i * NARROW))
            second = to_float64(load(src, (2 * i + 1) * NARROW))
            even, odd = fma(first, first, even), fma(second, second, odd)
        if s == 0 and vector.size // NARROW > 2 * pairs:
            last = to_float64(load(src, 2 * pairs * NARROW))
            even = fma(last, last, even)
        store(dst, 0, even + odd)


@kernel
def _sgd_step(t, threads, weights, gradient, velocity, scale, lr, momentum, nesterov, decay):  # type: ignore[no-untyped-def]
    """Update slice t of weights and velocity, all (size,)."""
    vectors = weights.size // NARROW
    w, g, v = pointer(weights, 0), pointer(gradient, 0), pointer(velocity, 0)
    for i in range(vectors * t // threads * NARROW, vectors * (t + 1) // threads * NARROW, NARROW):
        grad = fma(full_like(w, decay), load(w, i), load(g, i) * full_like(w, scale))
        update = fma(full_like(w, momentum), load(v, i), grad)
        store(v, i, update)
        if nesterov:
            update = fma(full_like(w, momentum), update, grad)
        store(w, i, fma(full_like(w, -lr), update, load(w, i)))


@kernel
def _adamw_step(  # type: ignore[no-untyped-def]
    t, threads, weights, gradient, first, second, scale, rate, root_scale, beta1, beta2, epsilon, decay_factor
):
    """Update slice t of weights, first and second, all (size,). `rate` and `root_scale` include the bias correction."""
    vectors = weights.size // NARROW
    w, g, m, v = pointer(weights, 0), pointer(gradient, 0), pointer(first, 0), pointer(second, 0)
    for i in range(vectors * t // threads * NARROW, vectors * (t + 1) // threads * NARROW, NARROW):
        grad = load(g, i) * full_like(w, scale)
        mean = fma(full_like(w, beta1), load(m, i), grad * full_like(w, 1.0 - beta1))
        square = fma(full_like(w, beta2), load(v, i), grad * grad * full_like(w, 1.0 - beta2))
        store(m, i, mean)
        store(v, i, square)
        root = fma(sqrt(square), full_like(w, root_scale), full_like(w, epsilon))
        store(w, i, fma(full_like(w, decay_factor), load(w, i), full_like(w, -rate) * (mean / root)))
