"""Convolution on a CPU: gather windows into a small matrix, multiply, forget it.

Each thread takes an equal stretch of the output pixels and walks it in tiles small enough for the cache: the tile's
windows become the rows of a matrix (`columns`), and BLAS multiplies that by the kernels. The threads' shares are
fixed, so results are the same from run to run for a given number of threads.

Letters as in `reference.py`; P = N*OH*OW output pixels, D = KH*KW*C numbers in a window, T threads.
"""

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401 - the BLAS that np.dot calls inside Numba, loaded before it is limited
from numba import njit, prange

from cnn.backend import Array, Window

# Sums may be reordered and fused, but NaN and infinity keep their meaning: they must reach the loss.
FAST = {"reassoc", "contract", "arcp", "nsz"}
_TILE_BYTES = 1 << 20
_LEAST_TILE = 128  # pixels; below it BLAS spends its time packing the kernels


def tile_pixels(row_bytes: int) -> int:
    """How many output pixels to gather at a time, where each takes `row_bytes`."""
    return max(_LEAST_TILE, _TILE_BYTES // row_bytes)


def geometry(window: Window, x_shape: tuple[int, ...], out_h: int, out_w: int) -> np.ndarray:
    """The sizes that the kernels need, as one vector: H, W, C, OH, OW, KH, KW, strides, top, left."""
    return np.array(
        [*x_shape[1:], out_h, out_w, *window.size, *window.stride, window.top, window.left], np.int64
    )  # (11,)


def adjoint_window(window: Window) -> Window:
    """The window that takes dy (N, OH, OW, K) to dx (N, H, W, C) at stride 1, with the kernels turned around."""
    (kh, kw), top, left = window.size, window.top, window.left
    return Window(window.size, (1, 1), kh - 1 - top, kh - 1 - window.bottom, kw - 1 - left, kw - 1 - window.right)


def turned(weight: Array) -> Array:
    """Kernels (KH, KW, C, K) turned by half a circle, inputs and outputs swapped: (KH*KW*K, C)."""
    swapped = weight[::-1, ::-1].transpose(0, 1, 3, 2)  # (KH, KW, K, C)
    return np.ascontiguousarray(swapped).reshape(-1, weight.shape[2])


@njit(cache=True, fastmath=FAST)
def _gather(x, g, first, last, columns):  # type: ignore[no-untyped-def]
    """The windows of output pixels first..last as rows of `columns`; x is flat (N*H*W*C,)."""
    h, w, c, oh, ow, kh, kw, sh, sw, top, left = g
    run = kw * c  # numbers side by side in memory: one row of a window
    for p in range(first, last):
        n, i, j = p // (oh * ow), p // ow % oh, p % ow
        row = columns[p - first]  # (D,)
        column = j * sw - left
        inside = column >= 0 and column + kw <= w
        for a in range(kh):
            line = i * sh - top + a
            to = a * run
            if line < 0 or line >= h:
                for k in range(run):
                    row[to + k] = 0
            elif inside:
                source = ((n * h + line) * w + column) * c
                for k in range(run):
                    row[to + k] = x[source + k]
            else:
                for b in range(kw):
                    if 0 <= column + b < w:
                        source = ((n * h + line) * w + column + b) * c
                        for k in range(c):
                            row[to + b * c + k] = x[source + k]
                    else:
                        for k in range(c):
                            row[to + b * c + k] = 0


@njit(cache=True, fastmath=FAST)
def _scatter(columns, g, n, first, last, dx):  # type: ignore[no-untyped-def]
    """The adjoint of `_gather` for the pixels first..last of picture n: adds the rows into flat dx."""
    h, w, c, _, ow, kh, kw, sh, sw, top, left = g
    for p in range(first, last):
        i, j = p // ow, p % ow
        row = columns[p - first]  # (D,)
        for a in range(kh):
            line = i * sh - top + a
            if 0 <= line < h:
                for b in range(kw):
                    column = j * sw - left + b
                    if 0 <= column < w:
                        to = ((n * h + line) * w + column) * c
                        for k in range(c):
                            dx[to + k] += row[(a * kw + b) * c + k]


@njit(parallel=True, cache=True, fastmath=FAST)
def conv_forward(x, g, weight, bias, y, columns):  # type: ignore[no-untyped-def]
    """x flat; weight (D, K); bias (K,) or (0,); y (P, K) is written; columns (T, tile, D) is scratch."""
    threads, tile = columns.shape[0], columns.shape[1]
    pixels = y.shape[0]
    for t in prange(threads):
        last = pixels * (t + 1) // threads
        for first in range(pixels * t // threads, last, tile):
            stop = min(first + tile, last)
            _gather(x, g, first, stop, columns[t])
            np.dot(columns[t, : stop - first], weight, y[first:stop])
            if bias.size:
                for p in range(first, stop):
                    for k in range(bias.size):
                        y[p, k] += bias[k]


@njit(parallel=True, cache=True, fastmath=FAST)
def matmul_rows(x, weight, bias, y, threads):  # type: ignore[no-untyped-def]
    """y (P, K) = x (P, C) @ weight (C, K) + bias, each thread its share of the rows: a 1x1 convolution."""
    for t in prange(threads):
        first, last = x.shape[0] * t // threads, x.shape[0] * (t + 1) // threads
        np.dot(x[first:last], weight, y[first:last])
        if bias.size:
            for p in range(first, last):
                for k in range(bias.size):
                    y[p, k] += bias[k]


@njit(parallel=True, cache=True, fastmath=FAST)
def conv_weight_gradient(x, g, dy, parts, columns, product):  # type: ignore[no-untyped-def]
    """parts (T, D, K) become each thread's share of columns^T @ dy; dy (P, K); product (T, D, K) is scratch."""
    threads, tile = columns.shape[0], columns.shape[1]
    pixels = dy.shape[0]
    for t in prange(threads):
        parts[t] = 0
        last = pixels * (t + 1) // threads
        for first in range(pixels * t // threads, last, tile):
            stop = min(first + tile, last)
            _gather(x, g, first, stop, columns[t])
            np.dot(columns[t, : stop - first].T, dy[first:stop], product[t])
            for d in range(parts.shape[1]):
                for k in range(parts.shape[2]):
                    parts[t, d, k] += product[t, d, k]


@njit(parallel=True, cache=True, fastmath=FAST)
def conv_input_gradient(dy, g, weight_t, dx, pictures, columns):  # type: ignore[no-untyped-def]
    """dx, flat and zero, += the scattered rows of dy (P, K) @ weight_t (K, D); a thread has whole pictures."""
    threads, tile = columns.shape[0], columns.shape[1]
    pixels = g[3] * g[4]  # of one picture's output
    for t in prange(threads):
        for n in range(pictures * t // threads, pictures * (t + 1) // threads):
            for first in range(0, pixels, tile):
                stop = min(first + tile, pixels)
                np.dot(dy[n * pixels + first : n * pixels + stop], weight_t, columns[t, : stop - first])
                _scatter(columns[t], g, n, first, stop, dx)
