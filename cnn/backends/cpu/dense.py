"""Fully connected layers: BLAS products in training, each thread its own part, and a kernel of ours in inference.

BLAS gives a row other bits in another batch, since it takes the last rows another way; the kernel takes all alike.

N rows, C inputs, K outputs; K8: K rounded up to whole lanes.
"""

from collections.abc import Iterator

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.gemm import MR, NR, block
from cnn.backends.cpu.simd import LANES, advance, full_like, int64, load_up_to, pointer, store
from cnn.backends.cpu.team import Team, get_team, kernel
from cnn.backends.reference import ReferenceBackend

_WORTH_SHARING = 4_000_000  # multiplications; smaller products are done before another thread is awake
_BLOCK = 1024  # rows of the kernels
_DEPTH = 256  # inputs whose products are summed in registers; a long sum's rounding error grows with it
_TOGETHER = 96  # rows, a multiple of 6, for which the kernels are read once
_REFERENCE = ReferenceBackend()


def forward(x: Array, weight: Array, bias: Array | None, team: Team) -> Array:
    """See `ReferenceBackend.dense`."""
    if len(x) * weight.size < _WORTH_SHARING:
        return _REFERENCE.dense(x, weight, bias)
    if len(x) >= len(weight):
        y = np.empty((len(x), weight.shape[1]), x.dtype)  # (N, K)
        team.run(_rows, x, weight, y)
    else:
        parts = np.empty((team.threads, len(x), weight.shape[1]), x.dtype)  # (T, N, K)
        team.run(_parts, x, weight, parts)
        y = parts.sum(axis=0)  # (N, K)
    if bias is not None:
        y += bias  # (K,)
    return y


def infer(x: Array, weight: Array, bias: Array | None, team: Team) -> Array:
    """See `ReferenceBackend.dense_infer`. The bits do not depend on the number of threads either."""
    if x.dtype != weight.dtype:  # the kernel would read and write beyond the arrays
        raise TypeError(f"expected x and weight of one type, found {x.dtype} and {weight.dtype}")
    team = team if len(x) * weight.size >= _WORTH_SHARING else get_team(1)
    rows, columns = (-(-size // step) * step for size, step in ((len(x), MR), (weight.shape[1], LANES)))
    sums = np.empty((rows, columns), x.dtype)  # (R, K8), R being N in sixes
    scratch = np.empty((team.threads, NR + _DEPTH * columns), x.dtype)  # (T, size)
    team.run(_infer, np.ascontiguousarray(x), np.ascontiguousarray(weight), scratch, sums)
    y = sums[: len(x), : weight.shape[1]]  # (N, K)
    return y.copy() if bias is None else y + bias


def backward(
    dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool, team: Team
) -> Array | None:
    """See `ReferenceBackend.dense_backward`."""
    if len(x) * weight.size < _WORTH_SHARING:
        return _REFERENCE.dense_backward(dy, x, weight, d_weight, d_bias, need_dx)
    team.run(_weight_gradient, x, dy, d_weight)
    if d_bias is not None:
        d_bias[...] = dy.sum(axis=0)  # (K,)
    if not need_dx:
        return None
    dx = np.empty(x.shape, x.dtype)  # (N, C)
    team.run(_input_gradient, dy, weight, dx)
    return dx


def _share(t: int, threads: int, length: int) -> slice:
    return slice(length * t // threads, length * (t + 1) // threads)


def _rows(t: int, threads: int, x: Array, weight: Array, y: Array) -> None:
    """y (N, K) = x @ weight, a share of the rows."""
    rows = _share(t, threads, len(x))
    np.matmul(x[rows], weight, out=y[rows])


def _parts(t: int, threads: int, x: Array, weight: Array, parts: Array) -> None:
    """parts (T, N, K): x @ weight summed over a share of the inputs."""
    inputs = _share(t, threads, len(weight))
    np.matmul(x[:, inputs], weight[inputs], out=parts[t])


def _weight_gradient(t: int, threads: int, x: Array, dy: Array, d_weight: Array) -> None:
    """d_weight (C, K) = x^T @ dy, a share of its rows."""
    for inputs in _blocks(t, threads, len(d_weight)):
        np.matmul(x[:, inputs].T, dy, out=d_weight[inputs])


def _input_gradient(t: int, threads: int, dy: Array, weight: Array, dx: Array) -> None:
    """dx (N, C) = dy @ weight^T, a share of the inputs."""
    for inputs in _blocks(t, threads, len(weight)):
        np.matmul(dy, weight[inputs].T, out=dx[:, inputs])


def _blocks(t: int, threads: int, length: int) -> Iterator[slice]:
    """A share of `length` in pieces that BLAS keeps in cache."""
    share = _share(t, threads, length)
    for first in range(share.start, share.stop, _BLOCK):
        yield slice(first, min(first + _BLOCK, share.stop))


@kernel
def _infer(t, threads, x, weight, scratch, sums):  # type: ignore[no-untyped-def]
    """Share t of the columns of sums (R, K8) = x (N, C) @ weight (C, K), R being N in sixes.

    `_DEPTH` rows of the kernels at a time are packed as `gemm.block` takes them, then met by all rows of x. scratch
    (T, size) has room for them and 16 zeros. Rows after the last are the last again.
    """
    rows, depth = x.shape
    filters, columns = weight.shape[1], sums.shape[1]
    blocks, last = (columns + NR - 1) // NR, rows - 1
    first, end = blocks * t // threads * NR, min(blocks * (t + 1) // threads * NR, columns)
    none, one = int64(0), int64(1)
    zeros = pointer(scratch, t * scratch.shape[1])
    packed = advance(zeros, NR)
    for j in range(0, NR, LANES):
        store(zeros, j, full_like(zeros, 0))
    relu = depth < 0  # no; a bare False would have Numba compile the block again
    for top in range(0, rows, _TOGETHER):
        for d in range(0, depth, _DEPTH):
            count = min(_DEPTH, depth - d)
            for p in range(count):  # row by row, as they lie in memory
                row = pointer(weight, (d + p) * filters)
                for j in range(first, end, NR):
                    width = min(NR, end - j)
                    dst = advance(packed, (j - first) * count + p * width)
                    for k in range(0, width, LANES):
                        store(dst, k, load_up_to(row, j + k, filters - j - k))
            for j in range(first, end, NR):
                panel, width = advance(packed, (j - first) * count), min(NR, end - j)
                for r in range(top, min(top + _TOGETHER, rows), MR):
                    a0, a1, a2 = (
                        pointer(x, r * depth + d), pointer(x, min(r + 1, last) * depth + d),
                        pointer(x, min(r + 2, last) * depth + d),
                    )  # fmt: skip
                    a3, a4, a5 = (
                        pointer(x, min(r + 3, last) * depth + d), pointer(x, min(r + 4, last) * depth + d),
                        pointer(x, min(r + 5, last) * depth + d),
                    )  # fmt: skip
                    c0 = pointer(sums, r * columns + j)
                    c1, c2, c3, c4, c5 = (
                        advance(c0, columns), advance(c0, 2 * columns), advance(c0, 3 * columns), advance(c0, 4 * columns),
                        advance(c0, 5 * columns),
                    )  # fmt: skip
                    block(
                        a0, a1, a2, a3, a4, a5, none, one, count, panel, c0, c1, c2, c3, c4, c5, width, zeros, d, relu
                    )
