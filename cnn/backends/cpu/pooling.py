"""Max and average pools of any window, eight channels at a time.

Every thread has lines of its own to write: forward the outputs' N*OH, each looking at its windows; backward the
inputs' N*H, each looking at the windows that cover it. A global pool is one whose window is the whole image.

N images, H by W pixels, C channels in; OH by OW pixels out.
"""

import math

import numpy as np

from cnn.backends.base import Array, Window
from cnn.backends.cpu.simd import (
    LANES,
    advance,
    full_like,
    inner,
    load,
    load_uint,
    load_up_to,
    pointer,
    select_equal,
    select_greater,
    store,
    store_uint,
    store_up_to,
)
from cnn.backends.cpu.team import Team, kernel


def max_pool(x: Array, window: Window, team: Team) -> tuple[Array, Array]:
    """See `ReferenceBackend.max_pool`."""
    x, y = np.ascontiguousarray(x), _outputs(x, window)
    winner = np.empty(y.shape, np.uint8 if math.prod(window.size) <= 256 else np.uint32)  # (N, OH, OW, C)
    if _halves(window, x):
        team.for_size(x.size).run(_halve, x, y, winner)
    else:
        team.for_size(x.size).run(_max_pool, x, window.size, window.stride, window.top, window.left, y, winner)
    return y, winner


def max_pool_backward(dy: Array, winner: Array, in_shape: tuple[int, ...], window: Window, team: Team) -> Array:
    """See `ReferenceBackend.max_pool_backward`."""
    dx, dy = np.empty(in_shape, dy.dtype), np.ascontiguousarray(dy)  # (N, H, W, C), (N, OH, OW, C)
    if _halves(window, dy):
        team.for_size(dx.size).run(_halve_backward, dy, winner, dx)
    else:
        place = (window.size, window.stride, window.top, window.left)
        team.for_size(dx.size).run(_max_pool_backward, dy, winner, *place, dx)
    return dx


def average_pool(x: Array, window: Window, team: Team) -> Array:
    """See `ReferenceBackend.average_pool`."""
    x, y = np.ascontiguousarray(x), _outputs(x, window)
    team.for_size(x.size).run(_average_pool, x, window.size, window.stride, window.top, window.left, y)
    return y


def average_pool_backward(dy: Array, in_shape: tuple[int, ...], window: Window, team: Team) -> Array:
    """See `ReferenceBackend.average_pool_backward`."""
    dx, dy = np.empty(in_shape, dy.dtype), np.ascontiguousarray(dy)  # (N, H, W, C), (N, OH, OW, C)
    place = (window.size, window.stride, window.top, window.left)
    team.for_size(dx.size).run(_average_pool_backward, dy, *place, dx)
    return dx


def whole_image(shape: tuple[int, ...]) -> Window:
    """The window of a global pool over images (N, H, W, C)."""
    return Window((shape[1], shape[2]), (1, 1))


def _outputs(x: Array, window: Window) -> Array:
    return np.empty((len(x), *window.out_size(*x.shape[1:3]), x.shape[3]), x.dtype)  # (N, OH, OW, C)


def _halves(window: Window, maps: Array) -> bool:
    """Whether this is the pool that halves images, with whole lanes of channels: it has kernels of its own."""
    return window == Window((2, 2), (2, 2)) and maps.shape[3] % LANES == 0


@kernel
def _halve(t, threads, x, y, winner):  # type: ignore[no-untyped-def]
    """The largest of each 2 by 2 of x (N, H, W, C) and which it was, 0 to 3: y and winner (N, OH, OW, C)."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    below = width * channels
    one, two, three = full_like(pointer(x, 0), 1), full_like(pointer(x, 0), 2), full_like(pointer(x, 0), 3)
    zero = one - one
    for line in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        src = pointer(x, (line // out_h * height + line % out_h * 2) * below)
        dst, which = pointer(y, line * out_w * channels), pointer(winner, line * out_w * channels)
        for _ in range(out_w):
            for c in range(0, channels, LANES):
                first, second = load(src, c), load(src, c + channels)
                third, fourth = load(src, c + below), load(src, c + below + channels)
                upper, lower = select_greater(first, second, second, first), select_greater(third, fourth, fourth, third)
                store(dst, c, select_greater(upper, lower, lower, upper))
                up, low = select_greater(first, second, one, zero), select_greater(third, fourth, three, two)
                store_uint(which, c, select_greater(upper, lower, low, up))
            src, dst, which = advance(src, 2 * channels), advance(dst, channels), advance(which, channels)


@kernel
def _halve_backward(t, threads, dy, winner, dx):  # type: ignore[no-untyped-def]
    """dx (N, H, W, C): dy (N, OH, OW, C) where it won, else zero; an odd last row or column has no window."""
    images, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    one, two, three = full_like(pointer(dx, 0), 1), full_like(pointer(dx, 0), 2), full_like(pointer(dx, 0), 3)
    zero = one - one
    below = width * channels
    lines = out_h + height % 2
    for line in range(images * lines * t // threads, images * lines * (t + 1) // threads):
        n, i = line // lines, line % lines
        dst = pointer(dx, (n * height + 2 * i) * below)
        if i == out_h:
            for c in range(0, below, LANES):
                store(dst, c, zero)
            continue
        src = pointer(dy, (n * out_h + i) * out_w * channels)
        which = pointer(winner, (n * out_h + i) * out_w * channels)
        for _ in range(out_w):
            for c in range(0, channels, LANES):
                values, won = load(src, c), load_uint(which, c, one)
                store(dst, c, select_equal(won, zero, values))
                store(dst, c + channels, select_equal(won, one, values))
                store(dst, c + below, select_equal(won, two, values))
                store(dst, c + below + channels, select_equal(won, three, values))
            src, dst, which = advance(src, channels), advance(dst, 2 * channels), advance(which, channels)
        if width % 2:
            for c in range(0, channels, LANES):
                store(dst, c, zero)
                store(dst, c + below, zero)


@kernel
def _max_pool(t, threads, x, size, stride, top, left, y, winner):  # type: ignore[no-untyped-def]
    """x (N, H, W, C); y and winner (N, OH, OW, C) are written."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    lanes = channels // LANES * LANES
    for line in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        n, up = line // out_h, line % out_h * stride[0] - top
        first_a, last_a = max(0, -up), min(size[0], height - up)
        for j in range(out_w):
            across = j * stride[1] - left
            first_b, last_b = max(0, -across), min(size[1], width - across)
            corner = pointer(x, ((n * height + up) * width + across) * channels)
            dst = (line * out_w + j) * channels
            for c in range(0, lanes, LANES):
                best, which, one = full_like(corner, -np.inf), full_like(corner, 0), full_like(corner, 1)
                for a in range(first_a, last_a):
                    tap = full_like(corner, a * size[1] + first_b)
                    for b in range(first_b, last_b):
                        value = load(corner, (a * width + b) * channels + c)
                        which, best = select_greater(best, value, tap, which), select_greater(best, value, value, best)
                        tap = tap + one
                store(pointer(y, dst), c, best)
                store_uint(pointer(winner, dst), c, which)
            for c in range(lanes, channels):
                peak, first = x.dtype.type(-np.inf), 0
                for a in range(first_a, last_a):
                    for b in range(first_b, last_b):
                        number = x[n, up + a, across + b, c]
                        if number > peak or number != number:  # NaN must not vanish
                            peak, first = number, a * size[1] + b
                y[n, line % out_h, j, c] = peak
                winner[n, line % out_h, j, c] = first


@kernel
def _max_pool_backward(t, threads, dy, winner, size, stride, top, left, dx):  # type: ignore[no-untyped-def]
    """dx (N, H, W, C) = the sum of dy (N, OH, OW, C) over the windows that each number has won."""
    images, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    lanes = channels // LANES * LANES
    for line in range(images * height * t // threads, images * height * (t + 1) // threads):
        n, row = line // height, line % height
        dx[n, row] = 0
        first_i, last_i = _windows(row + top, size[0], stride[0], out_h)
        for i in range(first_i, last_i):
            for j in range(out_w):
                first_column = j * stride[1] - left
                first_tap = (row + top - i * stride[0]) * size[1]
                at = ((n * out_h + i) * out_w + j) * channels
                dst = pointer(dx, (line * width + first_column) * channels)
                for c in range(0, lanes, LANES):
                    values, won = load(pointer(dy, at), c), load_uint(pointer(winner, at), c, full_like(dst, 0))
                    for b in range(max(0, -first_column), min(size[1], width - first_column)):
                        here = b * channels + c
                        store(dst, here, load(dst, here) + select_equal(won, full_like(dst, first_tap + b), values))
                for c in range(lanes, channels):
                    tap = int(winner[n, i, j, c]) - first_tap
                    # A window that lies in the padding altogether has a winner outside of the image.
                    if 0 <= tap < size[1] and 0 <= first_column + tap < width:
                        dx[n, row, first_column + tap, c] += dy[n, i, j, c]


@kernel
def _average_pool(t, threads, x, size, stride, top, left, y):  # type: ignore[no-untyped-def]
    """x (N, H, W, C); y (N, OH, OW, C) is written."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    share = full_like(pointer(y, 0), 1 / (size[0] * size[1]))
    for line in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        up = line % out_h * stride[0] - top
        for j in range(out_w):
            across = j * stride[1] - left
            corner = pointer(x, ((line // out_h * height + up) * width + across) * channels)
            for c in range(0, channels, LANES):
                total = share - share
                for a in range(max(0, -up), min(size[0], height - up)):
                    for b in range(max(0, -across), min(size[1], width - across)):
                        total = total + load_up_to(corner, (a * width + b) * channels + c, channels - c)
                store_up_to(pointer(y, (line * out_w + j) * channels), c, total * share, channels - c)


@kernel
def _average_pool_backward(t, threads, dy, size, stride, top, left, dx):  # type: ignore[no-untyped-def]
    """dx (N, H, W, C) = the sum of dy (N, OH, OW, C) over the windows that cover each number, over their size."""
    images, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    share = full_like(pointer(dx, 0), 1 / (size[0] * size[1]))
    for line in range(images * height * t // threads, images * height * (t + 1) // threads):
        n, down = line // height, line % height + top
        first_i, last_i = _windows(down, size[0], stride[0], out_h)
        for column in range(width):
            first_j, last_j = _windows(column + left, size[1], stride[1], out_w)
            for c in range(0, channels, LANES):
                total = share - share
                for i in range(first_i, last_i):
                    for j in range(first_j, last_j):
                        covered = pointer(dy, ((n * out_h + i) * out_w + j) * channels)
                        total = total + load_up_to(covered, c, channels - c)
                store_up_to(pointer(dx, (line * width + column) * channels), c, total * share, channels - c)


@inner
def _windows(place, size, stride, count):  # type: ignore[no-untyped-def]
    """The first of `count` windows along one side that covers `place`, counted from the padding's begin; its end."""
    return max(0, (place - size) // stride + 1), min(place // stride + 1, count)
