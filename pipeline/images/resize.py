"""Pillow's bicubic resize of RGB images, bit for bit, in a quarter of its time, directly into a frame.

The filter's weights are integers in units of 2**-22. A horizontal pass rounds to bytes, and a vertical pass follows;
both sum integers, so that any processor gives the same pixels. The horizontal pass runs only as far ahead of the
vertical one as that one's filter extends, in a ring buffer of rows that stays in cache.

Importing this module compiles the kernel, or loads it from Numba's cache. In kernels a pointer is a plain integer, an
address in bytes, and nothing checks it.
"""

from __future__ import annotations

import ctypes
import struct
from math import ceil
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from logpose.common.kernels import cached_njit, inner

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_FOUR_FLOATS = struct.Struct("4f")

LANES = 8
PRECISION_BITS = 22  # of a weight, so that a sum of products with bytes fits 32 bits, including overshoot
SUPPORT = 2.0  # half the width of the bicubic filter, in pixels of the coarser image

_BYTE, _INT32 = ir.IntType(8), ir.IntType(32)
_INTS, _BYTES = ir.VectorType(_INT32, LANES), ir.VectorType(_BYTE, LANES)
_HALF_BYTES = ir.VectorType(_BYTE, LANES // 2)


class PillowImage(Protocol):
    """The part of `PIL.Image.Image` used here. In mode RGB it has four bytes a pixel, the last one unused."""

    @property
    def mode(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def __arrow_c_array__(self) -> tuple[object, object]: ...


def resize_into(image: PillowImage, box: Box, out: npt.NDArray[np.uint8]) -> bool:
    """Resize the box of an image to `out`, with the same pixels as `image.resize(size, BICUBIC, box=box)`.

    out  uint8 (h, w, 3), a view of any strides; w, h >= 1

    Returns False, and writes nothing, for what it leaves to Pillow: an image that is not RGB, that shrinks much more in
    height than in width, whose pixels Pillow does not expose, or whose box is not within it. Safe to call from many
    threads.
    """
    width, height = image.size
    # Pillow 13 does the vertical pass of such an image first, older versions never do; the last bits differ.
    tall = height - out.shape[0] > max(0, 2 * (width - out.shape[1]))
    if tall or image.mode != "RGB":
        return False
    left, top, right, bottom = _FOUR_FLOATS.unpack(_FOUR_FLOATS.pack(*box))  # rounded as in Pillow
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        return False
    pixels = _pixel_address(image)
    if pixels is None:
        return False
    address, _owner = pixels  # the owner must live until the pixels are read
    rows = out if out.strides[1:] == (3, 1) else np.empty(out.shape, dtype=np.uint8)  # (h, w, 3)
    _resize(address, width, height, left, top, right, bottom, rows)
    if rows is not out:
        out[...] = rows
    return True


# Access to Pillow's pixels ----------------------------------------------------------------------------


class _ArrowArray(ctypes.Structure):
    """See https://arrow.apache.org/docs/format/CDataInterface.html."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


# A prototype of its own: argument types set on ctypes.pythonapi's function would apply to all of the process.
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _pixel_address(image: PillowImage) -> tuple[int, object] | None:
    """The address of an image's contiguous rows, four bytes a pixel, and the object that keeps them alive.

    None where Pillow does not expose the pixels, or not in the expected layout.
    """
    try:
        _, array = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        return None
    pixels = _ArrowArray.from_address(_capsule_pointer(array, b"arrow_array"))
    width, height = image.size
    if (pixels.length, pixels.offset, pixels.n_children) != (width * height, 0, 1):
        return None
    values = _ArrowArray.from_address(pixels.children[0])
    if (values.length, values.offset, values.n_buffers) != (4 * width * height, 0, 2):
        return None
    address = values.buffers[1]
    return None if address is None else (address, array)


# SIMD intrinsics --------------------------------------------------------------------------------------


class _Int32Vector(types.Type):  # type: ignore[misc]
    """Numba type: a vector register of `LANES` int32."""


_int32_vector = _Int32Vector(name="Int32Vector")


@register_model(_Int32Vector)
class _Int32VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: _Int32Vector) -> None:
        super().__init__(manager, numba_type, _INTS)


def _constant(number: int) -> Any:
    return ir.Constant(_INTS, [number] * LANES)


def _broadcast(builder: Any, number: Any) -> Any:
    """A vector of `number` in every lane."""
    undefined = ir.Constant(_INTS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, _constant(0))


def _load(builder: Any, address: Any, vector: Any) -> Any:
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _store(builder: Any, values: Any, address: Any) -> None:
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=1)


def _to_bytes(builder: Any, sums: Any) -> Any:
    """Convert weighted sums to bytes, clipped to 0..255. Rounds, since each sum starts at `rounding_half`."""
    values = builder.ashr(sums, _constant(PRECISION_BITS))
    values = builder.select(builder.icmp_signed("<", values, _constant(0)), _constant(0), values)
    values = builder.select(builder.icmp_signed(">", values, _constant(255)), _constant(255), values)
    return builder.trunc(values, _BYTES)


@intrinsic
def rounding_half(_typing):  # type: ignore[no-untyped-def]
    """Return one half in every lane: the start of a sum whose truncation then rounds."""

    def generate(_context, _builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        return _constant(1 << (PRECISION_BITS - 1))

    return _int32_vector(), generate


@intrinsic
def add_weighted(_typing, sums, address, weight):  # type: ignore[no-untyped-def]
    """Return sums + weight * (the 8 bytes at `address`)."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums, address, weight = arguments
        values = builder.zext(_load(builder, address, _BYTES), _INTS)
        return builder.add(sums, builder.mul(values, _broadcast(builder, weight)))

    return sums(sums, types.int64, types.int32), generate


@intrinsic
def add_weighted_pair(_typing, sums, address, other, weight):  # type: ignore[no-untyped-def]
    """Return sums + weight * (the 4 bytes at `address`, the 4 bytes at `other`)."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums, address, other, weight = arguments
        pair = builder.shuffle_vector(
            _load(builder, address, _HALF_BYTES),
            _load(builder, other, _HALF_BYTES),
            ir.Constant(_INTS, list(range(LANES))),
        )
        return builder.add(sums, builder.mul(builder.zext(pair, _INTS), _broadcast(builder, weight)))

    return sums(sums, types.int64, types.int64, types.int32), generate


@intrinsic
def store(_typing, sums, address):  # type: ignore[no-untyped-def]
    """Store the sums as the 8 bytes at `address`."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        _store(builder, _to_bytes(builder, arguments[0]), arguments[1])
        return context.get_dummy_value()

    return types.void(sums, types.int64), generate


@intrinsic
def store_pair(_typing, sums, address, other):  # type: ignore[no-untyped-def]
    """Store the sums as the 4 bytes at `address` and the 4 bytes at `other`."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        values = _to_bytes(builder, arguments[0])
        for first, address in ((0, arguments[1]), (LANES // 2, arguments[2])):
            lanes = ir.Constant(ir.VectorType(_INT32, LANES // 2), list(range(first, first + LANES // 2)))
            _store(builder, builder.shuffle_vector(values, values, lanes), address)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64), generate


# The kernel -------------------------------------------------------------------------------------------

@inner
def _cubic(x):  # type: ignore[no-untyped-def]
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@inner
def _filter_weights(size, first, last, count):  # type: ignore[no-untyped-def]
    """The filters of `count` pixels between two edges: starts (count,), lengths (count,), weights (count, longest).

    Each step as in Pillow's C code (precompute_coeffs), in the same order: the last bit of a weight depends on it.
    """
    scale = np.float64(last - first) / count
    filter_scale = max(scale, 1.0)
    support = SUPPORT * filter_scale
    step = 1.0 / filter_scale
    longest = ceil(support) * 2 + 1
    starts = np.empty(count, np.int64)  # (count,)
    lengths = np.empty(count, np.int64)  # (count,)
    weights = np.empty((count, longest), np.int32)  # (count, longest)
    exact = np.empty(longest, np.float64)  # (longest,)
    for i in range(count):
        centre = first + (i + 0.5) * scale
        start = max(0, int(centre - support + 0.5))
        length = min(size, int(centre + support + 0.5)) - start
        total = 0.0
        for k in range(length):
            exact[k] = _cubic((k + start - centre + 0.5) * step)
            total += exact[k]
        for k in range(length):
            weight = exact[k] / total if total != 0.0 else exact[k]
            weights[i, k] = int(weight * (1 << PRECISION_BITS) + (-0.5 if weight < 0.0 else 0.5))
        starts[i] = start
        lengths[i] = length
    return starts, lengths, weights


@inner
def _resize_two_rows(row, other, starts, lengths, weights, out, out_other):  # type: ignore[no-untyped-def]
    """Horizontal pass: two source rows of four bytes a pixel to two ring rows of three, plus one byte at the end."""
    for x in range(starts.shape[0]):
        sums = rounding_half()
        offset = 4 * starts[x]
        for k in range(lengths[x]):
            sums = add_weighted_pair(sums, row + offset + 4 * k, other + offset + 4 * k, weights[x, k])
        # The fourth byte is unused: the next pixel overwrites it.
        store_pair(sums, out + 3 * x, out_other + 3 * x)


@inner
def _resize_with_buffers(source, width, height, columns, rows, ring, tail, out):  # type: ignore[no-untyped-def]
    """Both passes, with the buffers ring (slots, line) and tail (LANES,).

    The caller owns the buffers: Numba frees an array after its owner's last use of it, and the use of an address taken
    from it does not count.
    """
    x_starts, x_lengths, x_weights = columns
    y_starts, y_lengths, y_weights = rows
    slots, line = ring.shape
    mask = slots - 1
    row_bytes = 3 * out.shape[1]
    resized = y_starts[0]  # source rows before this one have been through the horizontal pass
    for y in range(out.shape[0]):
        start, length = y_starts[y], y_lengths[y]
        while resized < start + length:
            row = source + resized * 4 * width
            other = row + 4 * width if resized + 1 < height else row
            slot = ring.ctypes.data + (resized & mask) * line
            other_slot = ring.ctypes.data + (resized + 1 & mask) * line
            _resize_two_rows(row, other, x_starts, x_lengths, x_weights, slot, other_slot)
            resized += 2
        out_row = out.ctypes.data + y * out.strides[0]
        for x in range(0, row_bytes, LANES):
            sums = rounding_half()
            for k in range(length):
                sums = add_weighted(sums, ring.ctypes.data + (start + k & mask) * line + x, y_weights[y, k])
            if x + LANES <= row_bytes:
                store(sums, out_row + x)
            else:  # a whole vector would overwrite what follows the row
                store(sums, tail.ctypes.data)
                for i in range(row_bytes - x):
                    out[y, (x + i) // 3, (x + i) % 3] = tail[i]


@cached_njit(
    "void(int64, int64, int64, float32, float32, float32, float32, types.Array(uint8, 3, 'A'))",
    nogil=True,
    error_model="numpy",
)
def _resize(source, width, height, left, top, right, bottom, out):  # type: ignore[no-untyped-def]
    """Resize the box of a source (height, width, 4) to `out` (h, w, 3), each row of which is contiguous."""
    columns = _filter_weights(width, left, right, out.shape[1])
    rows = _filter_weights(height, top, bottom, out.shape[0])
    # Space for the byte after a row's last, and for reading whole vectors.
    line = (3 * out.shape[1] // LANES + 1) * LANES
    slots = 1
    while slots <= rows[2].shape[1]:  # one row more than the longest filter, since rows are resized in pairs
        slots *= 2
    ring = np.empty((slots, line), np.uint8)  # (slots, line)
    tail = np.empty(LANES, np.uint8)  # (LANES,)
    _resize_with_buffers(source, width, height, columns, rows, ring, tail, out)
