"""Batch norm, its activation and a 2x2 max pool in one pass: what lies between them is never written to memory.

The forward pass reads the feature maps once after their statistics, and writes only the maxima and which pixel each
is. The backward pass computes the activation's gradient at those pixels alone, since it is zero at all others.

N images, H by W pixels of C channels, whole vectors; PH by PW windows; T threads; S portions of a sum, see team.py.
"""

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu import norm
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.simd import (
    advance,
    fma,
    full_like,
    inner,
    load,
    load_uint,
    pointer,
    select_equal,
    select_greater,
    store,
    store_uint,
    to_float64,
)
from cnn.backends.cpu.team import Team, kernel, portion_count
from cnn.backends.cpu.vector_math import KINDS, activation, activation_grad
from cnn.backends.cpu.widths import LANES, NARROW, WIDE, lanes_for


def fits(x: Array) -> bool:
    """Whether the kernels can compute maps (..., C): whole vectors of channels."""
    return bool(x.shape[-1] % NARROW == 0)


def forward(
    x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str, team: Team
) -> tuple[Array, Array]:
    """The 2x2 maxima of activation(batch norm of x) (N, PH, PW, C), and which pixel of its window each is, 0 to 3."""
    count, height, width, channels = x.shape
    y = empty((count, height // 2, width // 2, channels), x.dtype)  # (N, PH, PW, C)
    winners = empty(y.shape, np.uint8)  # (N, PH, PW, C)
    vectors = _vectors(x, mean, norm.factors(scale, variance, epsilon, x.dtype), shift)  # (3, C)
    team.for_size(x.size).run(_forward[_lanes(x)], KINDS[kind], x, vectors, y, winners)
    return y, winners


def backward(
    dy: Array, winners: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float,
    kind: str, d_scale: Array, d_shift: Array, team: Team,
) -> Array:
    """dx (N, H, W, C) from dy (N, PH, PW, C); writes d_scale and d_shift (C,)."""
    channels, dx, team = x.shape[-1], empty(x.shape, x.dtype), team.for_size(x.size)
    dy, lanes = np.ascontiguousarray(dy), _lanes(x)
    inverse = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)  # (C,)
    vectors = _vectors(x, mean, scale * inverse, shift)  # (3, C)
    totals = np.zeros((portion_count(x.size), 2, channels))  # (S, 2, C)
    scratch = empty((team.threads, 2, channels), x.dtype)  # (T, 2, C)
    team.run(_gradient_sums[lanes], KINDS[kind], dy, winners, x, vectors, scratch, totals)
    slope, offset = norm.set_gradients(totals.sum(axis=0), scale, inverse, x.size, d_scale, d_shift)  # (C,) each
    more = _vectors(x, *vectors, slope, offset)  # (5, C)
    team.run(_input_gradient[lanes], KINDS[kind], dy, winners, x, more, dx)
    return dx


def _lanes(x: Array) -> int:
    return lanes_for(x.shape[-1]) if x.shape[-1] % WIDE == 0 else NARROW


def _vectors(x: Array, *values: Array) -> Array:
    """Values per channel (C,) each, as the kernels take them."""
    vectors = empty((len(values), x.shape[-1]), x.dtype)  # (V, C)
    for vector, value in zip(vectors, values, strict=True):
        vector[:] = value
    return vectors


@kernel
def _forward(t, threads, kind, x, vectors, y, winners):  # type: ignore[no-untyped-def]
    """Slice t of the rows of y and winners (N, PH, PW, C); vectors (3, C): mean, factor and shift."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    below = width * channels
    a, f, b = pointer(vectors, 0), pointer(vectors, channels), pointer(vectors, 2 * channels)
    zero, one, two, three = full_like(a, 0), full_like(a, 1), full_like(a, 2), full_like(a, 3)
    for row in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        src = pointer(x, (row // out_h * height + row % out_h * 2) * below)
        dst, taps = pointer(y, row * out_w * channels), pointer(winners, row * out_w * channels)
        for _ in range(out_w):
            for c in range(0, channels, LANES):
                mean, factor, shift = load(a, c), load(f, c), load(b, c)
                y0 = activation(kind, fma(load(src, c) - mean, factor, shift))
                y1 = activation(kind, fma(load(src, c + channels) - mean, factor, shift))
                y2 = activation(kind, fma(load(src, c + below) - mean, factor, shift))
                y3 = activation(kind, fma(load(src, c + below + channels) - mean, factor, shift))
                upper, lower = select_greater(y1, y0, y1, y0), select_greater(y3, y2, y3, y2)
                store(dst, c, select_greater(lower, upper, lower, upper))
                upper_tap, lower_tap = select_greater(y1, y0, one, zero), select_greater(y3, y2, three, two)
                store_uint(taps, c, select_greater(lower, upper, lower_tap, upper_tap))
            src, dst, taps = advance(src, 2 * channels), advance(dst, channels), advance(taps, channels)


@inner
def _at_winner(tap, d0, d1, d2, d3):  # type: ignore[no-untyped-def]
    """The one of d0 to d3 that `tap` says, in each lane."""
    upper = select_greater(tap, full_like(tap, 0), d1, d0)
    lower = select_greater(tap, full_like(tap, 2), d3, d2)
    return select_greater(tap, full_like(tap, 1), lower, upper)


@kernel
def _gradient_sums(t, threads, kind, dy, winners, x, vectors, scratch, totals):  # type: ignore[no-untyped-def]
    """totals (S, 2, C) float64 += the sums of dz and of dz * (x - mean), dz: the gradient w.r.t. batch norm's output.

    Over each portion of the rows of dy and winners (N, PH, PW, C); vectors (3, C): mean, factor and shift; scratch (T,
    2, C).
    """
    portions = totals.shape[0]
    height, width, channels = x.shape[1:]
    images, out_h, out_w = dy.shape[:3]
    below, rows = width * channels, images * out_h
    a, f, b = pointer(vectors, 0), pointer(vectors, channels), pointer(vectors, 2 * channels)
    plain, weighted = pointer(scratch, 2 * t * channels), pointer(scratch, (2 * t + 1) * channels)
    for s in range(portions * t // threads, portions * (t + 1) // threads):
        plain_total, weighted_total = pointer(totals, 2 * s * channels), pointer(totals, (2 * s + 1) * channels)
        for row in range(rows * s // portions, rows * (s + 1) // portions):
            for c in range(0, channels, LANES):
                store(plain, c, full_like(a, 0))
                store(weighted, c, full_like(a, 0))
            src = pointer(x, (row // out_h * height + row % out_h * 2) * below)
            dy_src, taps = pointer(dy, row * out_w * channels), pointer(winners, row * out_w * channels)
            for _ in range(out_w):
                for c in range(0, channels, LANES):
                    x0, x1 = load(src, c), load(src, c + channels)
                    x2, x3 = load(src, c + below), load(src, c + below + channels)
                    d = _at_winner(load_uint(taps, c, x0), x0, x1, x2, x3) - load(a, c)
                    dz = activation_grad(kind, load(dy_src, c), fma(d, load(f, c), load(b, c)))
                    store(plain, c, load(plain, c) + dz)
                    store(weighted, c, fma(dz, d, load(weighted, c)))
                src, dy_src, taps = advance(src, 2 * channels), advance(dy_src, channels), advance(taps, channels)
            for c in range(0, channels, LANES):
                store(plain_total, c, load(plain_total, c) + to_float64(load(plain, c)))
                store(weighted_total, c, load(weighted_total, c) + to_float64(load(weighted, c)))


@kernel
def _input_gradient(t, threads, kind, dy, winners, x, vectors, dx):  # type: ignore[no-untyped-def]
    """Slice t of dx (N, H, W, C) = factor * dz - slope * (x - mean) - offset, dz as in `_gradient_sums`.

    vectors (5, C): mean, factor, shift, slope and offset. dz is zero in an odd last row or column.
    """
    images, height, width, channels = x.shape
    out_h, out_w = dy.shape[1:3]
    below, row_pairs = width * channels, out_h + height % 2  # row pairs in an image, an odd last row counting as one
    a, f, b = pointer(vectors, 0), pointer(vectors, channels), pointer(vectors, 2 * channels)
    s, o = pointer(vectors, 3 * channels), pointer(vectors, 4 * channels)
    zero, one, two, three = full_like(a, 0), full_like(a, 1), full_like(a, 2), full_like(a, 3)
    for pair in range(images * row_pairs * t // threads, images * row_pairs * (t + 1) // threads):
        n, i = pair // row_pairs, pair % row_pairs
        start = (n * height + 2 * i) * below
        if i == out_h:
            _without_dz(pointer(x, start), a, s, o, width, channels, pointer(dx, start))
            continue
        src, dst, window = pointer(x, start), pointer(dx, start), (n * out_h + i) * out_w * channels
        dy_src, taps = pointer(dy, window), pointer(winners, window)
        for _ in range(out_w):
            for c in range(0, channels, LANES):
                mean, factor, slope, offset = load(a, c), load(f, c), load(s, c), load(o, c)
                tap = load_uint(taps, c, mean)
                d0, d1 = load(src, c) - mean, load(src, c + channels) - mean
                d2, d3 = load(src, c + below) - mean, load(src, c + below + channels) - mean
                z = fma(_at_winner(tap, d0, d1, d2, d3), factor, load(b, c))
                dz = factor * activation_grad(kind, load(dy_src, c), z)
                store(dst, c, select_equal(tap, zero, dz) - fma(slope, d0, offset))
                store(dst, c + channels, select_equal(tap, one, dz) - fma(slope, d1, offset))
                store(dst, c + below, select_equal(tap, two, dz) - fma(slope, d2, offset))
                store(dst, c + below + channels, select_equal(tap, three, dz) - fma(slope, d3, offset))
            src, dst = advance(src, 2 * channels), advance(dst, 2 * channels)
            dy_src, taps = advance(dy_src, channels), advance(taps, channels)
        if width % 2:
            _without_dz(src, a, s, o, 1, channels, dst)
            _without_dz(advance(src, below), a, s, o, 1, channels, advance(dst, below))


@inner
def _without_dz(x, mean, slope, offset, pixels, channels, dx):  # type: ignore[no-untyped-def]
    """dx (pixels, C) = -slope * (x - mean) - offset."""
    for p in range(pixels):
        src, dst = advance(x, p * channels), advance(dx, p * channels)
        for c in range(0, channels, LANES):
            d = load(src, c) - load(mean, c)
            store(dst, c, full_like(d, 0) - fma(load(slope, c), d, load(offset, c)))
