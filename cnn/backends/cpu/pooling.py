"""Max and average pooling with any window.

Each thread writes rows of its own: forward, output rows (N*OH), reading each one's windows; backward, input rows (N*H),
reading the windows that cover each. Global pooling uses a window of the whole image.

N images, H by W pixels, C channels in; OH by OW pixels out.
"""

import math

import numpy as np

from cnn.backends.base import HALVING, Array, Window
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.simd import (
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
from cnn.backends.cpu.widths import LANES, NARROW, WIDE, lanes_for


def max_pool(x: Array, window: Window, team: Team) -> tuple[Array, Array]:
    """See `ReferenceBackend.max_pool`."""
    y = _empty_outputs(x, window)
    argmax = empty(y.shape, _tap_dtype(window))  # (N, OH, OW, C)
    _find_maxima(x, window, y, argmax, team)
    return y, argmax


def max_pool_infer(x: Array, window: Window, team: Team) -> Array:
    """See `ReferenceBackend.max_pool_infer`."""
    y = _empty_outputs(x, window)
    _find_maxima(x, window, y, np.empty((0, 0, 0, 0), _tap_dtype(window)), team)
    return y


def _find_maxima(x: Array, window: Window, y: Array, argmax: Array, team: Team) -> None:
    """Write the maxima of x (N, H, W, C) to y (N, OH, OW, C), and their places to argmax, of that shape or empty."""
    x = np.ascontiguousarray(x)
    if _is_2x2(window, x):
        team.for_size(x.size).run(_max_pool_2x2[_lanes(x)], x, y, argmax)
    else:
        geometry = (window.size, window.stride, window.top, window.left)
        team.for_size(x.size).run(_max_pool[_lanes(x)], x, *geometry, y, argmax)


def _tap_dtype(window: Window) -> type[np.unsignedinteger]:
    """The type of places in a window."""
    return np.uint8 if math.prod(window.size) <= 256 else np.uint32


def max_pool_backward(dy: Array, argmax: Array, in_shape: tuple[int, ...], window: Window, team: Team) -> Array:
    """See `ReferenceBackend.max_pool_backward`."""
    dx, dy = empty(in_shape, dy.dtype), np.ascontiguousarray(dy)  # (N, H, W, C), (N, OH, OW, C)
    if _is_2x2(window, dy):
        team.for_size(dx.size).run(_max_pool_2x2_backward[_lanes(dy)], dy, argmax, dx)
    else:
        geometry = (window.size, window.stride, window.top, window.left)
        team.for_size(dx.size).run(_max_pool_backward[_lanes(dy)], dy, argmax, *geometry, dx)
    return dx


def average_pool(x: Array, window: Window, team: Team) -> Array:
    """See `ReferenceBackend.average_pool`."""
    x, y = np.ascontiguousarray(x), _empty_outputs(x, window)
    team.for_size(x.size).run(_average_pool[_lanes(x)], x, window.size, window.stride, window.top, window.left, y)
    return y


def average_pool_backward(dy: Array, in_shape: tuple[int, ...], window: Window, team: Team) -> Array:
    """See `ReferenceBackend.average_pool_backward`."""
    dx, dy = empty(in_shape, dy.dtype), np.ascontiguousarray(dy)  # (N, H, W, C), (N, OH, OW, C)
    geometry = (window.size, window.stride, window.top, window.left)
    team.for_size(dx.size).run(_average_pool_backward[_lanes(dy)], dy, *geometry, dx)
    return dx


def whole_image(shape: tuple[int, ...]) -> Window:
    """The window of a global pool over images (N, H, W, C)."""
    return Window((shape[1], shape[2]), (1, 1))


def _empty_outputs(x: Array, window: Window) -> Array:
    return empty((len(x), *window.out_size(*x.shape[1:3]), x.shape[3]), x.dtype)  # (N, OH, OW, C)


def _lanes(maps: Array) -> int:
    """The width for maps (..., C): one that fits into the channels, if possible."""
    return lanes_for(maps.shape[3]) if maps.shape[3] % WIDE == 0 else NARROW


def _is_2x2(window: Window, maps: Array) -> bool:
    """Whether the kernels for the common case apply: 2x2 windows at stride 2, whole vectors of channels."""
    return window == HALVING and maps.shape[3] % NARROW == 0


@kernel
def _max_pool_2x2(t, threads, x, y, argmax):  # type: ignore[no-untyped-def]
    """Slice t of the rows of y and argmax (N, OH, OW, C), 0 to 3, or none, for 2x2 windows of x (N, H, W, C)."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    below = width * channels
    one, two, three = full_like(pointer(x, 0), 1), full_like(pointer(x, 0), 2), full_like(pointer(x, 0), 3)
    zero = one - one
    for row in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        src = pointer(x, (row // out_h * height + row % out_h * 2) * below)
        dst, taps = pointer(y, row * out_w * channels), pointer(argmax, row * out_w * channels)
        for _ in range(out_w):
            for c in range(0, channels, LANES):
                x0, x1 = load(src, c), load(src, c + channels)
                x2, x3 = load(src, c + below), load(src, c + below + channels)
                upper, lower = select_greater(x1, x0, x1, x0), select_greater(x3, x2, x3, x2)
                store(dst, c, select_greater(lower, upper, lower, upper))
                if argmax.size > 0:
                    upper_tap, lower_tap = select_greater(x1, x0, one, zero), select_greater(x3, x2, three, two)
                    store_uint(taps, c, select_greater(lower, upper, lower_tap, upper_tap))
            src, dst, taps = advance(src, 2 * channels), advance(dst, channels), advance(taps, channels)


@kernel
def _max_pool_2x2_backward(t, threads, dy, argmax, dx):  # type: ignore[no-untyped-def]
    """Slice t of dx (N, H, W, C): dy (N, OH, OW, C) at the maximum, else zero, also in an odd last row or column."""
    images, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    one, two, three = full_like(pointer(dx, 0), 1), full_like(pointer(dx, 0), 2), full_like(pointer(dx, 0), 3)
    zero = one - one
    below = width * channels
    row_pairs = out_h + height % 2  # in an image, an odd last row counting as one
    for pair in range(images * row_pairs * t // threads, images * row_pairs * (t + 1) // threads):
        n, i = pair // row_pairs, pair % row_pairs
        dst = pointer(dx, (n * height + 2 * i) * below)
        if i == out_h:
            for c in range(0, below, LANES):
                store(dst, c, zero)
            continue
        src = pointer(dy, (n * out_h + i) * out_w * channels)
        taps = pointer(argmax, (n * out_h + i) * out_w * channels)
        for _ in range(out_w):
            for c in range(0, channels, LANES):
                values, tap = load(src, c), load_uint(taps, c, one)
                store(dst, c, select_equal(tap, zero, values))
                store(dst, c + channels, select_equal(tap, one, values))
                store(dst, c + below, select_equal(tap, two, values))
                store(dst, c + below + channels, select_equal(tap, three, values))
            src, dst, taps = advance(src, channels), advance(dst, 2 * channels), advance(taps, channels)
        if width % 2:
            for c in range(0, channels, LANES):
                store(dst, c, zero)
                store(dst, c + below, zero)


@kernel
def _max_pool(t, threads, x, size, stride, top, left, y, argmax):  # type: ignore[no-untyped-def]
    """Slice t of the rows of y and argmax (N, OH, OW, C), or none, for windows of x (N, H, W, C)."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    full = channels // LANES * LANES
    for row in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        n, i = row // out_h, row % out_h * stride[0] - top
        first_a, last_a = max(0, -i), min(size[0], height - i)
        for out_j in range(out_w):
            j = out_j * stride[1] - left
            first_b, last_b = max(0, -j), min(size[1], width - j)
            corner = pointer(x, ((n * height + i) * width + j) * channels)
            out = (row * out_w + out_j) * channels
            for c in range(0, full, LANES):
                best, best_tap, one = full_like(corner, -np.inf), full_like(corner, 0), full_like(corner, 1)
                for a in range(first_a, last_a):
                    tap = full_like(corner, a * size[1] + first_b)
                    for b in range(first_b, last_b):
                        value = load(corner, (a * width + b) * channels + c)
                        best_tap = select_greater(value, best, tap, best_tap)
                        best = select_greater(value, best, value, best)
                        tap = tap + one
                store(pointer(y, out), c, best)
                if argmax.size > 0:
                    store_uint(pointer(argmax, out), c, best_tap)
            for c in range(full, channels):
                peak, peak_tap = x.dtype.type(-np.inf), 0
                for a in range(first_a, last_a):
                    for b in range(first_b, last_b):
                        number = x[n, i + a, j + b, c]
                        if number > peak or number != number:  # NaN propagates
                            peak, peak_tap = number, a * size[1] + b
                y[n, row % out_h, out_j, c] = peak
                if argmax.size > 0:
                    argmax[n, row % out_h, out_j, c] = peak_tap


@kernel
def _max_pool_backward(t, threads, dy, argmax, size, stride, top, left, dx):  # type: ignore[no-untyped-def]
    """Slice t of the rows of dx (N, H, W, C): the sum of dy (N, OH, OW, C) over the windows whose maximum it is."""
    images, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    full = channels // LANES * LANES
    for row in range(images * height * t // threads, images * height * (t + 1) // threads):
        n, y = row // height, row % height
        dx[n, y] = 0
        first_i, last_i = _covering_windows(y + top, size[0], stride[0], out_h)
        for i in range(first_i, last_i):
            for j in range(out_w):
                first_x = j * stride[1] - left
                first_tap = (y + top - i * stride[0]) * size[1]
                src = ((n * out_h + i) * out_w + j) * channels
                dst = pointer(dx, (row * width + first_x) * channels)
                for c in range(0, full, LANES):
                    values, tap = load(pointer(dy, src), c), load_uint(pointer(argmax, src), c, full_like(dst, 0))
                    for b in range(max(0, -first_x), min(size[1], width - first_x)):
                        at = b * channels + c
                        store(dst, at, load(dst, at) + select_equal(tap, full_like(dst, first_tap + b), values))
                for c in range(full, channels):
                    b = int(argmax[n, i, j, c]) - first_tap
                    # The maximum of a window entirely in the padding is outside the image.
                    if 0 <= b < size[1] and 0 <= first_x + b < width:
                        dx[n, y, first_x + b, c] += dy[n, i, j, c]


@kernel
def _average_pool(t, threads, x, size, stride, top, left, y):  # type: ignore[no-untyped-def]
    """Slice t of the rows of y (N, OH, OW, C), for windows of x (N, H, W, C)."""
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    inverse_area = full_like(pointer(y, 0), 1 / (size[0] * size[1]))
    for row in range(images * out_h * t // threads, images * out_h * (t + 1) // threads):
        i = row % out_h * stride[0] - top
        for out_j in range(out_w):
            j = out_j * stride[1] - left
            corner = pointer(x, ((row // out_h * height + i) * width + j) * channels)
            for c in range(0, channels, LANES):
                total = inverse_area - inverse_area
                for a in range(max(0, -i), min(size[0], height - i)):
                    for b in range(max(0, -j), min(size[1], width - j)):
                        total = total + load_up_to(corner, (a * width + b) * channels + c, channels - c)
                store_up_to(pointer(y, (row * out_w + out_j) * channels), c, total * inverse_area, channels - c)


@kernel
def _average_pool_backward(t, threads, dy, size, stride, top, left, dx):  # type: ignore[no-untyped-def]
    """Slice t of the rows of dx (N, H, W, C): the sum of dy (N, OH, OW, C) over the covering windows, over the area."""
    images, height, width, channels = dx.shape
    out_h, out_w = dy.shape[1:3]
    inverse_area = full_like(pointer(dx, 0), 1 / (size[0] * size[1]))
    for row in range(images * height * t // threads, images * height * (t + 1) // threads):
        n = row // height
        first_i, last_i = _covering_windows(row % height + top, size[0], stride[0], out_h)
        for x in range(width):
            first_j, last_j = _covering_windows(x + left, size[1], stride[1], out_w)
            for c in range(0, channels, LANES):
                total = inverse_area - inverse_area
                for i in range(first_i, last_i):
                    for j in range(first_j, last_j):
                        src = pointer(dy, ((n * out_h + i) * out_w + j) * channels)
                        total = total + load_up_to(src, c, channels - c)
                store_up_to(pointer(dx, (row * width + x) * channels), c, total * inverse_area, channels - c)


@inner
def _covering_windows(position, size, stride, count):  # type: ignore[no-untyped-def]
    """The first of `count` windows along an axis that covers `position` (padding included), and the end."""
    return max(0, (position - size) // stride + 1), min(position // stride + 1, count)
