"""Pillow's bicubic resize of RGB, bit for bit, at a quarter of its time: straight into the rows of a frame.

The filter's weights are whole numbers in units of 2**-22. One pass goes across the rows of the source, rounds
to bytes, and one goes down; both add up integers, so that any processor gives the same pixels. The pass across
runs only as far ahead of the pass down as that one's filter reaches, in a ring of rows that stays in cache.

Importing this module compiles the kernel, or loads it from Numba's cache. In kernels a pointer is a plain number,
an address in bytes, and nothing checks it.
"""

from __future__ import annotations

import ctypes
import struct
from math import ceil
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_FOUR_FLOATS = struct.Struct("4f")

LANES = 8
PRECISION_BITS = 22  # of a weight; a sum of products with bytes then fits 32 bits, overshoot included
REACH = 2.0  # how far the cubic extends to each side, in pixels of the coarser image

_BYTE, _INT32 = ir.IntType(8), ir.IntType(32)
_INTS, _BYTES, _HALF = ir.VectorType(_INT32, LANES), ir.VectorType(_BYTE, LANES), ir.VectorType(_BYTE, LANES // 2)


class SourceImage(Protocol):
    """An image of Pillow's; in mode RGB it has four bytes a pixel, the last one unused."""

    @property
    def mode(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def __arrow_c_array__(self) -> tuple[object, object]: ...


def resize_into(image: SourceImage, box: Box, out: npt.NDArray[np.uint8]) -> bool:
    """Write the box of an image, resized, to all of `out`, as `image.resize(size, BICUBIC, box=box)` would do it.

    out  uint8 (h, w, 3), a view of any strides; w, h >= 1

    Returns False, having written nothing, for what it leaves to Pillow: an image that is not RGB, that loses much more
    height than width, whose pixels Pillow does not show, or whose box is not within it. Safe to call from many threads.
    """
    width, height = image.size
    # Such a height Pillow 13 resizes first, while older ones always begin across; it shows in the last bits.
    tall = height - out.shape[0] > max(0, 2 * (width - out.shape[1]))
    if tall or image.mode != "RGB":
        return False
    left, top, right, bottom = _FOUR_FLOATS.unpack(_FOUR_FLOATS.pack(*box))  # as Pillow rounds them
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        return False
    pixels = _Pixels.of(image)
    if pixels is None:
        return False
    rows = out if out.strides[1:] == (3, 1) else np.empty(out.shape, dtype=np.uint8)  # (h, w, 3)
    _resize(pixels.address, width, height, left, top, right, bottom, rows)
    if rows is not out:
        out[...] = rows
    return True


# Pillow's pixels --------------------------------------------------------------------------------------


class _ArrowArray(ctypes.Structure):
    """See https://arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

# A prototype of our own: argument types set on ctypes.pythonapi's would be everyone's.
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Pixels:
    """Where an image's rows lie, end to end, four bytes a pixel. Keeps them there as long as it lives."""

    def __init__(self, address: int, owner: object) -> None:
        self.address = address
        self._owner = owner

    @classmethod
    def of(cls, image: SourceImage) -> _Pixels | None:
        """None where Pillow does not show them, or not as expected."""
        try:
            _, array = image.__arrow_c_array__()
        except (AttributeError, ValueError):
            return None
        pixels = _ArrowArray.from_address(_capsule_pointer(array, b"arrow_array"))
        width, height = image.size
        if (pixels.length, pixels.offset, pixels.n_children) != (width * height, 0, 1):
            return None
        values = pixels.children[0].contents
        if (values.length, values.offset, values.n_buffers) != (4 * width * height, 0, 2):
            return None
        address = values.buffers[1]
        return None if address is None else cls(address, array)


# Eight whole numbers at a time ------------------------------------------------------------------------


class _Ints(types.Type):  # type: ignore[misc]
    """The type of `LANES` int32 in a register."""


_ints = _Ints(name="Ints")


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, ints: _Ints) -> None:
        super().__init__(manager, ints, _INTS)


def _filled(number: int) -> Any:
    return ir.Constant(_INTS, [number] * LANES)


def _splat(builder: Any, number: Any) -> Any:
    """`number` in every lane."""
    undefined = ir.Constant(_INTS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, _filled(0))


def _load(builder: Any, address: Any, vector: Any) -> Any:
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _store(builder: Any, values: Any, address: Any) -> None:
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=1)


def _rounded(builder: Any, sums: Any) -> Any:
    """Sums of weighted bytes as bytes, kept within 0..255; `half` has rounded them already."""
    whole = builder.ashr(sums, _filled(PRECISION_BITS))
    whole = builder.select(builder.icmp_signed("<", whole, _filled(0)), _filled(0), whole)
    whole = builder.select(builder.icmp_signed(">", whole, _filled(255)), _filled(255), whole)
    return builder.trunc(whole, _BYTES)


@intrinsic
def half(_typing):  # type: ignore[no-untyped-def]
    """One half in every lane, where a sum begins that is to be rounded."""

    def generate(_context, _builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        return _filled(1 << (PRECISION_BITS - 1))

    return _ints(), generate


@intrinsic
def add_weighted(_typing, sums, address, weight):  # type: ignore[no-untyped-def]
    """sums + weight * the 8 bytes at an address."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums, address, weight = arguments
        values = builder.zext(_load(builder, address, _BYTES), _INTS)
        return builder.add(sums, builder.mul(values, _splat(builder, weight)))

    return sums(sums, types.int64, types.int32), generate


@intrinsic
def add_weighted_pair(_typing, sums, address, other, weight):  # type: ignore[no-untyped-def]
    """sums + weight * (the 4 bytes at an address, the 4 bytes at another)."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        sums, address, other, weight = arguments
        pair = builder.shuffle_vector(
            _load(builder, address, _HALF), _load(builder, other, _HALF), ir.Constant(_INTS, list(range(LANES)))
        )
        return builder.add(sums, builder.mul(builder.zext(pair, _INTS), _splat(builder, weight)))

    return sums(sums, types.int64, types.int64, types.int32), generate


@intrinsic
def put(_typing, sums, address):  # type: ignore[no-untyped-def]
    """The sums become the 8 bytes at an address."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        _store(builder, _rounded(builder, arguments[0]), arguments[1])
        return context.get_dummy_value()

    return types.void(sums, types.int64), generate


@intrinsic
def put_pair(_typing, sums, address, other):  # type: ignore[no-untyped-def]
    """The sums become the 4 bytes at an address and the 4 bytes at another."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        values = _rounded(builder, arguments[0])
        for first, address in ((0, arguments[1]), (LANES // 2, arguments[2])):
            lanes = ir.Constant(ir.VectorType(_INT32, LANES // 2), list(range(first, first + LANES // 2)))
            _store(builder, builder.shuffle_vector(values, values, lanes), address)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64), generate


# The kernel -------------------------------------------------------------------------------------------

_inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")


@_inner
def _cubic(x):  # type: ignore[no-untyped-def]
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@_inner
def _taps(size, first, last, count):  # type: ignore[no-untyped-def]
    """For each of `count` pixels between two edges: where in the source its filter starts, how long it is, its weights.

    Every step as Pillow's C code does it, in the same order: the last bit of a weight depends on it.
    """
    scale = np.float64(last - first) / count
    widening = max(scale, 1.0)
    support = REACH * widening
    step = 1.0 / widening
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


@_inner
def _across(row, other, starts, lengths, weights, out, out_other):  # type: ignore[no-untyped-def]
    """Two rows of the source, four bytes a pixel, to two of the ring, three bytes a pixel and one byte beyond."""
    for x in range(starts.shape[0]):
        sums = half()
        at = 4 * starts[x]
        for k in range(lengths[x]):
            sums = add_weighted_pair(sums, row + at + 4 * k, other + at + 4 * k, weights[x, k])
        # The fourth byte is meaningless: the next pixel overwrites it.
        put_pair(sums, out + 3 * x, out_other + 3 * x)


@_inner
def _pass_both_ways(source, width, height, columns, rows, ring, tail, out):  # type: ignore[no-untyped-def]
    """See `_resize`, which owns `ring` (slots, line) and `tail` (LANES,): Numba frees an array after its owner's last
    use of it, where an address taken there would not count as one.
    """
    x_starts, x_lengths, x_weights = columns
    y_starts, y_lengths, y_weights = rows
    slots, line = ring.shape
    mask = slots - 1
    row_bytes = 3 * out.shape[1]
    made = y_starts[0]
    for y in range(out.shape[0]):
        start, length = y_starts[y], y_lengths[y]
        while made < start + length:
            row = source + made * 4 * width
            other = row + 4 * width if made + 1 < height else row
            place, other_place = ring.ctypes.data + (made & mask) * line, ring.ctypes.data + (made + 1 & mask) * line
            _across(row, other, x_starts, x_lengths, x_weights, place, other_place)
            made += 2
        out_row = out.ctypes.data + y * out.strides[0]
        for x in range(0, row_bytes, LANES):
            sums = half()
            for k in range(length):
                sums = add_weighted(sums, ring.ctypes.data + (start + k & mask) * line + x, y_weights[y, k])
            if x + LANES <= row_bytes:
                put(sums, out_row + x)
            else:  # what follows the row is not ours
                put(sums, tail.ctypes.data)
                for i in range(row_bytes - x):
                    out[y, (x + i) // 3, (x + i) % 3] = tail[i]


@njit(
    "void(int64, int64, int64, float32, float32, float32, float32, types.Array(uint8, 3, 'A'))",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def _resize(source, width, height, left, top, right, bottom, out):  # type: ignore[no-untyped-def]
    """The box of a source (height, width, 4) to all of `out` (h, w, 3), whose rows are each in one piece."""
    columns = _taps(width, left, right, out.shape[1])
    rows = _taps(height, top, bottom, out.shape[0])
    # Room for the byte beyond a row's last, and for reading whole vectors.
    line = (3 * out.shape[1] // LANES + 1) * LANES
    slots = 1
    while slots <= rows[2].shape[1]:  # one row more than the filter is long: two are made at a time
        slots *= 2
    ring = np.empty((slots, line), np.uint8)  # (slots, line)
    tail = np.empty(LANES, np.uint8)  # (LANES,)
    _pass_both_ways(source, width, height, columns, rows, ring, tail, out)
