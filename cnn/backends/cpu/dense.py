"""Fully connected layers: BLAS in training, in blocks shared by the threads, and our own GEMM kernel in inference.

With BLAS a row's bits depend on the other rows of the call, since the last ones take another path. So its calls are for
blocks that depend on the shapes alone, not on the number of threads. The kernel treats all rows alike.

N rows, C inputs, K outputs; KV: K rounded up to whole vectors; S blocks.
"""

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.gemm import MR, NR, column_range, micro_kernel, round_up, tile_rows
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.simd import advance, full_like, int64, load_up_to, pointer, store
from cnn.backends.cpu.team import Team, get_team, kernel
from cnn.backends.cpu.widths import LANES, NARROW, lanes_for
from cnn.backends.reference import ReferenceBackend

_MIN_PARALLEL_MACS = 4_000_000  # a smaller product does not amortise waking a thread
_BLAS_CALLS = 8  # at least, for a product that is large enough: work for as many threads
_BLAS_ROWS = (128, 1024)  # rows of the weights in a BLAS call: not too few, and so few that they stay in cache
_BLAS_COLUMNS = 32  # or columns, at least
_BLAS_MULTIPLE = 16  # of which its rows or columns are a multiple
_KC = 256  # depth of a block, whose sum is added to the total: the rounding error of a sum grows with its length
_MC = 96  # rows of x, a multiple of MR, for which a block of weights is packed once
_REFERENCE = ReferenceBackend()
_round_up = round_up[NARROW].py_func


def forward(x: Array, weight: Array, bias: Array | None, team: Team) -> Array:
    """See `ReferenceBackend.dense`."""
    if len(x) * weight.size < _MIN_PARALLEL_MACS:
        return _REFERENCE.dense(x, weight, bias)
    inputs, outputs = weight.shape
    if _BLAS_CALLS * outputs <= inputs:
        blocks = _blocks(inputs, _BLAS_ROWS[0], inputs)
        partial_sums = empty((len(blocks), len(x), outputs), x.dtype)  # (S, N, K)
        team.run(_forward_split_k, blocks, x, weight, partial_sums)
        y = partial_sums.sum(axis=0)  # (N, K)
    else:  # partial sums would be larger than x
        y = empty((len(x), outputs), x.dtype)  # (N, K)
        team.run(_forward_by_columns, _blocks(outputs, _BLAS_COLUMNS, outputs), x, weight, y)
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
    lanes = lanes_for(weight.shape[1])
    rows, columns = _round_up(len(x), MR), _round_up(weight.shape[1], lanes)
    sums = empty((rows, columns), x.dtype)  # (R, KV), R: N rounded up to whole tiles
    scratch = empty((team.threads, NR[lanes] + _KC * columns), x.dtype)  # (T, size)
    team.run(_infer[lanes], np.ascontiguousarray(x), np.ascontiguousarray(weight), scratch, sums)
    y = sums[: len(x), : weight.shape[1]]  # (N, K)
    return y.copy() if bias is None else y + bias


def backward(
    dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool, team: Team
) -> Array | None:
    """See `ReferenceBackend.dense_backward`."""
    if len(x) * weight.size < _MIN_PARALLEL_MACS:
        return _REFERENCE.dense_backward(dy, x, weight, d_weight, d_bias, need_dx)
    blocks = _blocks(len(weight), *_BLAS_ROWS)
    team.run(_weight_gradient, blocks, x, dy, d_weight)
    if d_bias is not None:
        d_bias[...] = dy.sum(axis=0)  # (K,)
    if not need_dx:
        return None
    dx = empty(x.shape, x.dtype)  # (N, C)
    team.run(_input_gradient, blocks, dy, weight, dx)
    return dx


def _blocks(length: int, minimum: int, maximum: int) -> list[slice]:
    """`length` rows or columns in blocks of whole vectors, one for each BLAS call."""
    size = min(maximum, max(minimum, _round_up(-(-length // _BLAS_CALLS), _BLAS_MULTIPLE)))
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def _own(t: int, threads: int, blocks: list[slice]) -> list[slice]:
    """Thread t's run of the blocks."""
    return blocks[len(blocks) * t // threads : len(blocks) * (t + 1) // threads]


def _forward_split_k(
    t: int, threads: int, blocks: list[slice], x: Array, weight: Array, partial_sums: Array
) -> None:
    """Thread t's blocks of partial_sums (S, N, K), each x @ weight over a block of the inputs."""
    first = len(blocks) * t // threads
    for s, inputs in enumerate(_own(t, threads, blocks), first):
        np.matmul(x[:, inputs], weight[inputs], out=partial_sums[s])


def _forward_by_columns(t: int, threads: int, blocks: list[slice], x: Array, weight: Array, y: Array) -> None:
    """Thread t's blocks of the columns of y (N, K) = x @ weight."""
    for columns in _own(t, threads, blocks):
        np.matmul(x, weight[:, columns], out=y[:, columns])


def _weight_gradient(t: int, threads: int, blocks: list[slice], x: Array, dy: Array, d_weight: Array) -> None:
    """Thread t's blocks of the rows of d_weight (C, K) = x^T @ dy."""
    for inputs in _own(t, threads, blocks):
        np.matmul(x[:, inputs].T, dy, out=d_weight[inputs])


def _input_gradient(t: int, threads: int, blocks: list[slice], dy: Array, weight: Array, dx: Array) -> None:
    """Thread t's blocks of the inputs of dx (N, C) = dy @ weight^T."""
    for inputs in _own(t, threads, blocks):
        np.matmul(dy, weight[inputs].T, out=dx[:, inputs])


@kernel
def _infer(t, threads, x, weight, scratch, sums):  # type: ignore[no-untyped-def]
    """Slice t of the columns of sums (R, KV) = x (N, C) @ weight (C, K), R: N rounded up to whole tiles.

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
