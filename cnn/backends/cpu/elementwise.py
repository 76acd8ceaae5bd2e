"""Activations, their gradients, and additions on flat arrays.

The kernels process whole vectors. Forward, a remainder shorter than the widest is padded to one, so that an element's
bits do not depend on its position; backward, it goes through the reference.
"""

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.memory import empty, zeros
from cnn.backends.cpu.simd import load, pointer, store
from cnn.backends.cpu.team import Team, get_team, kernel
from cnn.backends.cpu.vector_math import (
    GELU,
    KINDS,
    SILU,
    activation,
    activation_grad,
    activation_grad_from_output,
)
from cnn.backends.cpu.widths import LANES, WIDE, lanes_for
from cnn.backends.reference import ReferenceBackend

_REFERENCE = ReferenceBackend()


def activate(kind: str, x: Array, team: Team, out: Array | None = None) -> Array:
    """See `ReferenceBackend.activate`; `out` may be x itself."""
    y = empty(x.shape, x.dtype) if out is None else out  # shape of x
    flat, flat_y, full = np.ascontiguousarray(x).reshape(-1), y.reshape(-1), x.size // WIDE * WIDE
    lanes = lanes_for(x.size)
    team.for_size(x.size).run(_activate[lanes], KINDS[kind], flat[:full], flat_y[:full])
    if full < x.size:
        last = zero_padded(flat[full:], WIDE)  # (WIDE,)
        get_team(1).run(_activate[lanes], KINDS[kind], last, last)
        flat_y[full:] = last[: x.size - full]
    return y


def activate_backward(kind: str, dy: Array, x: Array, y: Array, team: Team) -> Array:
    """See `ReferenceBackend.activate_backward`."""
    dx = empty(dy.shape, dy.dtype)  # shape of x
    saved = np.ascontiguousarray(x if kind in ("gelu", "silu") else y).reshape(-1)  # (size,)
    flat_dy, flat_dx, full = np.ascontiguousarray(dy).reshape(-1), dx.reshape(-1), dx.size // WIDE * WIDE
    team.for_size(dx.size).run(
        _activate_backward[lanes_for(dx.size)], KINDS[kind], flat_dy[:full], saved[:full], flat_dx[:full]
    )
    if full < dx.size:
        flat_dx[full:] = _REFERENCE.activate_backward(kind, flat_dy[full:], saved[full:], saved[full:])
    return dx


def add(a: Array, b: Array, kind: str, team: Team, out: Array | None = None) -> Array:
    """See `ReferenceBackend.add`; `out` may be a itself."""
    y = empty(a.shape, a.dtype) if out is None else out  # shape of a
    flat_a, flat_b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    flat_y, full = y.reshape(-1), y.size // WIDE * WIDE
    lanes = lanes_for(y.size)
    team.for_size(y.size).run(_add[lanes], KINDS[kind], flat_a[:full], flat_b[:full], flat_y[:full])
    if full < y.size:
        last = zero_padded(flat_a[full:], WIDE)  # (WIDE,)
        get_team(1).run(_add[lanes], KINDS[kind], last, zero_padded(flat_b[full:], WIDE), last)
        flat_y[full:] = last[: y.size - full]
    return y


def zero_padded(values: Array, size: int) -> Array:
    """`values` (n,), followed by zeros: (size,)."""
    padded = zeros((size,), values.dtype)  # (size,)
    padded[: values.size] = values
    return padded


@kernel
def _activate(t, threads, kind, x, y):  # type: ignore[no-untyped-def]
    """y (size,) = activation(x)."""
    vectors = x.size // LANES
    src, dst = pointer(x, 0), pointer(y, 0)
    for i in range(vectors * t // threads, vectors * (t + 1) // threads):
        store(dst, i * LANES, activation(kind, load(src, i * LANES)))


@kernel
def _activate_backward(t, threads, kind, dy, saved, dx):  # type: ignore[no-untyped-def]
    """dx (size,) from dy and what the forward pass saved: the input for GELU and SiLU, the output otherwise."""
    vectors = saved.size // LANES
    dy_src, src, dst = pointer(dy, 0), pointer(saved, 0), pointer(dx, 0)
    from_input = kind in (GELU, SILU)
    for i in range(vectors * t // threads, vectors * (t + 1) // threads):
        d, v = load(dy_src, i * LANES), load(src, i * LANES)
        grad = activation_grad(kind, d, v) if from_input else activation_grad_from_output(kind, d, v)
        store(dst, i * LANES, grad)


@kernel
def _add(t, threads, kind, a, b, y):  # type: ignore[no-untyped-def]
    """y (size,) = activation(a + b)."""
    vectors = y.size // LANES
    a_src, b_src, dst = pointer(a, 0), pointer(b, 0), pointer(y, 0)
    for i in range(vectors * t // threads, vectors * (t + 1) // threads):
        store(dst, i * LANES, activation(kind, load(a_src, i * LANES) + load(b_src, i * LANES)))
