"""The activations and their derivatives, eight numbers at a time.

All of them come from one exponential: e^x = 2^n * e^r with n whole and |r| <= ln(2) / 2, e^r by its Taylor series,
which is as long as the precision asks for. NaN and infinity keep their meaning.
"""

import math

from cnn.backends.cpu.simd import bit_width, exp2_of_low_bits, fma, full_like, inner, maximum, minimum, select_positive
from cnn.backends.reference import GELU_CUBIC, GELU_SLOPE

# The activations' numbers inside kernels.
NONE, RELU, GELU, SILU, SIGMOID, TANH = range(6)
KINDS = {"": NONE, "relu": RELU, "gelu": GELU, "silu": SILU, "sigmoid": SIGMOID, "tanh": TANH}

_LOG2_E = 1.0 / math.log(2.0)
_LN2_HIGH = 0.693145751953125  # few bits, so that its product with a whole number is exact
_LN2_LOW = math.log(2.0) - _LN2_HIGH
_TERMS = tuple(1.0 / math.factorial(k) for k in range(15))


@inner
def _split(x):  # type: ignore[no-untyped-def]
    """e^x = 2^n * (1 + p): 2^n and p = e^r - 1."""
    # A number so large that its last bit is worth one: n is rounded into the lowest bits of the sum.
    large = full_like(x, 1.5 * 2.0**52 if bit_width(x) == 64 else 1.5 * 2.0**23)
    rounded = fma(x, full_like(x, _LOG2_E), large)
    n = rounded - large
    r = fma(n, full_like(x, -_LN2_LOW), fma(n, full_like(x, -_LN2_HIGH), x))
    # The series in pairs, which do not wait for each other: r + r^2 (a + r^2 (b + r^2 c)).
    square = r * r
    a, b = fma(r, full_like(x, _TERMS[3]), full_like(x, _TERMS[2])), fma(r, full_like(x, _TERMS[5]), full_like(x, _TERMS[4]))
    c = fma(r, full_like(x, _TERMS[7]), full_like(x, _TERMS[6]))
    if bit_width(x) == 64:
        d, e = fma(r, full_like(x, _TERMS[9]), full_like(x, _TERMS[8])), fma(r, full_like(x, _TERMS[11]), full_like(x, _TERMS[10]))
        f = fma(r, full_like(x, _TERMS[13]), full_like(x, _TERMS[12]))
        c = fma(square, fma(square, fma(square, f, e), d), c)
    return exp2_of_low_bits(rounded), fma(square, fma(square, fma(square, c, b), a), r)


@inner
def exp(x):  # type: ignore[no-untyped-def]
    """e^x; from where it leaves the numbers of its precision, it stays at the last."""
    limit = 708.0 if bit_width(x) == 64 else 87.0
    scale, p = _split(maximum(minimum(x, full_like(x, limit)), full_like(x, -limit)))
    return fma(p, scale, scale)


@inner
def divide_by_one_plus_exp(number, x):  # type: ignore[no-untyped-def]
    """number / (1 + e^x)."""
    return number / (full_like(x, 1) + exp(x))


@inner
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return divide_by_one_plus_exp(full_like(x, 1), full_like(x, 0) - x)


@inner
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh(x) = m / (m + 2) with m = e^2x - 1, which keeps its digits near zero; beyond 20 it is 1."""
    two_x = maximum(minimum(x + x, full_like(x, 40)), full_like(x, -40))
    scale, p = _split(two_x)
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
        return divide_by_one_plus_exp(x, _gelu_exponent(x))
    if kind == SILU:
        return divide_by_one_plus_exp(x, full_like(x, 0) - x)
    if kind == SIGMOID:
        return sigmoid(x)
    if kind == TANH:
        return tanh(x)
    return x


@inner
def activation_grad(kind, dy, x):  # type: ignore[no-untyped-def]
    """dy times the activation's derivative at x."""
    one = full_like(x, 1)
    if kind == RELU:
        return select_positive(x, dy)
    if kind == GELU:
        gate = divide_by_one_plus_exp(one, _gelu_exponent(x))
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
    """dy times the derivative where the activation gave y: all kinds but GELU and SiLU."""
    one = full_like(y, 1)
    if kind == RELU:
        return select_positive(y, dy)
    if kind == SIGMOID:
        return dy * y * (one - y)
    if kind == TANH:
        return dy * fma(full_like(y, 0) - y, y, one)
    return dy
