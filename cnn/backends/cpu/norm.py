"""Batch norm fused with its activation: two passes over memory forward, two backward.

Feature maps are flattened and cut into wide rows: enough whole pixels to fill whole vectors of any width, so that a
column of the wide rows always has the same channel. Per-channel vectors are tiled to a wide row's width W. The
remainder after the last wide row, a few pixels, is zero-padded to one in `infer`, so that a pixel's bits do not depend
on its position; elsewhere it goes through NumPy.

R wide rows of W elements; M pixels of C channels; T threads; S portions of a sum, see team.py.
"""

import math
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.elementwise import zero_padded
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.simd import advance, fma, full_like, inner, load, pointer, store, to_float64
from cnn.backends.cpu.team import Team, get_team, kernel, portion_count
from cnn.backends.cpu.vector_math import KINDS, activation, activation_grad
from cnn.backends.cpu.widths import LANES, WIDE, lanes_for
from cnn.backends.reference import ReferenceBackend

_MIN_WIDTH = 64  # elements; short rows have too much loop overhead
_BLOCK = 64  # wide rows, a multiple of 4, summed in the arrays' precision, then added to the float64 total
_REFERENCE = ReferenceBackend()


def train(
    x: Array, scale: Array, shift: Array, epsilon: float, kind: str, team: Team
) -> tuple[Array, Array, Array]:
    """See `ReferenceBackend.batch_norm_train`."""
    x = np.ascontiguousarray(x)
    mean, variance = (values.astype(x.dtype) for values in statistics(x, team))  # (C,) each
    return infer(x, scale, shift, mean, variance, epsilon, kind, team), mean, variance


def statistics(x: Array, team: Team) -> tuple[Array, Array]:
    """Per-channel mean and biased variance of x (..., C): float64 (C,) each."""
    channels, flat, team = x.shape[-1], x.reshape(-1), team.for_size(x.size)
    width = _row_width(channels)
    whole = len(flat) // (4 * width) * (4 * width)
    portions = portion_count(x.size)
    counts = np.zeros(portions)  # (S,)
    means, squares = np.zeros((2, portions, width))  # (S, W) each
    if whole:
        scratch = empty((team.threads, 2, width), x.dtype)  # (T, 2, W)
        team.run(_statistics[lanes_for(width)], flat[:whole], scratch, counts, means, squares)
    rest = flat[whole:].reshape(-1, channels).astype(np.float64)  # (a few, C)
    rest_mean = rest.mean(axis=0, keepdims=True) if len(rest) else np.zeros((1, channels))  # (1, C)
    # Merge the partial results (count, mean, sum of squared deviations) as the kernel merges blocks.
    count = np.append(counts.repeat(width // channels), len(rest))[:, None]  # (P, 1), P partial results
    partial_means = np.concatenate([means.reshape(-1, channels), rest_mean])  # (P, C)
    mean = (count * partial_means).sum(axis=0) / count.sum()  # (C,)
    square = squares.reshape(-1, channels).sum(axis=0) + ((rest - rest_mean) ** 2).sum(axis=0)  # (C,)
    return mean, (square + (count * (partial_means - mean) ** 2).sum(axis=0)) / count.sum()


def channel_sums(x: Array, team: Team) -> Array:
    """Per-channel sums of x (..., C), e.g. the gradient of a bias: float64 (C,)."""
    channels, flat, team = x.shape[-1], np.ascontiguousarray(x).reshape(-1), team.for_size(x.size)
    width, whole = _whole_rows(x)
    totals = np.zeros((portion_count(x.size), width))  # (S, W)
    if whole:
        team.run(_channel_sums[lanes_for(width)], flat[:whole], empty((team.threads, width), x.dtype), totals)
    return totals.reshape(-1, channels).sum(axis=0) + flat[whole:].reshape(-1, channels).sum(axis=0)


def infer(
    x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str, team: Team
) -> Array:
    """See `ReferenceBackend.batch_norm_infer`."""
    y = empty(x.shape, x.dtype)  # shape of x
    flat, flat_y, team = np.ascontiguousarray(x).reshape(-1), y.reshape(-1), team.for_size(x.size)
    factor = factors(scale, variance, epsilon, x.dtype)  # (C,)
    width, whole = _whole_rows(x)
    wide = [_tiled(values, width, x.dtype) for values in (mean, factor, shift)]  # (W,) each
    if whole:
        team.run(_normalise[lanes_for(width)], KINDS[kind], flat[:whole], *wide, flat_y[:whole])
    if whole < x.size:
        last = zero_padded(flat[whole:], width)  # (W,)
        get_team(1).run(_normalise[lanes_for(width)], KINDS[kind], last, *wide, last)
        flat_y[whole:] = last[: x.size - whole]
    return y


def backward(
    dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
    d_scale: Array, d_shift: Array, team: Team,
) -> Array:
    """See `ReferenceBackend.batch_norm_backward`."""
    channels, dx, team = x.shape[-1], empty(x.shape, x.dtype), team.for_size(x.size)
    flat, flat_dy = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(dy).reshape(-1)
    inverse = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)  # (C,)
    factor = (scale * inverse).astype(x.dtype)  # (C,)
    width, whole = _whole_rows(x)
    lanes = lanes_for(width)
    wide = [_tiled(values, width, x.dtype) for values in (mean, factor, shift)]  # (W,) each
    totals = np.zeros((portion_count(x.size), 2, width))  # (S, 2, W)
    if whole:
        scratch = empty((team.threads, 2, width), x.dtype)  # (T, 2, W)
        team.run(_gradient_sums[lanes], KINDS[kind], flat_dy[:whole], flat[:whole], *wide, scratch, totals)

    rest, rest_dz = (values[whole:].reshape(-1, channels) for values in (flat, flat_dy))  # (a few, C) each
    centred = rest - mean  # (a few, C)
    if kind:
        z = centred * factor + shift  # (a few, C)
        rest_dz = _REFERENCE.activate_backward(kind, rest_dz, z, _REFERENCE.activate(kind, z))

    sum_dz, sum_dz_x = totals.sum(axis=0).reshape(2, -1, channels).sum(axis=1)  # (C,) each
    sum_dz += rest_dz.sum(axis=0)
    sum_dz_x += (rest_dz * centred).sum(axis=0)
    sums = np.stack([sum_dz, sum_dz_x])  # (2, C)
    slope, offset = set_gradients(sums, scale, inverse, x.size, d_scale, d_shift)  # (C,) each
    if whole:
        wide += [_tiled(values, width, x.dtype) for values in (slope, offset)]
        team.run(_input_gradient[lanes], KINDS[kind], flat_dy[:whole], flat[:whole], *wide, dx.reshape(-1)[:whole])
    dx.reshape(-1)[whole:] = (factor * rest_dz - slope * centred - offset).reshape(-1)
    return dx


def factors(scale: Array, variance: Array, epsilon: float, dtype: Any) -> Array:
    """What batch norm multiplies each channel by: (C,)."""
    return (scale / np.sqrt(variance + epsilon)).astype(dtype)  # (C,)


def set_gradients(
    sums: Array, scale: Array, inverse: Array, size: int, d_scale: Array, d_shift: Array
) -> tuple[Array, Array]:
    """Set d_scale and d_shift (C,) from sums (2, C), over all `size` elements, of dz and of dz * (x - mean).

    Returns the (slope, offset) of the gradient w.r.t. x: factor * dz - slope * (x - mean) - offset. inverse: 1 / std.
    """
    sum_dz, sum_dz_x = sums
    d_scale[...] = sum_dz_x * inverse
    d_shift[...] = sum_dz
    mean_factor = scale * inverse / (size // scale.size)  # (C,)
    dtype = d_scale.dtype
    return (mean_factor * sum_dz_x * inverse**2).astype(dtype), (mean_factor * sum_dz).astype(dtype)


def _row_width(channels: int) -> int:
    """The width of a wide row: whole pixels and whole vectors, at least `_MIN_WIDTH` elements."""
    multiple = math.lcm(channels, WIDE)
    return -(-_MIN_WIDTH // multiple) * multiple


def _whole_rows(x: Array) -> tuple[int, int]:
    """The width W of x's wide rows, and the number of elements in all whole ones."""
    width = _row_width(x.shape[-1])
    return width, x.size // width * width


def _tiled(values: Array, width: int, dtype: Any) -> Array:
    """Per-channel values (C,), repeated for each pixel of a wide row: (W,)."""
    wide = empty((width // values.size, values.size), dtype)  # (W / C, C)
    wide[:] = values
    return wide.reshape(-1)


@inner
def _portion_rows(s, portions, rows):  # type: ignore[no-untyped-def]
    """The first of `rows` wide rows of portion s, and the end: whole blocks of `_BLOCK`."""
    blocks = (rows + _BLOCK - 1) // _BLOCK
    return blocks * s // portions * _BLOCK, min(rows, blocks * (s + 1) // portions * _BLOCK)


@kernel
def _statistics(t, threads, x, scratch, counts, means, squares):  # type: ignore[no-untyped-def]
    """Of each portion of x (R * W,), R a multiple of 4: the rows, and per column mean and sum of squared deviations.

    Written to counts (S,), means and squares (S, W) float64; scratch (T, 2, W). Blocks are merged as (count, mean, sum
    of squared deviations), which avoids the cancellation of E[x^2] - E[x]^2 (Chan, Golub and LeVeque, 1979).
    """
    portions, width = means.shape
    for s in range(portions * t // threads, portions * (t + 1) // threads):
        start, last = _portion_rows(s, portions, x.size // width)
        mean, square = pointer(scratch, 2 * t * width), pointer(scratch, (2 * t + 1) * width)
        all_means, all_squares = pointer(means, s * width), pointer(squares, s * width)
        zero = full_like(mean, 0)
        before = 0
        for first in range(start, last, _BLOCK):
            added = min(_BLOCK, last - first)
            block = pointer(x, first * width)
            for c in range(0, width, LANES):
                store(mean, c, zero)
                store(square, c, zero)
            for r in range(0, added, 4):
                p = advance(block, r * width)
                for c in range(0, width, LANES):
                    upper = load(p, c) + load(p, c + width)
                    lower = load(p, c + 2 * width) + load(p, c + 3 * width)
                    store(mean, c, load(mean, c) + (upper + lower))
            inverse_count = full_like(mean, 1.0 / added)
            for c in range(0, width, LANES):
                store(mean, c, load(mean, c) * inverse_count)
            for r in range(0, added, 4):
                p = advance(block, r * width)
                for c in range(0, width, LANES):
                    middle = load(mean, c)
                    d0, d1 = load(p, c) - middle, load(p, c + width) - middle
                    d2, d3 = load(p, c + 2 * width) - middle, load(p, c + 3 * width) - middle
                    store(square, c, fma(d0, d0, fma(d1, d1, load(square, c))) + fma(d2, d2, d3 * d3))
            count = before + added
            for c in range(0, width, LANES):
                old = load(all_means, c)
                delta = to_float64(load(mean, c)) - old
                store(all_means, c, fma(delta, full_like(old, added / count), old))
                total = load(all_squares, c) + to_float64(load(square, c))
                store(all_squares, c, fma(delta * delta, full_like(old, before * added / count), total))
            before = count
        counts[s] = before


@kernel
def _channel_sums(t, threads, x, scratch, totals):  # type: ignore[no-untyped-def]
    """totals (S, W) float64 += the column sums of each portion of x (R * W,); scratch (T, W)."""
    portions, width = totals.shape
    block = pointer(scratch, t * width)
    zero = full_like(block, 0)
    for s in range(portions * t // threads, portions * (t + 1) // threads):
        start, last = _portion_rows(s, portions, x.size // width)
        total = pointer(totals, s * width)
        for first in range(start, last, _BLOCK):
            for c in range(0, width, LANES):
                store(block, c, zero)
            for r in range(first, min(first + _BLOCK, last)):
                src = pointer(x, r * width)
                for c in range(0, width, LANES):
                    store(block, c, load(block, c) + load(src, c))
            for c in range(0, width, LANES):
                store(total, c, load(total, c) + to_float64(load(block, c)))


@kernel
def _normalise(t, threads, kind, x, mean, factor, shifts, y):  # type: ignore[no-untyped-def]
    """Slice t of y (R * W,) = activation((x - mean) * factor + shifts), the latter (W,) each."""
    width = mean.size
    rows = x.size // width
    a, f, b = pointer(mean, 0), pointer(factor, 0), pointer(shifts, 0)
    for r in range(rows * t // threads, rows * (t + 1) // threads):
        src, dst = pointer(x, r * width), pointer(y, r * width)
        for c in range(0, width, LANES):
            z = fma(load(src, c) - load(a, c), load(f, c), load(b, c))
            store(dst, c, activation(kind, z))


@kernel
def _gradient_sums(t, threads, kind, dy, x, mean, factor, shifts, scratch, totals):  # type: ignore[no-untyped-def]
    """totals (S, 2, W) float64 += the column sums of dz and of dz * (x - mean), dz: the gradient w.r.t. z.

    Over each portion of x and dy (R * W,); mean, factor and shifts (W,); scratch (T, 2, W).
    """
    portions, width = totals.shape[0], mean.size
    plain, weighted = pointer(scratch, 2 * t * width), pointer(scratch, (2 * t + 1) * width)
    a, f, b = pointer(mean, 0), pointer(factor, 0), pointer(shifts, 0)
    zero = full_like(a, 0)
    for s in range(portions * t // threads, portions * (t + 1) // threads):
        start, last = _portion_rows(s, portions, x.size // width)
        plain_total, weighted_total = pointer(totals, 2 * s * width), pointer(totals, (2 * s + 1) * width)
        for first in range(start, last, _BLOCK):
            for c in range(0, width, LANES):
                store(plain, c, zero)
                store(weighted, c, zero)
            for r in range(first, min(first + _BLOCK, last)):
                from_x, from_dy = pointer(x, r * width), pointer(dy, r * width)
                for c in range(0, width, LANES):
                    d = load(from_x, c) - load(a, c)
                    dz = activation_grad(kind, load(from_dy, c), fma(d, load(f, c), load(b, c)))
                    store(plain, c, load(plain, c) + dz)
                    store(weighted, c, fma(dz, d, load(weighted, c)))
            for c in range(0, width, LANES):
                store(plain_total, c, load(plain_total, c) + to_float64(load(plain, c)))
                store(weighted_total, c, load(weighted_total, c) + to_float64(load(weighted, c)))


@kernel
def _input_gradient(t, threads, kind, dy, x, mean, factor, shifts, slope, offset, dx):  # type: ignore[no-untyped-def]
    """Slice t of dx (R * W,) = factor * dz - slope * (x - mean) - offset, dz as in `_gradient_sums`."""
    width = mean.size
    rows = x.size // width
    a, f, b, s, o = pointer(mean, 0), pointer(factor, 0), pointer(shifts, 0), pointer(slope, 0), pointer(offset, 0)
    for r in range(rows * t // threads, rows * (t + 1) // threads):
        from_x, from_dy, dst = pointer(x, r * width), pointer(dy, r * width), pointer(dx, r * width)
        for c in range(0, width, LANES):
            d = load(from_x, c) - load(a, c)
            scale = load(f, c)
            dz = activation_grad(kind, load(from_dy, c), fma(d, scale, load(b, c)))
            store(dst, c, fma(scale, dz, full_like(scale, 0) - fma(load(s, c), d, load(o, c))))
