"""Optimizer steps, weight averages, and the outcome of a step, without waiting for the device; see cuda/optimizers.cu.

`outcome` (4,) float64 is what `cnn.backends.base.OK` describes: the kernels read it from device memory. Vectors are
float32 or float64, all of a call alike.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from cnn.backends.base import Array
from cnn.backends.gpu.kernels import kernel, type_name
from cnn.backends.gpu.layout import THREADS, flat_blocks

_ALIGNMENT = 16  # bytes that a thread loads at once
_MIN_VECTORS = 4  # per thread of a sum, and with more than _MAX_PARTS blocks more
_MAX_PARTS = 1024  # partial sums: a constant, so that sums do not depend on the device


def judge_step(outcome: Array, loss: Array, correct: Array, gradient: Array, clip: float) -> None:
    """See `ReferenceBackend.judge_step`."""
    import cupy

    parts, partial = 0, outcome  # without a gradient, `partial` is not read
    if gradient.size:
        span = _span(gradient)
        vectors = (gradient.size - span.head) // span.vector
        stretch = THREADS * max(_MIN_VECTORS, -(-vectors // (THREADS * _MAX_PARTS)))
        parts = max(1, -(-vectors // stretch))
        partial = cupy.empty(parts, np.float64)  # (B,)
        _kernel("sum_squares", span, gradient)(
            (parts,), (THREADS,), (gradient, partial, np.int64(gradient.size), span.head, stretch)
        )
    loss, correct = loss.astype(gradient.dtype, copy=False), correct.astype(np.int64, copy=False)  # () each
    name = f"judge_step<{type_name(gradient)}>"
    kernel("optimizers.cu", name, _together(gradient))(
        (1,), (THREADS,), (partial, parts, loss, correct, np.float64(clip), outcome)
    )


def sgd_step(
    weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
    lr: float, momentum: float, nesterov: bool, weight_decay: float,
) -> None:
    """See `ReferenceBackend.sgd_step`."""
    number = weights.dtype.type
    _launch(
        "sgd_step", (weights, gradient, velocity), (np.int64(decayed),), outcome,
        (number(lr), number(momentum), int(nesterov), number(weight_decay)),
    )  # fmt: skip


def adamw_step(
    weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
    lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int,
) -> None:
    """See `ReferenceBackend.adamw_step`. Factors are computed in double precision, as on the CPU."""
    rate, root_scale = lr / (1.0 - beta1**step), 1.0 / math.sqrt(1.0 - beta2**step)
    factors = (rate, root_scale, beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon, 1.0 - lr * weight_decay)
    _launch(
        "adamw_step", (weights, gradient, first, second), (np.int64(decayed),), outcome,
        tuple(map(weights.dtype.type, factors)),
    )  # fmt: skip


def average(average: Array, values: Array, rate: float, outcome: Array) -> None:
    """See `ReferenceBackend.average`."""
    _launch("average_step", (average, values), (), outcome, (average.dtype.type(rate),))


def copy(target: Array, values: Array, outcome: Array) -> None:
    """See `ReferenceBackend.copy`."""
    _launch("copy_step", (target, values), (), outcome, ())


class _Span(NamedTuple):
    """How threads cover vectors of the same size: `vector` elements at a time from element `head` on."""

    vector: int
    head: int


def _span(*vectors: Array) -> _Span:
    """Whole aligned vectors, where all arrays have the same place between two 16-byte boundaries; else one by one."""
    size, itemsize = vectors[0].size, vectors[0].itemsize
    before = {-array.data.ptr % _ALIGNMENT for array in vectors}  # bytes before the first boundary
    if len(before) > 1:
        return _Span(1, 0)
    return _Span(_ALIGNMENT // itemsize, min(size, before.pop() // itemsize))


def _launch(
    name: str, vectors: tuple[Array, ...], extent: tuple[Any, ...], outcome: Array, options: tuple[Any, ...]
) -> None:
    """Launch a kernel on vectors (size,), unless they are empty."""
    size, span = vectors[0].size, _span(*vectors)
    if size:
        blocks = flat_blocks(-(-size // span.vector))
        arguments = (*vectors, np.int64(size), *extent, span.head, outcome, *options)
        _kernel(name, span, vectors[0])((blocks,), (THREADS,), arguments)


def _kernel(name: str, span: _Span, vector: Array) -> Any:
    return kernel("optimizers.cu", f"{name}<{type_name(vector)}, {span.vector}>", _together(vector, span.vector))


def _together(vector: Array, width: int = 0) -> tuple[str, ...]:
    """The kernels that are compiled at once, for vectors of this type: those for whole vectors, or one by one."""
    wide = _ALIGNMENT // vector.itemsize
    names = ("sum_squares", "sgd_step", "adamw_step", "average_step", "copy_step")
    sized = tuple(f"{name}<{type_name(vector)}, {width or wide}>" for name in names)
    return sized if width == 1 else (*sized, f"judge_step<{type_name(vector)}>")
