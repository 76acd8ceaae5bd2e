"""Activations and their gradients on SIMD vectors.

All are built on one exponential with range reduction: e^x = 2^n * e^r with n an integer and |r| <= ln(2) / 2, e^r by
its Taylor series to the precision's degree. NaN and infinity propagate.
"""

import math

from cnn.backends.cpu.simd import bit_width, exp2_of_low_bits, fma, full_like, inner, maximum, minimum, select_positive
from cnn.backends.reference.layers import GELU_CUBIC, GELU_SLOPE

# The activations as integers, for the kernels.
NONE, RELU, GELU, SILU, SIGMOID, TANH = range(6)
KINDS = {"": NONE, "relu": RELU, "gelu": GELU, "silu": SILU, "sigmoid": SIGMOID, "tanh": TANH}

_LOG2_E = 1.0 / math.log(2.0)
_LN2_HIGH = 0.693145751953125  # few significant bits, so that its product with an integer is exact
_LN2_LOW = math.log(2.0) - _LN2_HIGH
_TAYLOR = tuple(1.0 / math.factorial(k) for k in range(15))


@inner
def _linear(x, constant, slope):  # type: ignore[no-untyped-def]
    """constant + slope * x."""
    return fma(x, full_like(x, slope), full_like(x, constant))


@inner
def _exp_parts(x):  # type: ignore[no-untyped-def]
    """(scale, p) with e^x = scale * (1 + p): scale = 2^n, p = e^r - 1."""
    # Adding a number whose last bit is worth one rounds x / ln 2 to the integer n, into the low bits of the sum.
    shifter = full_like(x, 1.5 * 2.0**52 if bit_width(x) == 64 else 1.5 * 2.0**23)
    rounded = fma(x, full_like(x, _LOG2_E), shifter)
    n = rounded - shifter
    r = fma(n, full_like(x, -_LN2_LOW), fma(n, full_like(x, -_LN2_HIGH), x))
    # Estrin's scheme, for short dependency chains: r + r^2 (a + r^2 (b + r^2 c)).
    square = r * r
    a, b, c = _linear(r, _TAYLOR[2], _TAYLOR[3]), _linear(r, _TAYLOR[4], _TAYLOR[5]), _linear(r, _TAYLOR[6], _TAYLOR[7])
    if bit_width(x) == 64:
        d, e = _linear(r, _TAYLOR[8], _TAYLOR[9]), _linear(r, _TAYLOR[10], _TAYLOR[11])
        f = _linear(r, _TAYLOR[12], _TAYLOR[13])
        c = fma(square, fma(square, fma(square, f, e), d), c)
    return exp2_of_low_bits(rounded), fma(square, fma(square, fma(square, c, b), a), r)


@inner
def exp(x):  # type: ignore[no-untyped-def]
    """e^x, with x clamped to where the result is a finite, normal number."""
    limit = 708.0 if bit_width(x) == 64 else 87.0
    scale, p = _exp_parts(maximum(minimum(x, full_like(x, limit)), full_like(x, -limit)))
    return fma(p, scale, scale)


@inner
def _divide_by_one_plus_exp(number, x):  # type: ignore[no-untyped-def]
    """number / (1 + e^x)."""
    return number / (full_like(x, 1) + exp(x))


@inner
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return _divide_by_one_plus_exp(full_like(x, 1), full_like(x, 0) - x)


@inner
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh(x) = m / (m + 2) with m = e^2x - 1, accurate near zero; x is clamped to 20, where the result is 1."""
    two_x = maximum(minimum(x + x, full_like(x, 40)), full_like(x, -40))
    scale, p = _exp_parts(two_x)
    m = fma(p, scale, scale - full_like(x, 1))
    return m / (m + full_like(x, 2))


@inner
def _gelu_exponent(x):  # type: ignore[no-untyped-def]
    """-2u, where GELU is x (1 + tanh(u)) / 2 = x / (1 + e^-2u)."""
    return x * fma(x * x, full_like(x, -2 * GELU_SLOPE * GELU_CUBIC), full_like(x, -2 * GELU_SLOPE))


@inner
def activation(kind, x):  # type: ignore[no-untyped-def]
    """The activation `kind` of x."""
    if kind == RELU:
        return maximum(x, full_like(x, 0))
    if kind == GELU:
        return _divide_by_one_plus_exp(x, _gelu_exponent(x))
    if kind == SILU:
        return _divide_by_one_plus_exp(x, full_like(x, 0) - x)
    if kind == SIGMOID:
        return sigmoid(x)
    if kind == TANH:
        return tanh(x)
    return x


@inner
def activation_grad(kind, dy, x):  # type: ignore[no-untyped-def]
    """The gradient w.r.t. x of the activation `kind`, from its input x."""
    one = full_like(x, 1)
    if kind == RELU:
        return select_positive(x, dy)
    if kind == GELU:
        gate = _divide_by_one_plus_exp(one, _gelu_exponent(x))
        slope = fma(x * x, full_like(x, 6 * GELU_SLOPE * GELU_CUBIC), full_like(x, 2 * GELU_SLOPE))
        return dy * fma(x * slope, gate * (one - gate), gate)
    if kind == SILU:
        gate = sigmoid(x)
        return dy * gate * fma(x, one - gate, one)
    if kind in (SIGMOID, TANH):
        return activation_grad_from_output(kind, dy, activation(kind, x))
    return dy


@inner
def activation_grad_from_output(kind, dy, y):  # type: ignore[no-untyped-def]
    """As `activation_grad`, from the output y: any kind but GELU and SiLU."""
    one = full_like(y, 1)
    if kind == RELU:
        return select_positive(y, dy)
    if kind == SIGMOID:
        return dy * y * (one - y)
    if kind == TANH:
        return dy * fma(full_like(y, 0) - y, y, one)
    return dy
