"""Everything on a CPU that is no convolution: one pass over memory for what would be several in NumPy.

All kernels split their rows evenly between `threads` threads, so that sums are added in one order whatever the
machine does. M rows (N*H*W pixels), C channels.
"""

import numpy as np
from numba import njit, prange

from cnn.backends.cpu.gather import FAST

_BLOCK = 128  # rows summed in the arrays' own precision before they join the float64 total


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
