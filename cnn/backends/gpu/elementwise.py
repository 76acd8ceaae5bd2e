"""Activations, sums, dropout, conversions and softmax; see cuda/elementwise.cu.

Results are new arrays. N rows, each a vector of K numbers or an image.
"""

from functools import cache
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.gpu.kernels import ACTIVATIONS, TYPES, kernel
from cnn.backends.gpu.layout import THREADS, flat_blocks, layout_of, vector_of, wide_type

_BY_INPUT = ("silu", "gelu")  # activations whose derivative is computed from their input; the others', from the output
_ROWS = THREADS // 32  # of softmax in a block
_MAX_GRID_Y = 65535  # CUDA's limit


def activate(kind: str, x: Array) -> Array:
    """See `ReferenceBackend.activate`."""
    return _flat("activate", (x,), ACTIVATIONS.index(kind)) if kind else x  # shape of x


def activate_backward(kind: str, dy: Array, x: Array | None, y: Array | None) -> Array:
    """See `ReferenceBackend.activate_backward`. Only x is used for SiLU and GELU, only y for the others."""
    if not kind:
        return dy
    return _flat("activate_backward", (dy, x if kind in _BY_INPUT else y), ACTIVATIONS.index(kind))  # shape of dy


def add(a: Array, b: Array, kind: str = "") -> Array:
    """a + b, of one shape, and the activation `kind` after it."""
    return _flat("add", (a, b), ACTIVATIONS.index(kind))  # shape of a


def scale(x: Array, factor: float) -> Array:
    """x * factor."""
    return _flat("scale", (x,), wide_type(x)(factor))  # shape of x


def dropout(x: Array, rate: float, key: int, rows: Array | None) -> Array:
    """x / (1 - rate) where the draws `uniform(key, rows, ...)` of cnn/rng.py are at least `rate`, else 0.

    `rows` are int64 (N,), or None for 0 to N - 1. The same call on dy is the backward.
    """
    import cupy

    x = cupy.ascontiguousarray(x)  # (N, ...)
    y = cupy.empty(x.shape, x.dtype)  # (N, ...)
    if x.size:
        count, columns, wide = len(x), x.size // len(x), wide_type(x)
        numbers = None if rows is None else cupy.ascontiguousarray(rows, dtype=np.int64)  # (N,)
        layout = layout_of(columns, x)
        _kernel("dropout", x.dtype, layout.vector)(
            (layout.blocks(count, 1), min(layout.slices, _MAX_GRID_Y)), (THREADS,),
            (x, y, numbers, count, columns, layout.width, np.uint64(key & (2**64 - 1)), np.float32(rate),
             wide(1) / wide(1.0 - rate)),
        )  # fmt: skip
    return y


def convert(x: Array, dtype: Any) -> Array:
    """x as float32 or, rounded to the nearest, as bfloat16 (uint16); x itself if it has that type."""
    import cupy

    if x.dtype == dtype:
        return x
    x = cupy.ascontiguousarray(x)  # any shape
    y = cupy.empty(x.shape, dtype)  # shape of x
    if x.size:
        vector, size = vector_of(x, y), x.size
        _convert_kernel(x.dtype, y.dtype, vector)((flat_blocks(-(-size // vector)),), (THREADS,), (x, y, size))
    return y


def softmax(x: Array) -> Array:
    """Over the rows of x (N, K), of the wide type."""
    return _softmax("softmax", x)  # (N, K)


def softmax_backward(dy: Array, y: Array) -> Array:
    """See `ReferenceBackend.softmax_backward`."""
    return _softmax("softmax_backward", dy, y)  # (N, K)


def _flat(name: str, inputs: tuple[Array | None, ...], option: Any) -> Array:
    """Run a kernel over flat arrays of one shape and type; return its result, of that shape and type."""
    import cupy

    arrays = tuple(cupy.ascontiguousarray(array) for array in inputs)  # of one shape
    y = cupy.empty(arrays[0].shape, arrays[0].dtype)  # that shape
    if y.size:
        vector = vector_of(y, *arrays)
        _kernel(name, y.dtype, vector)(
            (flat_blocks(-(-y.size // vector)),), (THREADS,), (*arrays, y, y.size, option)
        )
    return y


def _softmax(name: str, *inputs: Array) -> Array:
    import cupy

    arrays = tuple(cupy.ascontiguousarray(array) for array in inputs)  # (N, K) each
    y = cupy.empty(arrays[0].shape, arrays[0].dtype)  # (N, K)
    if y.size:
        rows, columns = y.shape
        _softmax_kernel(name, y.dtype)((-(-rows // _ROWS),), (THREADS,), (*arrays, y, rows, columns))
    return y


@cache
def _kernel(name: str, dtype: np.dtype, vector: int) -> Any:
    kind, names = TYPES[str(dtype)], ("activate", "activate_backward", "add", "scale", "dropout")
    together = tuple(f"{each}<{kind}, {v}>" for v in (16 // dtype.itemsize, 1) for each in names)
    return kernel("elementwise.cu", f"{name}<{kind}, {vector}>", together)


@cache
def _convert_kernel(before: np.dtype, after: np.dtype, vector: int) -> Any:
    pair = f"{TYPES[str(before)]}, {TYPES[str(after)]}"
    together = tuple(f"convert<{pair}, {v}>" for v in (16 // max(before.itemsize, after.itemsize), 1))
    return kernel("elementwise.cu", f"convert<{pair}, {vector}>", together)


@cache
def _softmax_kernel(name: str, dtype: np.dtype) -> Any:
    kind = TYPES[str(dtype)]
    return kernel("elementwise.cu", f"{name}<{kind}>", (f"softmax<{kind}>", f"softmax_backward<{kind}>"))
