"""Batch norm with its activation: two passes over memory forward, two backward.

Feature maps are taken as flat vectors and cut into wide rows: so many whole pixels that they fill whole lanes, and
each number of a wide row always has the same channel. Per-channel vectors are repeated to a wide row's width W.
What is left after the last whole wide row, a few pixels, is filled up to one in `infer`, so that a pixel gets the same
bits wherever it stands; elsewhere it goes through the reference's array code.

R wide rows of W numbers; M pixels of C channels; T threads.
"""

import math
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.simd import LANES, advance, fma, full_like, load, pointer, store, to_float64
from cnn.backends.cpu.team import Team, get_team, kernel
from cnn.backends.cpu.vector_math import KINDS, activation, activation_grad
from cnn.backends.reference import ReferenceBackend

_MIN_WIDTH = 64  # numbers; a row that is too short is all overhead
_BLOCK = 64  # wide rows, a multiple of 4, summed in the arrays' own precision before they join the float64 total
_REFERENCE = ReferenceBackend()


def train(
    x: Array, scale: Array, shift: Array, epsilon: float, kind: str, team: Team
) -> tuple[Array, Array, Array]:
    """See `ReferenceBackend.batch_norm_train`."""
    x = np.ascontiguousarray(x)
    mean, variance = (values.astype(x.dtype) for values in statistics(x, team))  # (C,) each
    return infer(x, scale, shift, mean, variance, epsilon, kind, team), mean, variance


def statistics(x: Array, team: Team) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x (..., C): float64 (C,) each."""
    channels, flat, team = x.shape[-1], x.reshape(-1), team.for_size(x.size)
    width = _row_width(channels)
    whole = len(flat) // (4 * width) * (4 * width)
    counts = np.zeros(team.threads)  # (T,)
    means, squares = np.zeros((2, team.threads, width))  # (T, W) each
    if whole:
        scratch = np.empty((team.threads, 2, width), x.dtype)
        team.run(_statistics, flat[:whole], scratch, counts, means, squares)
    rest = flat[whole:].reshape(-1, channels).astype(np.float64)  # (a few, C)
    rest_mean = rest.mean(axis=0, keepdims=True) if len(rest) else np.zeros((1, channels))  # (1, C)
    # Parts (count, mean, sum of squared deviations) are merged here as blocks are in the kernel.
    count = np.append(counts.repeat(width // channels), len(rest))[:, None]  # (parts, 1)
    parts = np.concatenate([means.reshape(-1, channels), rest_mean])  # (parts, C)
    mean = (count * parts).sum(axis=0) / count.sum()  # (C,)
    square = squares.reshape(-1, channels).sum(axis=0) + ((rest - rest_mean) ** 2).sum(axis=0)  # (C,)
    return mean, (square + (count * (parts - mean) ** 2).sum(axis=0)) / count.sum()


def channel_sums(x: Array, team: Team) -> Array:
    """The sum of each channel of x (..., C), such as a bias's gradient: float64 (C,)."""
    channels, flat, team = x.shape[-1], np.ascontiguousarray(x).reshape(-1), team.for_size(x.size)
    width, whole = _whole_rows(x)
    totals = np.zeros((team.threads, width))  # (T, W)
    if whole:
        team.run(_channel_sums, flat[:whole], np.empty(totals.shape, x.dtype), totals)
    return totals.reshape(-1, channels).sum(axis=0) + flat[whole:].reshape(-1, channels).sum(axis=0)


def infer(
    x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str, team: Team
) -> Array:
    """See `ReferenceBackend.batch_norm_infer`."""
    y = np.empty(x.shape, x.dtype)  # shape of x
    flat, dst, team = np.ascontiguousarray(x).reshape(-1), y.reshape(-1), team.for_size(x.size)
    factor = (scale / np.sqrt(variance + epsilon)).astype(x.dtype)  # (C,)
    width, whole = _whole_rows(x)
    wide = [_repeated(values, width, x.dtype) for values in (mean, factor, shift)]  # (W,) each
    if whole:
        team.run(_normalise, KINDS[kind], flat[:whole], *wide, dst[:whole])
    if whole < x.size:
        last = np.zeros(width, x.dtype)  # (W,)
        last[: x.size - whole] = flat[whole:]
        get_team(1).run(_normalise, KINDS[kind], last, *wide, last)
        dst[whole:] = last[: x.size - whole]
    return y


def backward(
    dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
    d_scale: Array, d_shift: Array, team: Team,
) -> Array:
    """See `ReferenceBackend.batch_norm_backward`."""
    channels, dx, team = x.shape[-1], np.empty(x.shape, x.dtype), team.for_size(x.size)
    flat, flat_dy = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(dy).reshape(-1)
    inverse = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)  # (C,)
    factor = (scale * inverse).astype(x.dtype)  # (C,)
    width, whole = _whole_rows(x)
    wide = [_repeated(values, width, x.dtype) for values in (mean, factor, shift)]  # (W,) each
    totals = np.zeros((team.threads, 2, width))
    if whole:
        scratch = np.empty(totals.shape, x.dtype)
        team.run(_gradient_sums, KINDS[kind], flat_dy[:whole], flat[:whole], *wide, scratch, totals)

    rest, rest_dz = (values[whole:].reshape(-1, channels) for values in (flat, flat_dy))  # (a few, C) each
    std = rest - mean  # (a few, C)
    if kind:
        z = std * factor + shift  # (a few, C)
        rest_dz = _REFERENCE.activate_backward(kind, rest_dz, z, _REFERENCE.activate(kind, z))

    sum_dz, sum_dz_x = totals.sum(axis=0).reshape(2, -1, channels).sum(axis=1)  # (C,) each
    sum_dz += rest_dz.sum(axis=0)
    sum_dz_x += (rest_dz * std).sum(axis=0)
    d_scale[...] = sum_dz_x * inverse
    d_shift[...] = sum_dz

    of_mean = scale * inverse / (x.size // channels)  # (C,)
    slope, offset = (values.astype(x.dtype) for values in (of_mean * sum_dz_x * inverse**2, of_mean * sum_dz))
    if whole:
        wide += [_repeated(values, width, x.dtype) for values in (slope, offset)]
        team.run(_input_gradient, KINDS[kind], flat_dy[:whole], flat[:whole], *wide, dx.reshape(-1)[:whole])
    dx.reshape(-1)[whole:] = (factor * rest_dz - slope * std - offset).reshape(-1)
    return dx


def _row_width(channels: int) -> int:
    """The least number of whole pixels that fills whole lanes and is not too short, in numbers."""
    least = math.lcm(channels, LANES)
    return -(-_MIN_WIDTH // least) * least


def _whole_rows(x: Array) -> tuple[int, int]:
    """The width W of x's wide rows, and how many numbers all whole ones have."""
    width = _row_width(x.shape[-1])
    return width, x.size // width * width


def _repeated(values: Array, width: int, dtype: Any) -> Array:
    """Per-channel values (C,) as often as a wide row has pixels: (W,)."""
    wide = np.empty((width // values.size, values.size), dtype)  # (W / C, C)
    wide[:] = values
    return wide.reshape(-1)


@kernel
def _statistics(t, threads, x, scratch, counts, means, squares):  # type: ignore[no-untyped-def]
    """Of share t of x (R * W,): rows, mean and sum of squared deviations, by column: (T,), float64 (T, W) twice.

    Four rows at a time, R being a multiple of that; scratch (T, 2, W). Blocks are merged as (count, mean, sum of
    squared deviations), which does not cancel as E[x^2] - E[x]^2 does (Chan, Golub and LeVeque, 1979).
    """
    width = means.shape[1]
    fours = x.size // (4 * width)
    last = fours * (t + 1) // threads * 4
    mean, square = pointer(scratch, 2 * t * width), pointer(scratch, (2 * t + 1) * width)
    all_means, all_squares = pointer(means, t * width), pointer(squares, t * width)
    zero = full_like(mean, 0)
    before = 0
    for first in range(fours * t // threads * 4, last, _BLOCK):
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
        one_of_all = full_like(mean, 1.0 / added)
        for c in range(0, width, LANES):
            store(mean, c, load(mean, c) * one_of_all)
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
    counts[t] = before


@kernel
def _channel_sums(t, threads, x, scratch, totals):  # type: ignore[no-untyped-def]
    """totals (T, W) float64 += the sums of share t of x (R * W,), by column; scratch (T, W)."""
    width = totals.shape[1]
    rows = x.size // width
    last = rows * (t + 1) // threads
    block, total = pointer(scratch, t * width), pointer(totals, t * width)
    zero = full_like(block, 0)
    for first in range(rows * t // threads, last, _BLOCK):
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
    """y (R * W,) = activation((x - mean) * factor + shifts), the latter (W,) each."""
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
    """totals (T, 2, W) float64 += the sums of dz and of dz * (x - mean), dz being dy before the activation.

    x and dy (R * W,); mean, factor and shifts (W,); scratch (T, 2, W).
    """
    width = mean.size
    rows = x.size // width
    last = rows * (t + 1) // threads
    plain, weighted = pointer(scratch, 2 * t * width), pointer(scratch, (2 * t + 1) * width)
    plain_total, weighted_total = pointer(totals, 2 * t * width), pointer(totals, (2 * t + 1) * width)
    a, f, b = pointer(mean, 0), pointer(factor, 0), pointer(shifts, 0)
    zero = full_like(a, 0)
    for first in range(rows * t // threads, last, _BLOCK):
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
    """dx (R * W,) = factor * dz - slope * (x - mean) - offset, dz as in `_gradient_sums`."""
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
