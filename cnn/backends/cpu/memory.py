"""Arrays that begin at a cache line: a vector of 16 numbers is as long as one, and slow where it lies in two."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cnn.backends.base import Array

_LINE = 64  # bytes


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised array of `shape`; NumPy's own begin anywhere."""
    return _aligned(np.empty, shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """As `empty`, but all zero: by the system, which gives no memory for what is never used."""
    return _aligned(np.zeros, shape, dtype)


def _aligned(allocate: Callable[[int, Any], Array], shape: tuple[int, ...], dtype: Any) -> Array:
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = allocate(size + _LINE, np.uint8)  # (bytes,)
    first = -memory.__array_interface__["data"][0] % _LINE
    return memory[first : first + size].view(dtype).reshape(shape)
