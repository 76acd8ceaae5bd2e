"""Grids of the kernels that go through memory once: how threads cover rows of channels, or a flat array.

Kernels have a template parameter V, the elements that a thread loads at once: 16 bytes where the number of channels and
the addresses allow, else one element.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from cnn.backends.base import Array

THREADS = 256  # per block, as in cuda/common.cuh
_MAX_WIDTH = 64  # vectors of 16 bytes side by side in a block: 1 KiB, `MAX_WIDTH` in cuda/common.cuh
_BLOCKS_PER_PROCESSOR = 8


@dataclass(frozen=True)
class Layout:
    """How blocks cover rows of channels; see `Columns` in cuda/common.cuh."""

    vector: int  # elements per load
    width: int  # vectors side by side in a block
    lanes: int  # rows of a block at a time
    slices: int  # the grid's y: slices of width * vector channels

    def blocks(self, rows: int, batch: int) -> int:
        """The grid's x for a kernel whose blocks go through all rows by turns, `batch` rows per lane at a time."""
        whole = -(-rows // (self.lanes * batch))
        return max(1, min(whole, processors() * _BLOCKS_PER_PROCESSOR // self.slices))


def layout_of(channels: int, *arrays: Array) -> Layout:
    """The layout for contiguous arrays (..., channels) of one type."""
    return _layout(channels, vector_of(*arrays, multiple=channels))


@cache
def _layout(channels: int, vector: int) -> Layout:
    vectors = channels // vector
    slices = -(-vectors // (THREADS if vector == 1 else _MAX_WIDTH))
    width = -(-vectors // slices)
    return Layout(vector, width, THREADS // width, slices)


def vector_of(*arrays: Array, multiple: int = 0) -> int:
    """The elements that a thread loads at once: 16 bytes of the widest type, if a divisor of `multiple`; else 1."""
    vector = int(16 // max(array.itemsize for array in arrays))
    aligned = all(array.data.ptr % (vector * array.itemsize) == 0 for array in arrays)
    return vector if aligned and multiple % vector == 0 else 1


def flat_blocks(vectors: int) -> int:
    """The grid for a kernel that goes through so many vectors, each thread through every (grid * THREADS)-th."""
    return max(1, min(-(-vectors // THREADS), processors() * _BLOCKS_PER_PROCESSOR))


@cache
def processors() -> int:
    """The number of the device's multiprocessors."""
    import cupy

    return int(cupy.cuda.Device().attributes["MultiProcessorCount"])


def wide_type(array: Array) -> Any:
    """The scalar type in which the kernels sum the array's numbers, as `Wide` in cuda/common.cuh."""
    return np.float64 if array.dtype == np.float64 else np.float32
