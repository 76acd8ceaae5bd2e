"""Everything on a CPU that is no convolution: one pass over memory for what would be several in NumPy.

All kernels split their rows evenly between `threads` threads, so that sums are added in one order whatever the
machine does. M rows (N*H*W pixels), C channels.
"""

import math

import numpy as np
from numba import njit, prange

from cnn.backends.cpu.gather import FAST
from cnn.backends.reference import GELU_CUBIC, GELU_SLOPE

_BLOCK = 128  # rows summed in the arrays' own precision before they join the float64 total


@njit(parallel=True, cache=True, fastmath=FAST)
def mean_and_variance(x, threads):  # type: ignore[no-untyped-def]
    """Per-channel mean and biased variance of x (M, C): float64 (C,) each.

    Blocks are merged as (count, mean, sum of squared deviations), which does not cancel as E[x^2] - E[x]^2 does
    (Chan, Golub and LeVeque, 1979).
    """
    rows, channels = x.shape
    counts = np.zeros(threads)  # (T,)
    means = np.zeros((threads, channels))  # (T, C)
    squares = np.zeros((threads, channels))  # (T, C)
    for t in prange(threads):
        last = rows * (t + 1) // threads
        block_mean = np.empty(channels, x.dtype)  # (C,)
        block_squares = np.empty(channels, x.dtype)  # (C,)
        for first in range(rows * t // threads, last, _BLOCK):
            stop = min(first + _BLOCK, last)
            block_mean[:] = 0
            for r in range(first, stop):
                for c in range(channels):
                    block_mean[c] += x[r, c]
            for c in range(channels):
                block_mean[c] /= stop - first
            block_squares[:] = 0
            for r in range(first, stop):
                for c in range(channels):
                    deviation = x[r, c] - block_mean[c]
                    block_squares[c] += deviation * deviation
            before, added = counts[t], stop - first
            counts[t] = before + added
            for c in range(channels):
                delta = block_mean[c] - means[t, c]
                means[t, c] += delta * added / counts[t]
                squares[t, c] += block_squares[c] + delta * delta * before * added / counts[t]
    mean, square, count = means[0], squares[0], counts[0]
    for t in range(1, threads):
        if counts[t] > 0:
            total = count + counts[t]
            for c in range(channels):
                delta = means[t, c] - mean[c]
                mean[c] += delta * counts[t] / total
                square[c] += squares[t, c] + delta * delta * count * counts[t] / total
            count = total
    return mean, square / count


@njit(parallel=True, cache=True, fastmath=FAST)
def normalise(x, mean, factor, shift, y, threads):  # type: ignore[no-untyped-def]
    """y (M, C) = (x - mean) * factor + shift."""
    for t in prange(threads):
        for r in range(x.shape[0] * t // threads, x.shape[0] * (t + 1) // threads):
            for c in range(x.shape[1]):
                y[r, c] = (x[r, c] - mean[c]) * factor[c] + shift[c]


@njit(parallel=True, cache=True, fastmath=FAST)
def norm_sums(dy, x, mean, threads):  # type: ignore[no-untyped-def]
    """Sums over rows of dy and of dy * (x - mean): float64 (2, C)."""
    rows, channels = x.shape
    sums = np.zeros((threads, 2, channels))  # (T, 2, C)
    for t in prange(threads):
        last = rows * (t + 1) // threads
        plain = np.empty(channels, x.dtype)  # (C,)
        weighted = np.empty(channels, x.dtype)  # (C,)
        for first in range(rows * t // threads, last, _BLOCK):
            plain[:] = 0
            weighted[:] = 0
            for r in range(first, min(first + _BLOCK, last)):
                for c in range(channels):
                    plain[c] += dy[r, c]
                    weighted[c] += dy[r, c] * (x[r, c] - mean[c])
            for c in range(channels):
                sums[t, 0, c] += plain[c]
                sums[t, 1, c] += weighted[c]
    return sums.sum(axis=0)


@njit(parallel=True, cache=True, fastmath=FAST)
def norm_backward(dy, x, mean, factor, offset, slope, dx, threads):  # type: ignore[no-untyped-def]
    """dx (M, C) = factor * (dy - offset - (x - mean) * slope)."""
    for t in prange(threads):
        for r in range(x.shape[0] * t // threads, x.shape[0] * (t + 1) // threads):
            for c in range(x.shape[1]):
                dx[r, c] = factor[c] * (dy[r, c] - offset[c] - (x[r, c] - mean[c]) * slope[c])


# Elementwise functions, over flat arrays

@njit(parallel=True, cache=True, fastmath=FAST)
def relu(x, y):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        y[i] = max(x[i], x.dtype.type(0))


@njit(parallel=True, cache=True, fastmath=FAST)
def relu_backward(dy, y, dx):  # type: ignore[no-untyped-def]
    for i in prange(y.size):
        dx[i] = dy[i] if y[i] > 0 else 0


@njit(parallel=True, cache=True, fastmath=FAST)
def sigmoid(x, y):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        y[i] = 0.5 * (1.0 + math.tanh(0.5 * x[i]))


@njit(parallel=True, cache=True, fastmath=FAST)
def sigmoid_backward(dy, y, dx):  # type: ignore[no-untyped-def]
    for i in prange(y.size):
        dx[i] = dy[i] * y[i] * (1 - y[i])


@njit(parallel=True, cache=True, fastmath=FAST)
def silu(x, y):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        y[i] = x[i] * (0.5 * (1.0 + math.tanh(0.5 * x[i])))


@njit(parallel=True, cache=True, fastmath=FAST)
def silu_backward(dy, x, dx):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        gate = 0.5 * (1.0 + math.tanh(0.5 * x[i]))
        dx[i] = dy[i] * gate * (1 + x[i] * (1 - gate))


@njit(parallel=True, cache=True, fastmath=FAST)
def gelu(x, y):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        v = x[i]
        y[i] = 0.5 * v * (1.0 + math.tanh(GELU_SLOPE * (v + GELU_CUBIC * v * v * v)))


@njit(parallel=True, cache=True, fastmath=FAST)
def gelu_backward(dy, x, dx):  # type: ignore[no-untyped-def]
    for i in prange(x.size):
        v = x[i]
        bend = math.tanh(GELU_SLOPE * (v + GELU_CUBIC * v * v * v))
        slope = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * v * v)
        dx[i] = dy[i] * (0.5 * (1.0 + bend) + 0.5 * v * (1.0 - bend * bend) * slope)


@njit(parallel=True, cache=True, fastmath=FAST)
def add(a, b, y):  # type: ignore[no-untyped-def]
    for i in prange(a.size):
        y[i] = a[i] + b[i]


# Pooling: x (N, H, W, C), y and winner (N, OH, OW, C), a thread has whole pictures

@njit(parallel=True, cache=True, fastmath=FAST)
def max_pool(x, size, stride, top, left, y, winner, threads):  # type: ignore[no-untyped-def]
    pictures, height, width, channels = x.shape
    for t in prange(threads):
        for n in range(pictures * t // threads, pictures * (t + 1) // threads):
            for i in range(y.shape[1]):
                for j in range(y.shape[2]):
                    best = y[n, i, j]  # (C,)
                    which = winner[n, i, j]  # (C,)
                    best[:] = -np.inf
                    which[:] = 0
                    for a in range(size[0]):
                        for b in range(size[1]):
                            line, column = i * stride[0] - top + a, j * stride[1] - left + b
                            if 0 <= line < height and 0 <= column < width:
                                seen = x[n, line, column]  # (C,)
                                for c in range(channels):
                                    if not seen[c] <= best[c]:  # NaN must not vanish
                                        best[c] = seen[c]
                                        which[c] = a * size[1] + b


@njit(parallel=True, cache=True, fastmath=FAST)
def max_pool_backward(dy, winner, size, stride, top, left, dx, threads):  # type: ignore[no-untyped-def]
    """dx (N, H, W, C), zero before, += dy at each window's winner."""
    pictures, channels = dx.shape[0], dx.shape[3]
    for t in prange(threads):
        for n in range(pictures * t // threads, pictures * (t + 1) // threads):
            for i in range(dy.shape[1]):
                for j in range(dy.shape[2]):
                    for c in range(channels):
                        tap = int(winner[n, i, j, c])
                        line = i * stride[0] - top + tap // size[1]
                        column = j * stride[1] - left + tap % size[1]
                        dx[n, line, column, c] += dy[n, i, j, c]


# Optimizers: one pass over the flat vectors

@njit(parallel=True, cache=True, fastmath=FAST)
def squared_norm(vector, threads):  # type: ignore[no-untyped-def]
    sums = np.zeros(threads)  # (T,)
    for t in prange(threads):
        total = 0.0
        for i in range(vector.size * t // threads, vector.size * (t + 1) // threads):
            total += np.float64(vector[i]) * np.float64(vector[i])
        sums[t] = total
    return sums.sum()


@njit(parallel=True, cache=True, fastmath=FAST)
def sgd_step(w, g, velocity, decayed, scale, lr, momentum, nesterov, weight_decay):  # type: ignore[no-untyped-def]
    for i in prange(w.size):
        gradient = g[i] * scale
        if i < decayed:
            gradient += weight_decay * w[i]
        velocity[i] = momentum * velocity[i] + gradient
        w[i] -= lr * (gradient + momentum * velocity[i] if nesterov else velocity[i])


@njit(parallel=True, cache=True, fastmath=FAST)
def adamw_step(  # type: ignore[no-untyped-def]
    w, g, first, second, decayed, scale, lr, beta1, beta2, epsilon, weight_decay, correction1, correction2
):
    for i in prange(w.size):
        gradient = g[i] * scale
        first[i] = beta1 * first[i] + (1.0 - beta1) * gradient
        second[i] = beta2 * second[i] + (1.0 - beta2) * gradient * gradient
        if i < decayed:
            w[i] *= 1.0 - lr * weight_decay
        w[i] -= lr / correction1 * first[i] / (math.sqrt(second[i] / correction2) + epsilon)


# Pictures

@njit(parallel=True, cache=True, fastmath=FAST)
def resample(images, ys, xs, holes, mean, deviation, out, threads):  # type: ignore[no-untyped-def]
    """See `ReferenceBackend.resample`; holes (N, 4) or (0, 4); out (N, OH, OW, C) is written."""
    pictures, height, width, channels = images.shape
    for t in prange(threads):
        for n in range(pictures * t // threads, pictures * (t + 1) // threads):
            for i in range(out.shape[1]):
                y0 = int(ys[n, i])
                y1 = min(y0 + 1, height - 1)
                fy = ys[n, i] - y0
                for j in range(out.shape[2]):
                    x0 = int(xs[n, j])
                    x1 = min(x0 + 1, width - 1)
                    fx = xs[n, j] - x0
                    for c in range(channels):
                        upper = images[n, y0, x0, c] * (1 - fx) + images[n, y0, x1, c] * fx
                        lower = images[n, y1, x0, c] * (1 - fx) + images[n, y1, x1, c] * fx
                        value = upper * (1 - fy) + lower * fy
                        out[n, i, j, c] = (value - mean[c]) / deviation[c]
            if holes.shape[0]:
                out[n, holes[n, 0] : holes[n, 1], holes[n, 2] : holes[n, 3]] = 0
