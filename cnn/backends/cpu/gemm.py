"""The inner loops of every convolution: a small block of a matrix product that stays in registers.

Six rows by sixteen columns need twelve vector registers for their sums, two for a row of b and one for a number of
a: AVX2's sixteen, less one. Each step does twelve multiply-adds for eight loads, so that the loads hide behind the
arithmetic. All pointers count in numbers; nothing is checked.
"""

import numpy as np

from cnn.backends.cpu.simd import (
    LANES,
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

MR = 6  # of a block
NR = 16  # of a wide block; a narrow one has half
_CHUNK = 64


@inner
def gemm(a, a_row, b, rows, depth, columns, c, zeros):  # type: ignore[no-untyped-def]
    """c (rows, columns) = a (rows, a_row), of which `depth` numbers count, @ b (depth, columns), packed.

    rows: a multiple of 6; columns: of 8. Packed means in blocks of 16 columns, each (depth, 16), the last perhaps 8.
    Sums are taken over `_CHUNK` of the depth at a time and then added up: a long sum's rounding error grows with it.
    zeros: 16 of them.
    """
    relu = depth < 0  # no; a bare False would have Numba compile the block again
    for j in range(0, columns, NR):
        panel, width = advance(b, j * depth), min(NR, columns - j)
        for d in range(0, depth, _CHUNK):
            chunk, count = advance(panel, d * width), min(_CHUNK, depth - d)
            for t in range(0, rows, MR):
                a0, c0 = advance(a, t * a_row + d), advance(c, t * columns + j)
                a1, a2, a3, a4, a5 = (
                    advance(a0, a_row), advance(a0, 2 * a_row), advance(a0, 3 * a_row), advance(a0, 4 * a_row),
                    advance(a0, 5 * a_row),
                )  # fmt: skip
                c1, c2, c3, c4, c5 = (
                    advance(c0, columns), advance(c0, 2 * columns), advance(c0, 3 * columns), advance(c0, 4 * columns),
                    advance(c0, 5 * columns),
                )  # fmt: skip
                block(
                    a0, a1, a2, a3, a4, a5, int64(0), int64(1), count, chunk, c0, c1, c2, c3, c4, c5, width, zeros,
                    d, relu,
                )  # fmt: skip


@inner
def outer_product_sum(a, a_steps, depth, b, b_steps, columns, counts, c, c_row):  # type: ignore[no-untyped-def]
    """c (depth, c_row) += the sum over a grid of places of a (depth numbers) times b (columns numbers).

    `counts` are the grid's three sizes, and `a_steps` and `b_steps` how far a and b move along each. columns is a
    multiple of 8; depth is taken in sixes, so that up to 5 numbers more of a are read and rows of c written.
    """
    for j in range(0, columns, NR):
        for i in range(0, depth, MR):
            if columns - j > LANES:
                _wide_outer_block(advance(a, i), a_steps, advance(b, j), b_steps, counts, advance(c, i * c_row + j), c_row)
            else:
                _narrow_outer_block(advance(a, i), a_steps, advance(b, j), b_steps, counts, advance(c, i * c_row + j), c_row)


@inner
def block(a0, a1, a2, a3, a4, a5, row_step, runs, run, b, c0, c1, c2, c3, c4, c5, columns, start, add, relu):  # type: ignore[no-untyped-def]
    """Six rows of c (`columns` of them, at most 16) = six rows of a (runs * run) @ b (runs * run, 16 or 8), packed.

    Row r of a begins at a_r and has `runs` stretches of `run` numbers, `row_step` apart. Sums begin with the 16
    numbers of `start`. `add`, if not 0, adds to c instead of setting it, and wants 16 or 8 columns; `relu` lets
    nothing below zero through.
    """
    if columns > LANES:
        _wide_block(a0, a1, a2, a3, a4, a5, row_step, runs, run, b, c0, c1, c2, c3, c4, c5, columns, start, add, relu)
    else:
        _narrow_block(a0, a1, a2, a3, a4, a5, row_step, runs, run, b, c0, c1, c2, c3, c4, c5, columns, start, add, relu)


@inner
def _store_columns(c, first, second, columns, add, least):  # type: ignore[no-untyped-def]
    """The first `columns` of `first` and `second` one after the other, none of them below `least`."""
    if add > 0:
        first = first + load(c, 0)
        if columns > LANES:
            second = second + load(c, LANES)
    first, second = maximum(first, least), maximum(second, least)
    if columns >= NR:
        store(c, 0, first)
        store(c, 8, second)
    elif columns >= 8:
        store(c, 0, first)
        if columns > 8:
            store_masked(c, 8, second, columns - 8)
    else:
        store_masked(c, 0, first, columns)


@inner
def _wide_block(a0, a1, a2, a3, a4, a5, row_step, runs, run, b, c0, c1, c2, c3, c4, c5, columns, start, add, relu):  # type: ignore[no-untyped-def]
    """As `block`, for 9 to 16 columns."""
    left, right, least = load(start, 0), load(start, LANES), full_like(b, 0 if relu else -np.inf)
    s00, s10, s20, s30, s40, s50 = left, left, left, left, left, left
    s01, s11, s21, s31, s41, s51 = right, right, right, right, right, right
    for _ in range(runs):
        for p in range(run):
            b0, b1 = load(b, 16 * p), load(b, 16 * p + 8)
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
        b = advance(b, 16 * run)
        a0, a1, a2 = advance(a0, row_step), advance(a1, row_step), advance(a2, row_step)
        a3, a4, a5 = advance(a3, row_step), advance(a4, row_step), advance(a5, row_step)
    _store_columns(c0, s00, s01, columns, add, least)
    _store_columns(c1, s10, s11, columns, add, least)
    _store_columns(c2, s20, s21, columns, add, least)
    _store_columns(c3, s30, s31, columns, add, least)
    _store_columns(c4, s40, s41, columns, add, least)
    _store_columns(c5, s50, s51, columns, add, least)


@inner
def _narrow_block(a0, a1, a2, a3, a4, a5, row_step, runs, run, b, c0, c1, c2, c3, c4, c5, columns, start, add, relu):  # type: ignore[no-untyped-def]
    """As `block`, for at most 8 columns."""
    left, least = load(start, 0), full_like(b, 0 if relu else -np.inf)
    s0, s1, s2, s3, s4, s5 = left, left, left, left, left, left
    for _ in range(runs):
        for p in range(run):
            b0 = load(b, 8 * p)
            s0, s1 = fma(broadcast(a0, p), b0, s0), fma(broadcast(a1, p), b0, s1)
            s2, s3 = fma(broadcast(a2, p), b0, s2), fma(broadcast(a3, p), b0, s3)
            s4, s5 = fma(broadcast(a4, p), b0, s4), fma(broadcast(a5, p), b0, s5)
        b = advance(b, 8 * run)
        a0, a1, a2 = advance(a0, row_step), advance(a1, row_step), advance(a2, row_step)
        a3, a4, a5 = advance(a3, row_step), advance(a4, row_step), advance(a5, row_step)
    _store_columns(c0, s0, least, columns, add, least)
    _store_columns(c1, s1, least, columns, add, least)
    _store_columns(c2, s2, least, columns, add, least)
    _store_columns(c3, s3, least, columns, add, least)
    _store_columns(c4, s4, least, columns, add, least)
    _store_columns(c5, s5, least, columns, add, least)


@inner
def _wide_outer_block(a, a_steps, b, b_steps, counts, c, c_step):  # type: ignore[no-untyped-def]
    """As `outer_product`, for 6 rows and 16 columns of c."""
    s00, s01 = load(c, 0), load(c, 8)
    s10, s11 = load(c, c_step), load(c, c_step + 8)
    s20, s21 = load(c, 2 * c_step), load(c, 2 * c_step + 8)
    s30, s31 = load(c, 3 * c_step), load(c, 3 * c_step + 8)
    s40, s41 = load(c, 4 * c_step), load(c, 4 * c_step + 8)
    s50, s51 = load(c, 5 * c_step), load(c, 5 * c_step + 8)
    a_step, b_step = a_steps[2], b_steps[2]
    for i in range(counts[0]):
        for j in range(counts[1]):
            here, there = advance(a, i * a_steps[0] + j * a_steps[1]), advance(b, i * b_steps[0] + j * b_steps[1])
            for _ in range(counts[2]):
                b0, b1 = load(there, 0), load(there, 8)
                x = broadcast(here, 0)
                s00, s01 = fma(x, b0, s00), fma(x, b1, s01)
                x = broadcast(here, 1)
                s10, s11 = fma(x, b0, s10), fma(x, b1, s11)
                x = broadcast(here, 2)
                s20, s21 = fma(x, b0, s20), fma(x, b1, s21)
                x = broadcast(here, 3)
                s30, s31 = fma(x, b0, s30), fma(x, b1, s31)
                x = broadcast(here, 4)
                s40, s41 = fma(x, b0, s40), fma(x, b1, s41)
                x = broadcast(here, 5)
                s50, s51 = fma(x, b0, s50), fma(x, b1, s51)
                here, there = advance(here, a_step), advance(there, b_step)
    store(c, 0, s00), store(c, 8, s01)
    store(c, c_step, s10), store(c, c_step + 8, s11)
    store(c, 2 * c_step, s20), store(c, 2 * c_step + 8, s21)
    store(c, 3 * c_step, s30), store(c, 3 * c_step + 8, s31)
    store(c, 4 * c_step, s40), store(c, 4 * c_step + 8, s41)
    store(c, 5 * c_step, s50), store(c, 5 * c_step + 8, s51)


@inner
def _narrow_outer_block(a, a_steps, b, b_steps, counts, c, c_step):  # type: ignore[no-untyped-def]
    """As `outer_product`, for 6 rows and 8 columns of c."""
    s0, s1, s2 = load(c, 0), load(c, c_step), load(c, 2 * c_step)
    s3, s4, s5 = load(c, 3 * c_step), load(c, 4 * c_step), load(c, 5 * c_step)
    a_step, b_step = a_steps[2], b_steps[2]
    for i in range(counts[0]):
        for j in range(counts[1]):
            here, there = advance(a, i * a_steps[0] + j * a_steps[1]), advance(b, i * b_steps[0] + j * b_steps[1])
            for _ in range(counts[2]):
                b0 = load(there, 0)
                s0, s1 = fma(broadcast(here, 0), b0, s0), fma(broadcast(here, 1), b0, s1)
                s2, s3 = fma(broadcast(here, 2), b0, s2), fma(broadcast(here, 3), b0, s3)
                s4, s5 = fma(broadcast(here, 4), b0, s4), fma(broadcast(here, 5), b0, s5)
                here, there = advance(here, a_step), advance(there, b_step)
    store(c, 0, s0), store(c, c_step, s1), store(c, 2 * c_step, s2)
    store(c, 3 * c_step, s3), store(c, 4 * c_step, s4), store(c, 5 * c_step, s5)
