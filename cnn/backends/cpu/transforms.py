"""Winograd transforms of a 3x3 convolution: F(4x4, 3x3) and F(2x2, 3x3) (Winograd, 1980; Lavin and Gray, 2016).

A tile of m by m outputs needs an n by n patch of inputs, n = m + 2. In one dimension

    y = A^T [(G w) * (B^T x)]        w (3,), x (n,), y (m,), * elementwise

and in two dimensions each matrix is applied to columns, then rows. The sums over channels become n * n small matrix
products: 36 for 16 outputs where direct convolution needs 144 (m = 4), or 16 for 4 where it needs 36 (m = 2).

m = 4 evaluates at the points 0, +-sqrt(1/2), +-sqrt(2) and infinity, with about half the rounding error of the usual
0, +-1, +-2 (cf. the search of Alam, Anderson and Gregg, 2022). m = 2 uses 0, +-1 and infinity.

Each 1-D function here multiplies `count` inputs of n, m or 3 vectors by one matrix. The vectors of an input are `step`
apart, those of an output `dst_step`; inputs are `next_src` apart, outputs `next_dst`. The adjoint of a transform is the
transposed matrix.
"""

import math

from cnn.backends.cpu.simd import advance, fma, full_like, inner, int64, load, store
from cnn.backends.cpu.widths import LANES

_A, _B = math.sqrt(0.5), math.sqrt(2.0)  # A * B = 1

# The matrices B^T, A^T, A, G and G^T.
INPUT, OUTPUT, OUTPUT_ADJOINT, WEIGHT, WEIGHT_ADJOINT = range(5)


@inner
def transform_2d(kind, m, src, row_step, step, dst, dst_row_step, dst_step, scratch):  # type: ignore[no-untyped-def]
    """The 2-D transform `kind` for tiles of m by m outputs: columns, then rows, of a square of vectors.

    The square's rows are `row_step` apart, its columns `step`; likewise in the result. scratch: 36 vectors.
    """
    n = m + 2
    before = 3 if kind == WEIGHT else m if kind == OUTPUT_ADJOINT else n
    after = 3 if kind == WEIGHT_ADJOINT else m if kind == OUTPUT else n
    lane = int64(LANES)
    _transform_1d(kind, m, before, src, step, row_step, scratch, lane, before * lane)
    _transform_1d(kind, m, after, scratch, before * lane, lane, dst, dst_row_step, dst_step)


@inner
def _transform_1d(kind, m, count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    if m == 4:
        if kind == INPUT:
            _input4(count, src, next_src, step, dst, next_dst, dst_step)
        elif kind == OUTPUT:
            _output4(count, src, next_src, step, dst, next_dst, dst_step)
        elif kind == OUTPUT_ADJOINT:
            _output_adjoint4(count, src, next_src, step, dst, next_dst, dst_step)
        elif kind == WEIGHT:
            _weight4(count, src, next_src, step, dst, next_dst, dst_step)
        else:
            _weight_adjoint4(count, src, next_src, step, dst, next_dst, dst_step)
    elif kind == INPUT:
        _input2(count, src, next_src, step, dst, next_dst, dst_step)
    elif kind == OUTPUT:
        _output2(count, src, next_src, step, dst, next_dst, dst_step)
    elif kind == OUTPUT_ADJOINT:
        _output_adjoint2(count, src, next_src, step, dst, next_dst, dst_step)
    elif kind == WEIGHT:
        _weight2(count, src, next_src, step, dst, next_dst, dst_step)
    else:
        _weight_adjoint2(count, src, next_src, step, dst, next_dst, dst_step)


@inner
def _input4(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """B^T x, 6 to 6."""
    for _ in range(count):
        d0, d1, d2 = load(src, 0), load(src, step), load(src, 2 * step)
        d3, d4, d5 = load(src, 3 * step), load(src, 4 * step), load(src, 5 * step)
        a, b, minus_a, minus_b = full_like(d0, _A), full_like(d0, _B), full_like(d0, -_A), full_like(d0, -_B)
        minus_five_halves, minus_two, minus_half = full_like(d0, -2.5), full_like(d0, -2.0), full_like(d0, -0.5)
        even_a, odd_a = fma(minus_two, d2, d4), fma(minus_two, d1, d3)
        even_b, odd_b = fma(minus_half, d2, d4), fma(minus_half, d1, d3)
        store(dst, 0, fma(minus_five_halves, d2, d0 + d4))
        store(dst, dst_step, fma(a, odd_a, even_a))
        store(dst, 2 * dst_step, fma(minus_a, odd_a, even_a))
        store(dst, 3 * dst_step, fma(b, odd_b, even_b))
        store(dst, 4 * dst_step, fma(minus_b, odd_b, even_b))
        store(dst, 5 * dst_step, fma(minus_five_halves, d3, d1 + d5))
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _output4(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """A^T m, 6 to 4."""
    for _ in range(count):
        m0, m1, m2 = load(src, 0), load(src, step), load(src, 2 * step)
        m3, m4, m5 = load(src, 3 * step), load(src, 4 * step), load(src, 5 * step)
        sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        store(dst, 0, m0 + (sum_a + sum_b))
        store(dst, dst_step, fma(full_like(m0, _A), difference_a, full_like(m0, _B) * difference_b))
        store(dst, 2 * dst_step, fma(full_like(m0, 0.5), sum_a, full_like(m0, 2.0) * sum_b))
        odd = fma(full_like(m0, 2.0 * _B), difference_b, m5)
        store(dst, 3 * dst_step, fma(full_like(m0, 0.5 * _A), difference_a, odd))
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _output_adjoint4(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """A dy, 4 to 6."""
    for _ in range(count):
        y0, y1 = load(src, 0), load(src, step)
        y2, y3 = load(src, 2 * step), load(src, 3 * step)
        even_a, odd_a = fma(full_like(y0, 0.5), y2, y0), fma(full_like(y0, 0.5), y3, y1)
        even_b, odd_b = fma(full_like(y0, 2.0), y2, y0), fma(full_like(y0, 2.0), y3, y1)
        store(dst, 0, y0)
        store(dst, dst_step, fma(full_like(y0, _A), odd_a, even_a))
        store(dst, 2 * dst_step, fma(full_like(y0, -_A), odd_a, even_a))
        store(dst, 3 * dst_step, fma(full_like(y0, _B), odd_b, even_b))
        store(dst, 4 * dst_step, fma(full_like(y0, -_B), odd_b, even_b))
        store(dst, 5 * dst_step, y3)
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _weight4(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """G w, 3 to 6."""
    for _ in range(count):
        w0, w1, w2 = load(src, 0), load(src, step), load(src, 2 * step)
        even_a, odd_a = fma(full_like(w0, 0.5), w2, w0) * full_like(w0, -2 / 3), w1 * full_like(w0, -2 / 3 * _A)
        even_b, odd_b = fma(full_like(w0, 2.0), w2, w0) * full_like(w0, 1 / 6), w1 * full_like(w0, 1 / 6 * _B)
        store(dst, 0, w0)
        store(dst, dst_step, even_a + odd_a)
        store(dst, 2 * dst_step, even_a - odd_a)
        store(dst, 3 * dst_step, even_b + odd_b)
        store(dst, 4 * dst_step, even_b - odd_b)
        store(dst, 5 * dst_step, w2)
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _weight_adjoint4(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """G^T du, 6 to 3."""
    for _ in range(count):
        m0, m1, m2 = load(src, 0), load(src, step), load(src, 2 * step)
        m3, m4, m5 = load(src, 3 * step), load(src, 4 * step), load(src, 5 * step)
        sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        store(dst, 0, fma(full_like(m0, -2 / 3), sum_a, fma(full_like(m0, 1 / 6), sum_b, m0)))
        store(dst, dst_step, fma(full_like(m0, -2 / 3 * _A), difference_a, full_like(m0, 1 / 6 * _B) * difference_b))
        store(dst, 2 * dst_step, fma(full_like(m0, -1 / 3), sum_a, fma(full_like(m0, 1 / 3), sum_b, m5)))
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _input2(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """B^T x, 4 to 4."""
    for _ in range(count):
        d0, d1 = load(src, 0), load(src, step)
        d2, d3 = load(src, 2 * step), load(src, 3 * step)
        store(dst, 0, d0 - d2)
        store(dst, dst_step, d1 + d2)
        store(dst, 2 * dst_step, d2 - d1)
        store(dst, 3 * dst_step, d3 - d1)
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _output2(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """A^T m, 4 to 2."""
    for _ in range(count):
        m1, m2 = load(src, step), load(src, 2 * step)
        store(dst, 0, load(src, 0) + (m1 + m2))
        store(dst, dst_step, load(src, 3 * step) + (m1 - m2))
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _output_adjoint2(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """A dy, 2 to 4."""
    for _ in range(count):
        y0, y1 = load(src, 0), load(src, step)
        store(dst, 0, y0)
        store(dst, dst_step, y0 + y1)
        store(dst, 2 * dst_step, y0 - y1)
        store(dst, 3 * dst_step, y1)
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _weight2(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """G w, 3 to 4."""
    for _ in range(count):
        w0, w1, w2 = load(src, 0), load(src, step), load(src, 2 * step)
        even, odd = (w0 + w2) * full_like(w0, 0.5), w1 * full_like(w0, 0.5)
        store(dst, 0, w0)
        store(dst, dst_step, even + odd)
        store(dst, 2 * dst_step, even - odd)
        store(dst, 3 * dst_step, w2)
        src, dst = advance(src, next_src), advance(dst, next_dst)


@inner
def _weight_adjoint2(count, src, next_src, step, dst, next_dst, dst_step):  # type: ignore[no-untyped-def]
    """G^T du, 4 to 3."""
    for _ in range(count):
        m1, m2, half = load(src, step), load(src, 2 * step), full_like(src, 0.5)
        store(dst, 0, fma(half, m1 + m2, load(src, 0)))
        store(dst, dst_step, half * (m1 - m2))
        store(dst, 2 * dst_step, fma(half, m1 + m2, load(src, 3 * step)))
        src, dst = advance(src, next_src), advance(dst, next_dst)
