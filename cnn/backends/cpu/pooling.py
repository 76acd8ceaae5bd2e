"""Max and average pools of any window, eight channels at a time.

Forward, every output looks at its window; backward, every input at the windows that cover it, so that each number is
written once and no two threads write the same. A global pool is one whose window is the whole picture.

N pictures, H by W pixels, C channels in; OH by OW pixels out. Threads share the N*OH (or, backward, N*H) lines.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from cnn.backend import Array, Window
from cnn.backends.cpu.simd import (
    LANES,
    like,
    load,
    load_whole,
    pointer,
    store,
    store_whole,
    where_beaten,
    where_equal,
)
from cnn.backends.cpu.team import Team


def max_pool(x: Array, window: Window, team: Team) -> tuple[Array, Array]:
    """See `ReferenceBackend.max_pool`."""
    x, y = np.ascontiguousarray(x), _outputs(x, window)
    winner = np.empty(y.shape, np.uint8 if math.prod(window.size) <= 256 else np.uint32)  # (N, OH, OW, C)
    team.worth(x.size).run(_max_pool, x, window.size, window.stride, window.top, window.left, y, winner)
    return y, winner


def max_pool_backward(dy: Array, winner: Array, in_shape: tuple[int, ...], window: Window, team: Team) -> Array:
    """See `ReferenceBackend.max_pool_backward`."""
    dx, dy = np.empty(in_shape, dy.dtype), np.ascontiguousarray(dy)  # (N, H, W, C), (N, OH, OW, C)
    rows, columns = _covering(window, in_shape, dy.shape)
    place = (window.size, window.stride, window.top, window.left)
    team.worth(dx.size).run(_max_pool_backward, dy, winner, *place, rows, columns, dx)
    return dx


def average_pool(x: Array, window: Window, team: Team) -> Array:
    """See `ReferenceBackend.average_pool`."""
    x, y = np.ascontiguousarray(x), _outputs(x, window)
    team.worth(x.size).run(_average_pool, x, window.size, window.stride, window.top, window.left, y)
    return y


def average_pool_backward(dy: Array, in_shape: tuple[int, ...], window: Window, team: Team) -> Array:
    """See `ReferenceBackend.average_pool_backward`."""
    dx, dy = np.empty(in_shape, dy.dtype), np.ascontiguousarray(dy)  # (N, H, W, C), (N, OH, OW, C)
    rows, columns = _covering(window, in_shape, dy.shape)
    team.worth(dx.size).run(_average_pool_backward, dy, 1 / math.prod(window.size), rows, columns, dx)
    return dx


def whole_picture(shape: tuple[int, ...]) -> Window:
    """The window of a global pool over pictures (N, H, W, C)."""
    return Window((shape[1], shape[2]), (1, 1))


def _outputs(x: Array, window: Window) -> Array:
    return np.empty((len(x), *window.out_size(*x.shape[1:3]), x.shape[3]), x.dtype)  # (N, OH, OW, C)


def _covering(window: Window, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> tuple[Array, Array]:
    """For each input row and each column, the first output whose window covers it and the one after the last."""
    sides: list[Any] = []
    for axis, before in ((0, window.top), (1, window.left)):
        place = np.arange(in_shape[axis + 1]) + before  # (H,)
        first = np.maximum(-(-(place - window.size[axis] + 1) // window.stride[axis]), 0)  # (H,)
        stop = np.minimum(place // window.stride[axis] + 1, out_shape[axis + 1])  # (H,)
        sides.append(np.stack([first, stop], axis=1))  # (H, 2)
    return sides[0], sides[1]


@njit(nogil=True, cache=True)
def _max_pool(t, threads, x, size, stride, top, left, y, winner):  # type: ignore[no-untyped-def]
    """x (N, H, W, C); y and winner (N, OH, OW, C) are written."""
    pictures, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    lanes = channels // LANES * LANES
    for line in range(pictures * out_h * t // threads, pictures * out_h * (t + 1) // threads):
        n, up = line // out_h, line % out_h * stride[0] - top
        first_a, last_a = max(0, -up), min(size[0], height - up)
        for j in range(out_w):
            across = j * stride[1] - left
            first_b, last_b = max(0, -across), min(size[1], width - across)
            corner = pointer(x, ((n * height + up) * width + across) * channels)
            to = (line * out_w + j) * channels
            for c in range(0, lanes, LANES):
                best = like(corner, -np.inf)
                which = like(corner, 0)
                for a in range(first_a, last_a):
                    for b in range(first_b, last_b):
                        value = load(corner, (a * width + b) * channels + c)
                        which = where_beaten(best, value, like(corner, a * size[1] + b), which)
                        best = where_beaten(best, value, value, best)
                store(pointer(y, to), c, best)
                store_whole(pointer(winner, to), c, which)
            for c in range(lanes, channels):
                peak, tap = x.dtype.type(-np.inf), 0
                for a in range(first_a, last_a):
                    for b in range(first_b, last_b):
                        number = x[n, up + a, across + b, c]
                        if number > peak or number != number:  # NaN must not vanish
                            peak, tap = number, a * size[1] + b
                y[n, line % out_h, j, c] = peak
                winner[n, line % out_h, j, c] = tap


@njit(nogil=True, cache=True)
def _max_pool_backward(t, threads, dy, winner, size, stride, top, left, rows, columns, dx):  # type: ignore[no-untyped-def]
    """dx (N, H, W, C) = the sum of dy (N, OH, OW, C) over the windows that each number has won."""
    pictures, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    lanes = channels // LANES * LANES
    for line in range(pictures * height * t // threads, pictures * height * (t + 1) // threads):
        n, row = line // height, line % height
        for column in range(width):
            tap = (row + top) * size[1] + column + left  # of the window at (0, 0); less for those further on
            to = pointer(dx, (line * width + column) * channels)
            for c in range(0, lanes, LANES):
                total = like(to, 0)
                for i in range(rows[row, 0], rows[row, 1]):
                    for j in range(columns[column, 0], columns[column, 1]):
                        at = ((n * out_h + i) * out_w + j) * channels
                        won = load_whole(pointer(winner, at), c, total)
                        this = like(to, tap - i * stride[0] * size[1] - j * stride[1])
                        total = total + where_equal(won, this, load(pointer(dy, at), c))
                store(to, c, total)
            for c in range(lanes, channels):
                number = dx.dtype.type(0)
                for i in range(rows[row, 0], rows[row, 1]):
                    for j in range(columns[column, 0], columns[column, 1]):
                        if int(winner[n, i, j, c]) == tap - i * stride[0] * size[1] - j * stride[1]:
                            number += dy[n, i, j, c]
                dx[n, row, column, c] = number


@njit(nogil=True, cache=True)
def _average_pool(t, threads, x, size, stride, top, left, y):  # type: ignore[no-untyped-def]
    """x (N, H, W, C); y (N, OH, OW, C) is written."""
    pictures, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    lanes, share = channels // LANES * LANES, x.dtype.type(1 / (size[0] * size[1]))
    for line in range(pictures * out_h * t // threads, pictures * out_h * (t + 1) // threads):
        n, up = line // out_h, line % out_h * stride[0] - top
        for j in range(out_w):
            across = j * stride[1] - left
            corner = pointer(x, ((n * height + up) * width + across) * channels)
            for c in range(0, lanes, LANES):
                total = like(corner, 0)
                for a in range(max(0, -up), min(size[0], height - up)):
                    for b in range(max(0, -across), min(size[1], width - across)):
                        total = total + load(corner, (a * width + b) * channels + c)
                store(pointer(y, (line * out_w + j) * channels), c, total * like(corner, share))
            for c in range(lanes, channels):
                number = x.dtype.type(0)
                for a in range(max(0, -up), min(size[0], height - up)):
                    for b in range(max(0, -across), min(size[1], width - across)):
                        number += x[n, up + a, across + b, c]
                y[n, line % out_h, j, c] = number * share


@njit(nogil=True, cache=True)
def _average_pool_backward(t, threads, dy, share, rows, columns, dx):  # type: ignore[no-untyped-def]
    """dx (N, H, W, C) = `share` of the sum of dy (N, OH, OW, C) over the windows that cover each number."""
    pictures, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    lanes = channels // LANES * LANES
    for line in range(pictures * height * t // threads, pictures * height * (t + 1) // threads):
        n, row = line // height, line % height
        for column in range(width):
            to = pointer(dx, (line * width + column) * channels)
            for c in range(0, lanes, LANES):
                total = like(to, 0)
                for i in range(rows[row, 0], rows[row, 1]):
                    for j in range(columns[column, 0], columns[column, 1]):
                        total = total + load(pointer(dy, ((n * out_h + i) * out_w + j) * channels), c)
                store(to, c, total * like(to, share))
            for c in range(lanes, channels):
                number = dx.dtype.type(0)
                for i in range(rows[row, 0], rows[row, 1]):
                    for j in range(columns[column, 0], columns[column, 1]):
                        number += dy[n, i, j, c]
                dx[n, row, column, c] = number * dx.dtype.type(share)
