"""GEMM micro-kernels: a small tile of a matrix product whose sums stay in vector registers.

The register tile has MR = 6 rows and NR = 2 vectors of columns: twelve vector registers of sums, two for a row of b and
one for an element of a, of AVX2's sixteen. Each step does twelve FMAs for eight loads, which hides the loads behind the
arithmetic. Strides count elements; nothing is bounds-checked.
"""

from typing import Any

import numpy as np

from cnn.backends.cpu.simd import (
    advance,
    broadcast,
    fma,
    full_like,
    inner,
    int64,
    load,
    maximum,
    store,
    store_masked,
)
from cnn.backends.cpu.widths import LANES, ByLanes

MR = 6  # rows of the register tile
NR: Any = ByLanes(lambda lanes: 2 * lanes)  # its columns; a narrow tile has half
# The rounding error of a sum grows with its length. So long ones are totals of sums:
_KC = 32  # over so much of the depth, in `gemm`
LONG_RUN = 512  # over a run of at least so many elements, in the micro-kernel


@inner
def round_up(number, multiple):  # type: ignore[no-untyped-def]
    """`number` rounded up to a multiple of `multiple`."""
    return (number + multiple - 1) // multiple * multiple


@inner
def gemm(a, a_row, b, rows, depth, columns, c, zeros):  # type: ignore[no-untyped-def]
    """c (rows, columns) = a (rows, depth), rows `a_row` apart, @ b (depth, columns), packed.

    rows: a multiple of MR; columns: of LANES. Packed: in panels (depth, NR), the last perhaps (depth, NR / 2). zeros:
    NR of them.
    """
    relu = depth < 0  # False, but not a literal, for which Numba would specialise the micro-kernel
    for j in range(0, columns, NR):
        panel, width = advance(b, j * depth), min(NR, columns - j)
        for d in range(0, depth, _KC):
            block, count = advance(panel, d * width), min(_KC, depth - d)
            for r in range(0, rows, MR):
                a0, a1, a2, a3, a4, a5 = tile_rows(advance(a, r * a_row + d), a_row)
                c0, c1, c2, c3, c4, c5 = tile_rows(advance(c, r * columns + j), columns)
                micro_kernel(
                    a0, a1, a2, a3, a4, a5, int64(0), int64(1), count, block, c0, c1, c2, c3, c4, c5, width, zeros,
                    d, relu,
                )  # fmt: skip


@inner
def outer_product_sum(a, a_strides, depth, b, b_strides, columns, counts, c, c_row):  # type: ignore[no-untyped-def]
    """c (depth, c_row) += the sum of outer products a (depth,) x b (columns,) over a 3-D grid of pixels.

    `counts` are the grid's sizes, `a_strides` and `b_strides` its strides in a and b. columns: a multiple of LANES.
    Reads up to MR - 1 elements beyond a, and writes as many rows beyond c's.
    """
    for j in range(0, columns, NR):
        for i in range(0, depth, MR):
            a_tile, b_tile, c_tile = advance(a, i), advance(b, j), advance(c, i * c_row + j)
            if columns - j > LANES:
                _outer_product_sum_6x2(a_tile, a_strides, b_tile, b_strides, counts, c_tile, c_row)
            else:
                _outer_product_sum_6x1(a_tile, a_strides, b_tile, b_strides, counts, c_tile, c_row)


@inner
def column_range(t, threads, columns):  # type: ignore[no-untyped-def]
    """Slice t of `threads` of the columns, in whole tiles: the first column, and the end."""
    tiles = (columns + NR - 1) // NR
    return tiles * t // threads * NR, min(columns, tiles * (t + 1) // threads * NR)


# Outer products are summed in portions of the pixels (see team.py). The unit of work is a tile of NR columns of one
# portion's sum; each thread takes a run of units.


@inner
def portion_range(t, threads, portions, columns):  # type: ignore[no-untyped-def]
    """The first portion that thread t works on, and the end."""
    tiles = (columns + NR - 1) // NR
    first, stop = portions * tiles * t // threads, portions * tiles * (t + 1) // threads
    return first // tiles, (stop + tiles - 1) // tiles if stop > first else first // tiles


@inner
def portion_columns(t, threads, portions, columns, portion):  # type: ignore[no-untyped-def]
    """The first column of `portion`'s sum that thread t computes, and the end."""
    tiles = (columns + NR - 1) // NR
    first, stop = portions * tiles * t // threads, portions * tiles * (t + 1) // threads
    return max(0, first - portion * tiles) * NR, min(columns, (stop - portion * tiles) * NR)


@inner
def tile_rows(start, stride):  # type: ignore[no-untyped-def]
    """Pointers to the MR rows of a register tile, `stride` apart."""
    return (
        start, advance(start, stride), advance(start, 2 * stride), advance(start, 3 * stride),
        advance(start, 4 * stride), advance(start, 5 * stride),
    )  # fmt: skip


@inner
def micro_kernel(a0, a1, a2, a3, a4, a5, stride, runs, run, b, c0, c1, c2, c3, c4, c5, columns, init, add, relu):  # type: ignore[no-untyped-def]
    """A tile of c, MR rows of `columns` <= NR, = MR rows of a (runs * run) @ a packed panel b (runs * run, width).

    Row r of a begins at a_r: `runs` runs of `run` elements, `stride` apart. Sums start from `init` (NR,). If `add`
    is not 0, the result is added to c, and `columns` must be `width`: NR, or LANES if that is enough. `relu` applies
    ReLU.
    """
    if columns > LANES:
        _micro_kernel_6x2(
            a0, a1, a2, a3, a4, a5, stride, runs, run, b, c0, c1, c2, c3, c4, c5, columns, init, add, relu
        )
    else:
        _micro_kernel_6x1(
            a0, a1, a2, a3, a4, a5, stride, runs, run, b, c0, c1, c2, c3, c4, c5, columns, init, add, relu
        )


@inner
def _store_row(c, left, right, columns, add, minimum):  # type: ignore[no-untyped-def]
    """c (columns,) = max(left and right side by side, minimum), added to c before if `add` > 0."""
    if add > 0:
        left = left + load(c, 0)
        if columns > LANES:
            right = right + load(c, LANES)
    left, right = maximum(left, minimum), maximum(right, minimum)
    if columns >= NR:
        store(c, 0, left)
        store(c, LANES, right)
    elif columns >= LANES:
        store(c, 0, left)
        if columns > LANES:
            store_masked(c, LANES, right, columns - LANES)
    else:
        store_masked(c, 0, left, columns)


@inner
def _micro_kernel_6x2(a0, a1, a2, a3, a4, a5, stride, runs, run, b, c0, c1, c2, c3, c4, c5, columns, init, add, relu):  # type: ignore[no-untyped-def]
    """`micro_kernel` for more than LANES columns."""
    left, right, minimum = load(init, 0), load(init, LANES), full_like(b, 0 if relu else -np.inf)
    s00, s10, s20, s30, s40, s50 = left, left, left, left, left, left
    s01, s11, s21, s31, s41, s51 = right, right, right, right, right, right
    zero = full_like(b, 0)
    t00, t10, t20, t30, t40, t50 = zero, zero, zero, zero, zero, zero
    t01, t11, t21, t31, t41, t51 = zero, zero, zero, zero, zero, zero
    for _ in range(runs):
        for p in range(run):
            b0, b1 = load(b, NR * p), load(b, NR * p + LANES)
            x = broadcast(a0, p)
            s00, s01 = fma(x, b0, s00), fma(x, b1, s01)
            x = broadcast(a1, p)
            s10, s11 = fma(x, b0, s10), fma(x, b1, s11)
            x = broadcast(a2, p)
            s20, s21 = fma(x, b0, s20), fma(x, b1, s21)
            x = broadcast(a3, p)
            s30, s31 = fma(x, b0, s30), fma(x, b1, s31)
            x = broadcast(a4, p)
            s40, s41 = fma(x, b0, s40), fma(x, b1, s41)
            x = broadcast(a5, p)
            s50, s51 = fma(x, b0, s50), fma(x, b1, s51)
        if run >= LONG_RUN:
            t00, t01, s00, s01 = t00 + s00, t01 + s01, zero, zero
            t10, t11, s10, s11 = t10 + s10, t11 + s11, zero, zero
            t20, t21, s20, s21 = t20 + s20, t21 + s21, zero, zero
            t30, t31, s30, s31 = t30 + s30, t31 + s31, zero, zero
            t40, t41, s40, s41 = t40 + s40, t41 + s41, zero, zero
            t50, t51, s50, s51 = t50 + s50, t51 + s51, zero, zero
        b = advance(b, NR * run)
        a0, a1, a2 = advance(a0, stride), advance(a1, stride), advance(a2, stride)
        a3, a4, a5 = advance(a3, stride), advance(a4, stride), advance(a5, stride)
    if run >= LONG_RUN:
        s00, s10, s20, s30, s40, s50 = t00, t10, t20, t30, t40, t50
        s01, s11, s21, s31, s41, s51 = t01, t11, t21, t31, t41, t51
    _store_row(c0, s00, s01, columns, add, minimum)
    _store_row(c1, s10, s11, columns, add, minimum)
    _store_row(c2, s20, s21, columns, add, minimum)
    _store_row(c3, s30, s31, columns, add, minimum)
    _store_row(c4, s40, s41, columns, add, minimum)
    _store_row(c5, s50, s51, columns, add, minimum)


@inner
def _micro_kernel_6x1(a0, a1, a2, a3, a4, a5, stride, runs, run, b, c0, c1, c2, c3, c4, c5, columns, init, add, relu):  # type: ignore[no-untyped-def]
    """`micro_kernel` for at most LANES columns."""
    left, minimum = load(init, 0), full_like(b, 0 if relu else -np.inf)
    s0, s1, s2, s3, s4, s5 = left, left, left, left, left, left
    zero = full_like(b, 0)
    t0, t1, t2, t3, t4, t5 = zero, zero, zero, zero, zero, zero
    for _ in range(runs):
        for p in range(run):
            b0 = load(b, LANES * p)
            s0, s1 = fma(broadcast(a0, p), b0, s0), fma(broadcast(a1, p), b0, s1)
            s2, s3 = fma(broadcast(a2, p), b0, s2), fma(broadcast(a3, p), b0, s3)
            s4, s5 = fma(broadcast(a4, p), b0, s4), fma(broadcast(a5, p), b0, s5)
        if run >= LONG_RUN:
            t0, t1, t2, t3, t4, t5 = t0 + s0, t1 + s1, t2 + s2, t3 + s3, t4 + s4, t5 + s5
            s0, s1, s2, s3, s4, s5 = zero, zero, zero, zero, zero, zero
        b = advance(b, LANES * run)
        a0, a1, a2 = advance(a0, stride), advance(a1, stride), advance(a2, stride)
        a3, a4, a5 = advance(a3, stride), advance(a4, stride), advance(a5, stride)
    if run >= LONG_RUN:
        s0, s1, s2, s3, s4, s5 = t0, t1, t2, t3, t4, t5
    _store_row(c0, s0, minimum, columns, add, minimum)
    _store_row(c1, s1, minimum, columns, add, minimum)
    _store_row(c2, s2, minimum, columns, add, minimum)
    _store_row(c3, s3, minimum, columns, add, minimum)
    _store_row(c4, s4, minimum, columns, add, minimum)
    _store_row(c5, s5, minimum, columns, add, minimum)


@inner
def _outer_product_sum_6x2(a, a_strides, b, b_strides, counts, c, c_row):  # type: ignore[no-untyped-def]
    """`outer_product_sum` for MR rows and NR columns of c."""
    s00, s01 = load(c, 0), load(c, LANES)
    s10, s11 = load(c, c_row), load(c, c_row + LANES)
    s20, s21 = load(c, 2 * c_row), load(c, 2 * c_row + LANES)
    s30, s31 = load(c, 3 * c_row), load(c, 3 * c_row + LANES)
    s40, s41 = load(c, 4 * c_row), load(c, 4 * c_row + LANES)
    s50, s51 = load(c, 5 * c_row), load(c, 5 * c_row + LANES)
    a_stride, b_stride = a_strides[2], b_strides[2]
    for i in range(counts[0]):
        for j in range(counts[1]):
            p, q = advance(a, i * a_strides[0] + j * a_strides[1]), advance(b, i * b_strides[0] + j * b_strides[1])
            for _ in range(counts[2]):
                b0, b1 = load(q, 0), load(q, LANES)
                x = broadcast(p, 0)
                s00, s01 = fma(x, b0, s00), fma(x, b1, s01)
                x = broadcast(p, 1)
                s10, s11 = fma(x, b0, s10), fma(x, b1, s11)
                x = broadcast(p, 2)
                s20, s21 = fma(x, b0, s20), fma(x, b1, s21)
                x = broadcast(p, 3)
                s30, s31 = fma(x, b0, s30), fma(x, b1, s31)
                x = broadcast(p, 4)
                s40, s41 = fma(x, b0, s40), fma(x, b1, s41)
                x = broadcast(p, 5)
                s50, s51 = fma(x, b0, s50), fma(x, b1, s51)
                p, q = advance(p, a_stride), advance(q, b_stride)
    store(c, 0, s00), store(c, LANES, s01)
    store(c, c_row, s10), store(c, c_row + LANES, s11)
    store(c, 2 * c_row, s20), store(c, 2 * c_row + LANES, s21)
    store(c, 3 * c_row, s30), store(c, 3 * c_row + LANES, s31)
    store(c, 4 * c_row, s40), store(c, 4 * c_row + LANES, s41)
    store(c, 5 * c_row, s50), store(c, 5 * c_row + LANES, s51)


@inner
def _outer_product_sum_6x1(a, a_strides, b, b_strides, counts, c, c_row):  # type: ignore[no-untyped-def]
    """`outer_product_sum` for MR rows and LANES columns of c."""
    s0, s1, s2 = load(c, 0), load(c, c_row), load(c, 2 * c_row)
    s3, s4, s5 = load(c, 3 * c_row), load(c, 4 * c_row), load(c, 5 * c_row)
    a_stride, b_stride = a_strides[2], b_strides[2]
    for i in range(counts[0]):
        for j in range(counts[1]):
            p, q = advance(a, i * a_strides[0] + j * a_strides[1]), advance(b, i * b_strides[0] + j * b_strides[1])
            for _ in range(counts[2]):
                b0 = load(q, 0)
                s0, s1 = fma(broadcast(p, 0), b0, s0), fma(broadcast(p, 1), b0, s1)
                s2, s3 = fma(broadcast(p, 2), b0, s2), fma(broadcast(p, 3), b0, s3)
                s4, s5 = fma(broadcast(p, 4), b0, s4), fma(broadcast(p, 5), b0, s5)
                p, q = advance(p, a_stride), advance(q, b_stride)
    store(c, 0, s0), store(c, c_row, s1), store(c, 2 * c_row, s2)
    store(c, 3 * c_row, s3), store(c, 4 * c_row, s4), store(c, 5 * c_row, s5)
