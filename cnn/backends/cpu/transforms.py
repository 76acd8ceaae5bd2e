"""Winograd's transforms of 3x3 convolution: F(4x4, 3x3) and F(2x2, 3x3) (Winograd, 1980; Lavin and Gray, 2016).

A tile of m by m outputs of a 3x3 convolution needs an n by n patch of inputs, n = m + 2. In one dimension

    y = A^T [(G w) * (B^T x)]        w (3,), x (n,), y (m,), * element by element

and in two dimensions each matrix is applied to columns, then rows. The products over channels become n * n small
matrix products, 36 for 16 outputs where the plain way needs 144 (m = 4), or 16 for 4 where it needs 36 (m = 2).

m = 4 evaluates at the points 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose rounding error is about half that of the
usual 0, +-1, +-2 (as searched for by Alam, Anderson and Gregg, 2022). m = 2 takes 0, +-1 and infinity.

Each function here is one matrix times some lines of n, m or 3 lane values. A line is read `step` apart and written
`to_step` apart, and lines begin `next_source` and `next_to` apart. The adjoint of a step is the transposed matrix,
nothing else; `twice` does columns, then rows.
"""

import math

from cnn.backends.cpu.simd import LANES, advance, fma, full_like, inner, int64, load, store

_A, _B = math.sqrt(0.5), math.sqrt(2.0)  # A * B = 1

# The matrices B^T, A^T, A, G and G^T, and the number of values in a line of each: n, m or 3.
INPUT, OUTPUT, OUTPUT_ADJOINT, WEIGHT, WEIGHT_ADJOINT = range(5)


@inner
def twice(kind, m, src, row_step, step, dst, to_row_step, to_step, scratch):  # type: ignore[no-untyped-def]
    """The matrix `kind` for tiles of m by m, applied to a square of lane values: columns, then rows.

    The square's rows begin `row_step` apart, its columns `step`; the result's alike. scratch: 36 lane values.
    """
    n = m + 2
    before = 3 if kind == WEIGHT else m if kind == OUTPUT_ADJOINT else n
    after = 3 if kind == WEIGHT_ADJOINT else m if kind == OUTPUT else n
    lane = int64(LANES)
    _lines(kind, m, before, src, step, row_step, scratch, lane, before * lane)
    _lines(kind, m, after, scratch, before * lane, lane, dst, to_row_step, to_step)


@inner
def _lines(kind, m, lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    if m == 4:
        if kind == INPUT:
            _input4(lines, src, next_source, step, dst, next_to, to_step)
        elif kind == OUTPUT:
            _output4(lines, src, next_source, step, dst, next_to, to_step)
        elif kind == OUTPUT_ADJOINT:
            _output_adjoint4(lines, src, next_source, step, dst, next_to, to_step)
        elif kind == WEIGHT:
            _weight4(lines, src, next_source, step, dst, next_to, to_step)
        else:
            _weight_adjoint4(lines, src, next_source, step, dst, next_to, to_step)
    elif kind == INPUT:
        _input2(lines, src, next_source, step, dst, next_to, to_step)
    elif kind == OUTPUT:
        _output2(lines, src, next_source, step, dst, next_to, to_step)
    elif kind == OUTPUT_ADJOINT:
        _output_adjoint2(lines, src, next_source, step, dst, next_to, to_step)
    elif kind == WEIGHT:
        _weight2(lines, src, next_source, step, dst, next_to, to_step)
    else:
        _weight_adjoint2(lines, src, next_source, step, dst, next_to, to_step)


@inner
def _input4(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """B^T x, six numbers to six."""
    for _ in range(lines):
        d0, d1, d2 = load(src, 0), load(src, step), load(src, 2 * step)
        d3, d4, d5 = load(src, 3 * step), load(src, 4 * step), load(src, 5 * step)
        a, b, minus_a, minus_b = full_like(d0, _A), full_like(d0, _B), full_like(d0, -_A), full_like(d0, -_B)
        two_and_a_half, minus_two, minus_half = full_like(d0, -2.5), full_like(d0, -2.0), full_like(d0, -0.5)
        even_a, odd_a = fma(minus_two, d2, d4), fma(minus_two, d1, d3)
        even_b, odd_b = fma(minus_half, d2, d4), fma(minus_half, d1, d3)
        store(dst, 0, fma(two_and_a_half, d2, d0 + d4))
        store(dst, to_step, fma(a, odd_a, even_a))
        store(dst, 2 * to_step, fma(minus_a, odd_a, even_a))
        store(dst, 3 * to_step, fma(b, odd_b, even_b))
        store(dst, 4 * to_step, fma(minus_b, odd_b, even_b))
        store(dst, 5 * to_step, fma(two_and_a_half, d3, d1 + d5))
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _output4(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """A^T m, six numbers to four."""
    for _ in range(lines):
        m0, m1, m2 = load(src, 0), load(src, step), load(src, 2 * step)
        m3, m4, m5 = load(src, 3 * step), load(src, 4 * step), load(src, 5 * step)
        sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        store(dst, 0, m0 + (sum_a + sum_b))
        store(dst, to_step, fma(full_like(m0, _A), difference_a, full_like(m0, _B) * difference_b))
        store(dst, 2 * to_step, fma(full_like(m0, 0.5), sum_a, full_like(m0, 2.0) * sum_b))
        store(dst, 3 * to_step, fma(full_like(m0, 0.5 * _A), difference_a, fma(full_like(m0, 2.0 * _B), difference_b, m5)))
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _output_adjoint4(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """A dy, four numbers to six."""
    for _ in range(lines):
        y0, y1 = load(src, 0), load(src, step)
        y2, y3 = load(src, 2 * step), load(src, 3 * step)
        even_a, odd_a = fma(full_like(y0, 0.5), y2, y0), fma(full_like(y0, 0.5), y3, y1)
        even_b, odd_b = fma(full_like(y0, 2.0), y2, y0), fma(full_like(y0, 2.0), y3, y1)
        store(dst, 0, y0)
        store(dst, to_step, fma(full_like(y0, _A), odd_a, even_a))
        store(dst, 2 * to_step, fma(full_like(y0, -_A), odd_a, even_a))
        store(dst, 3 * to_step, fma(full_like(y0, _B), odd_b, even_b))
        store(dst, 4 * to_step, fma(full_like(y0, -_B), odd_b, even_b))
        store(dst, 5 * to_step, y3)
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _weight4(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """G w, three numbers to six."""
    for _ in range(lines):
        w0, w1, w2 = load(src, 0), load(src, step), load(src, 2 * step)
        even_a, odd_a = fma(full_like(w0, 0.5), w2, w0) * full_like(w0, -2 / 3), w1 * full_like(w0, -2 / 3 * _A)
        even_b, odd_b = fma(full_like(w0, 2.0), w2, w0) * full_like(w0, 1 / 6), w1 * full_like(w0, 1 / 6 * _B)
        store(dst, 0, w0)
        store(dst, to_step, even_a + odd_a)
        store(dst, 2 * to_step, even_a - odd_a)
        store(dst, 3 * to_step, even_b + odd_b)
        store(dst, 4 * to_step, even_b - odd_b)
        store(dst, 5 * to_step, w2)
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _weight_adjoint4(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """G^T du, six numbers to three."""
    for _ in range(lines):
        m0, m1, m2 = load(src, 0), load(src, step), load(src, 2 * step)
        m3, m4, m5 = load(src, 3 * step), load(src, 4 * step), load(src, 5 * step)
        sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        store(dst, 0, fma(full_like(m0, -2 / 3), sum_a, fma(full_like(m0, 1 / 6), sum_b, m0)))
        store(dst, to_step, fma(full_like(m0, -2 / 3 * _A), difference_a, full_like(m0, 1 / 6 * _B) * difference_b))
        store(dst, 2 * to_step, fma(full_like(m0, -1 / 3), sum_a, fma(full_like(m0, 1 / 3), sum_b, m5)))
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _input2(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """B^T x, four numbers to four."""
    for _ in range(lines):
        d0, d1 = load(src, 0), load(src, step)
        d2, d3 = load(src, 2 * step), load(src, 3 * step)
        store(dst, 0, d0 - d2)
        store(dst, to_step, d1 + d2)
        store(dst, 2 * to_step, d2 - d1)
        store(dst, 3 * to_step, d3 - d1)
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _output2(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """A^T m, four numbers to two."""
    for _ in range(lines):
        m1, m2 = load(src, step), load(src, 2 * step)
        store(dst, 0, load(src, 0) + (m1 + m2))
        store(dst, to_step, load(src, 3 * step) + (m1 - m2))
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _output_adjoint2(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """A dy, two numbers to four."""
    for _ in range(lines):
        y0, y1 = load(src, 0), load(src, step)
        store(dst, 0, y0)
        store(dst, to_step, y0 + y1)
        store(dst, 2 * to_step, y0 - y1)
        store(dst, 3 * to_step, y1)
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _weight2(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """G w, three numbers to four."""
    for _ in range(lines):
        w0, w1, w2 = load(src, 0), load(src, step), load(src, 2 * step)
        even, odd = (w0 + w2) * full_like(w0, 0.5), w1 * full_like(w0, 0.5)
        store(dst, 0, w0)
        store(dst, to_step, even + odd)
        store(dst, 2 * to_step, even - odd)
        store(dst, 3 * to_step, w2)
        src, dst = advance(src, next_source), advance(dst, next_to)


@inner
def _weight_adjoint2(lines, src, next_source, step, dst, next_to, to_step):  # type: ignore[no-untyped-def]
    """G^T du, four numbers to three."""
    for _ in range(lines):
        m1, m2, half = load(src, step), load(src, 2 * step), full_like(src, 0.5)
        store(dst, 0, fma(half, m1 + m2, load(src, 0)))
        store(dst, to_step, half * (m1 - m2))
        store(dst, 2 * to_step, fma(half, m1 + m2, load(src, 3 * step)))
        src, dst = advance(src, next_source), advance(dst, next_to)
