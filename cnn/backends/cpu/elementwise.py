"""Activations, their derivatives, and sums: flat arrays, eight numbers at a time.

The kernels do whole lanes of numbers. Forward, the last few are filled up to whole lanes: a number gets the same bits
wherever it stands. Backward, they go through the reference's array code.
"""

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.simd import LANES, load, pointer, store
from cnn.backends.cpu.team import Team, get_team, kernel
from cnn.backends.cpu.vector_math import KINDS, activation, activation_grad, activation_grad_from_output
from cnn.backends.reference import ReferenceBackend

_REFERENCE = ReferenceBackend()


def activate(kind: str, x: Array, team: Team, out: Array | None = None) -> Array:
    """See `ReferenceBackend.activate`; `out` may be x itself."""
    y = np.empty(x.shape, x.dtype) if out is None else out  # shape of x
    flat, dst, whole = np.ascontiguousarray(x).reshape(-1), y.reshape(-1), x.size // LANES * LANES
    team.for_size(x.size).run(_activate, KINDS[kind], flat, dst)
    if whole < x.size:
        last = _filled(flat[whole:])  # (8,)
        get_team(1).run(_activate, KINDS[kind], last, last)
        dst[whole:] = last[: x.size - whole]
    return y


def activate_backward(kind: str, dy: Array, x: Array, y: Array, team: Team) -> Array:
    """See `ReferenceBackend.activate_backward`."""
    kept, kernel = (x, _backward_from_input) if kind in ("gelu", "silu") else (y, _backward_from_output)
    dx = np.empty(dy.shape, dy.dtype)  # shape of x
    flat, dst, whole = np.ascontiguousarray(kept).reshape(-1), dx.reshape(-1), dx.size // LANES * LANES
    flat_dy = np.ascontiguousarray(dy).reshape(-1)  # (size,)
    team.for_size(dx.size).run(kernel, KINDS[kind], flat_dy, flat, dst)
    if whole < dx.size:
        dst[whole:] = _REFERENCE.activate_backward(kind, flat_dy[whole:], flat[whole:], flat[whole:])
    return dx


def add(a: Array, b: Array, kind: str, team: Team) -> Array:
    """See `ReferenceBackend.add`."""
    y = np.empty(a.shape, a.dtype)  # shape of a
    flat_a, flat_b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    dst, whole = y.reshape(-1), y.size // LANES * LANES
    team.for_size(y.size).run(_add, KINDS[kind], flat_a, flat_b, dst)
    if whole < y.size:
        last = _filled(flat_a[whole:])  # (8,)
        get_team(1).run(_add, KINDS[kind], last, _filled(flat_b[whole:]), last)
        dst[whole:] = last[: y.size - whole]
    return y


def _filled(few: Array) -> Array:
    """A few numbers and zeros, whole lanes together: (8,)."""
    lanes = np.zeros(LANES, few.dtype)  # (8,)
    lanes[: few.size] = few
    return lanes


@kernel
def _activate(t, threads, kind, x, y):  # type: ignore[no-untyped-def]
    """y (size,) = activation(x)."""
    groups = x.size // LANES
    src, dst = pointer(x, 0), pointer(y, 0)
    for i in range(groups * t // threads, groups * (t + 1) // threads):
        store(dst, i * LANES, activation(kind, load(src, i * LANES)))


@kernel
def _backward_from_input(t, threads, kind, dy, x, dx):  # type: ignore[no-untyped-def]
    """dx (size,) = dy times the derivative at x."""
    groups = x.size // LANES
    from_dy, src, dst = pointer(dy, 0), pointer(x, 0), pointer(dx, 0)
    for i in range(groups * t // threads, groups * (t + 1) // threads):
        store(dst, i * LANES, activation_grad(kind, load(from_dy, i * LANES), load(src, i * LANES)))


@kernel
def _backward_from_output(t, threads, kind, dy, y, dx):  # type: ignore[no-untyped-def]
    """dx (size,) = dy times the derivative where the activation gave y."""
    groups = y.size // LANES
    from_dy, src, dst = pointer(dy, 0), pointer(y, 0), pointer(dx, 0)
    for i in range(groups * t // threads, groups * (t + 1) // threads):
        store(dst, i * LANES, activation_grad_from_output(kind, load(from_dy, i * LANES), load(src, i * LANES)))


@kernel
def _add(t, threads, kind, a, b, y):  # type: ignore[no-untyped-def]
    """y (size,) = activation(a + b)."""
    groups = y.size // LANES
    left, right, dst = pointer(a, 0), pointer(b, 0), pointer(y, 0)
    for i in range(groups * t // threads, groups * (t + 1) // threads):
        store(dst, i * LANES, activation(kind, load(left, i * LANES) + load(right, i * LANES)))
