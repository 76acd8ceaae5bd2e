"""Fully connected layers: BLAS in training, split between the threads, and our own GEMM kernel in inference.

With BLAS a row's bits depend on the batch, since the last rows take another path; the kernel treats all rows alike.

N rows, C inputs, K outputs; K8: K rounded up to whole vectors.
"""

from collections.abc import Iterator

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.gemm import MR, NR, column_range, micro_kernel, tile_rows
from cnn.backends.cpu.simd import LANES, advance, full_like, int64, load_up_to, pointer, round_up, store
from cnn.backends.cpu.team import Team, get_team, kernel
from cnn.backends.reference import ReferenceBackend

_MIN_PARALLEL_MACS = 4_000_000  # a smaller product does not amortise waking a thread
_BLAS_ROWS = 1024  # rows of the weights in a BLAS call, which then stay in cache
_KC = 256  # depth of a block, whose sum is added to the total: the rounding error of a sum grows with its length
_MC = 96  # rows of x, a multiple of MR, for which a block of weights is packed once
_REFERENCE = ReferenceBackend()


def forward(x: Array, weight: Array, bias: Array | None, team: Team) -> Array:
    """See `ReferenceBackend.dense`."""
    if len(x) * weight.size < _MIN_PARALLEL_MACS:
        return _REFERENCE.dense(x, weight, bias)
    if len(x) >= len(weight):
        y = np.empty((len(x), weight.shape[1]), x.dtype)  # (N, K)
        team.run(_forward_by_rows, x, weight, y)
    else:
        partial_sums = np.empty((team.threads, len(x), weight.shape[1]), x.dtype)  # (T, N, K)
        team.run(_forward_split_k, x, weight, partial_sums)
        y = partial_sums.sum(axis=0)  # (N, K)
    if bias is not None:
        y += bias  # (K,)
    return y


def infer(x: Array, weight: Array, bias: Array | None, team: Team) -> Array:
    """See `ReferenceBackend.dense_infer`. The bits do not depend on the number of threads either.

    Raises TypeError where x and weight differ in dtype.
    """
    if x.dtype != weight.dtype:  # the kernel would read and write out of bounds
        raise TypeError(f"expected x and weight of one type, found {x.dtype} and {weight.dtype}")
    team = team if len(x) * weight.size >= _MIN_PARALLEL_MACS else get_team(1)
    rows, columns = round_up.py_func(len(x), MR), round_up.py_func(weight.shape[1], LANES)
    sums = np.empty((rows, columns), x.dtype)  # (R, K8), R: N rounded up to whole tiles
    scratch = np.empty((team.threads, NR + _KC * columns), x.dtype)  # (T, size)
    team.run(_infer, np.ascontiguousarray(x), np.ascontiguousarray(weight), scratch, sums)
    y = sums[: len(x), : weight.shape[1]]  # (N, K)
    return y.copy() if bias is None else y + bias


def backward(
    dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool, team: Team
) -> Array | None:
    """See `ReferenceBackend.dense_backward`."""
    if len(x) * weight.size < _MIN_PARALLEL_MACS:
        return _REFERENCE.dense_backward(dy, x, weight, d_weight, d_bias, need_dx)
    team.run(_weight_gradient, x, dy, d_weight)
    if d_bias is not None:
        d_bias[...] = dy.sum(axis=0)  # (K,)
    if not need_dx:
        return None
    dx = np.empty(x.shape, x.dtype)  # (N, C)
    team.run(_input_gradient, dy, weight, dx)
    return dx


def _slice(t: int, threads: int, length: int) -> slice:
    return slice(length * t // threads, length * (t + 1) // threads)


def _forward_by_rows(t: int, threads: int, x: Array, weight: Array, y: Array) -> None:
    """Slice t of the rows of y (N, K) = x @ weight."""
    rows = _slice(t, threads, len(x))
    np.matmul(x[rows], weight, out=y[rows])


def _forward_split_k(t: int, threads: int, x: Array, weight: Array, partial_sums: Array) -> None:
    """partial_sums[t] (N, K) = x @ weight over slice t of the inputs."""
    inputs = _slice(t, threads, len(weight))
    np.matmul(x[:, inputs], weight[inputs], out=partial_sums[t])


def _weight_gradient(t: int, threads: int, x: Array, dy: Array, d_weight: Array) -> None:
    """Slice t of the rows of d_weight (C, K) = x^T @ dy."""
    for inputs in _blocks(t, threads, len(d_weight)):
        np.matmul(x[:, inputs].T, dy, out=d_weight[inputs])


def _input_gradient(t: int, threads: int, dy: Array, weight: Array, dx: Array) -> None:
    """Slice t of the inputs of dx (N, C) = dy @ weight^T."""
    for inputs in _blocks(t, threads, len(weight)):
        np.matmul(dy, weight[inputs].T, out=dx[:, inputs])


def _blocks(t: int, threads: int, length: int) -> Iterator[slice]:
    """Slice t of `length` in blocks of `_BLAS_ROWS`."""
    whole = _slice(t, threads, length)
    for first in range(whole.start, whole.stop, _BLAS_ROWS):
        yield slice(first, min(first + _BLAS_ROWS, whole.stop))


@kernel
def _infer(t, threads, x, weight, scratch, sums):  # type: ignore[no-untyped-def]
    """Slice t of the columns of sums (R, K8) = x (N, C) @ weight (C, K), R: N rounded up to whole tiles.

    Packs `_KC` rows of the weights at a time as `micro_kernel` takes them, in scratch (T, size), behind NR zeros. Rows
    past the end repeat the last one.
    """
    rows, depth = x.shape
    filters, columns = weight.shape[1], sums.shape[1]
    last_row = rows - 1
    first, end = column_range(t, threads, columns)
    zeros = pointer(scratch, t * scratch.shape[1])
    packed = advance(zeros, NR)
    for j in range(0, NR, LANES):
        store(zeros, j, full_like(zeros, 0))
    relu = depth < 0  # False, but not a literal, for which Numba would specialise the micro-kernel
    for top in range(0, rows, _MC):
        for d in range(0, depth, _KC):
            count = min(_KC, depth - d)
            for p in range(count):  # row by row, as in memory
                row = pointer(weight, (d + p) * filters)
                for j in range(first, end, NR):
                    width = min(NR, end - j)
                    dst = advance(packed, (j - first) * count + p * width)
                    for k in range(0, width, LANES):
                        store(dst, k, load_up_to(row, j + k, filters - j - k))
            for j in range(first, end, NR):
                panel, width = advance(packed, (j - first) * count), min(NR, end - j)
                for r in range(top, min(top + _MC, rows), MR):
                    a0, a1, a2 = (
                        pointer(x, r * depth + d), pointer(x, min(r + 1, last_row) * depth + d),
                        pointer(x, min(r + 2, last_row) * depth + d),
                    )  # fmt: skip
                    a3, a4, a5 = (
                        pointer(x, min(r + 3, last_row) * depth + d), pointer(x, min(r + 4, last_row) * depth + d),
                        pointer(x, min(r + 5, last_row) * depth + d),
                    )  # fmt: skip
                    c0, c1, c2, c3, c4, c5 = tile_rows(pointer(sums, r * columns + j), columns)
                    micro_kernel(
                        a0, a1, a2, a3, a4, a5, int64(0), int64(1), count, panel, c0, c1, c2, c3, c4, c5, width, zeros,
                        d, relu,
                    )  # fmt: skip
