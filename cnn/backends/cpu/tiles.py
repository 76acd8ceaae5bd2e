"""Register tiles with pixels in the lanes: a tuple of vectors, as many as the number of filters asks for.

A kernel is compiled for a number of filters K, which it is told by the type of an argument: `filters`, a tuple of K
numbers. A tile of *sums* is V vectors of pixels by K filters, V such that there are enough sums to hide the latency of
FMAs, and few enough for AVX2's 16 registers. Nothing is bounds-checked.

Channels-last arrays are taken to planes and back by transposing 4x4 blocks: in each group of 4 lanes of 4 vectors.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cnn.backends.cpu.simd import Vector, llvm_function, splat

MAX_FILTERS = 7
GROUP = 4  # channels that are transposed together
_PIXELS = (0, 4, 4, 3, 3, 2, 2, 1)  # V for K filters
_TAPS = (0, 8, 4, 4, 3, 2, 2, 1)  # and of a weight gradient's tile, whose rows are taps: see `load_outer`
_INT32 = ir.IntType(32)


def max_tile_pixels(filters: int, lanes: int) -> int:
    """The pixels of a tile."""
    return _PIXELS[filters] * lanes


def tile_taps(filters: int) -> int:
    """The taps of a weight gradient's tile."""
    return _TAPS[filters]


def _sums(pointer: Any, rows: int, filters: Any) -> Any:
    """The type of a tile."""
    return types.UniTuple(Vector(pointer.dtype, pointer.lanes), rows * filters.count)


class _Memory:
    """Writes LLVM code that loads and stores vectors through pointers, in the types of one intrinsic."""

    def __init__(self, context: Any, builder: Any, pointer: Any) -> None:
        self.builder, self.lanes, self.bytes = builder, pointer.lanes, pointer.dtype.bitwidth // 8
        self.vector = context.get_value_type(Vector(pointer.dtype, pointer.lanes))
        self.type = Vector(pointer.dtype, pointer.lanes)

    def at(self, start: Any, index: Any) -> Any:
        """The address of start[index]."""
        return self.builder.gep(start, [index if isinstance(index, ir.Value) else ir.IntType(64)(index)])

    def load(self, start: Any, index: Any, lanes: int | None = None) -> Any:
        kind = ir.VectorType(self.vector.element, lanes or self.lanes)
        address = self.builder.bitcast(self.at(start, index), kind.as_pointer())
        return self.builder.load(address, align=self.bytes)

    def store(self, values: Any, start: Any, index: Any) -> None:
        address = self.builder.bitcast(self.at(start, index), values.type.as_pointer())
        self.builder.store(values, address, align=self.bytes)

    def broadcast(self, start: Any, index: Any) -> Any:
        return splat(self.builder, self.vector, self.builder.load(self.at(start, index)))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        function = llvm_function(self.builder, "llvm.fmuladd", self.vector, [self.vector] * 3, self.type)
        return self.builder.call(function, [a, b, c])

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """The numbered lanes of a and b side by side."""
        mask = ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def transposed(self, rows: list[Any]) -> list[Any]:
        """The 4 rows with the 4x4 block in each group of 4 lanes transposed."""

        def within_groups(a: Any, b: Any, lanes: tuple[int, ...]) -> Any:  # 0 to 3 of a's group, 4 to 7 of b's
            count = self.lanes
            return self.shuffle(
                a, b, [g + lane % 4 + lane // 4 * count for g in range(0, count, 4) for lane in lanes]
            )

        a, b, c, d = rows
        low_ab, high_ab = within_groups(a, b, (0, 4, 1, 5)), within_groups(a, b, (2, 6, 3, 7))
        low_cd, high_cd = within_groups(c, d, (0, 4, 1, 5)), within_groups(c, d, (2, 6, 3, 7))
        return [
            within_groups(low_ab, low_cd, (0, 1, 4, 5)), within_groups(low_ab, low_cd, (2, 3, 6, 7)),
            within_groups(high_ab, high_cd, (0, 1, 4, 5)), within_groups(high_ab, high_cd, (2, 3, 6, 7)),
        ]  # fmt: skip

    def joined(self, parts: list[Any]) -> Any:
        """Vectors of 4 side by side, a power of two of them."""
        while len(parts) > 1:
            count = parts[0].type.count
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.shuffle(a, b, list(range(2 * count))) for a, b in pairs]
        return parts[0]

    def channels_of(self, start: Any, step: Any) -> list[Any]:
        """4 vectors of pixels, the first 4 channels of each; pixels are `step` apart."""
        pixels = [self.load(start, self.builder.mul(step, step.type(pixel)), GROUP) for pixel in range(self.lanes)]
        return self.transposed([self.joined(pixels[r::4]) for r in range(4)])  # group g of row r: pixel 4 g + r

    def planes_odd(self, start: Any, count: int) -> list[Any]:
        """The inverse of `interleave_odd`."""
        lanes, blocks = range(self.lanes), [self.load(start, v * self.lanes) for v in range(count)]
        planes = []
        for c in range(count):
            at = {(lane * count + c) % self.lanes: (lane * count + c) // self.lanes for lane in lanes}  # lane: block
            values = blocks[0]
            for v in range(1, count):
                values = self.shuffle(values, blocks[v], [lane + self.lanes * (at[lane] == v) for lane in lanes])
            planes.append(self.shuffle(values, values, [(lane * count + c) % self.lanes for lane in lanes]))
        return planes

    def interleave_even(self, planes: list[Any], start: Any, index: int) -> None:
        """Store vectors of pixels, one for each channel, with channels last. Writes up to 2 numbers beyond them."""
        count, nothing = len(planes), ir.Constant(self.vector, ir.Undefined)
        planes = planes + [nothing] * (-count % GROUP)
        groups = [self.transposed(planes[c : c + GROUP]) for c in range(0, count, GROUP)]
        for pixel in range(self.lanes):
            lanes = list(range(pixel // 4 * 4, pixel // 4 * 4 + 4))
            parts = [self.shuffle(rows[pixel % 4], nothing, lanes) for rows in groups]
            self.store(self.joined(parts), start, index + pixel * count)

    def interleave_odd(self, planes: list[Any], start: Any, index: int) -> None:
        """As `interleave_even`, but in whole vectors: an odd number of channels, each with no lane twice."""
        count, lanes = len(planes), range(self.lanes)
        inverse = pow(count, -1, self.lanes)
        at = [[(lane - c) * inverse % self.lanes for lane in lanes] for c in range(count)]
        moved = [self.shuffle(plane, plane, own) for plane, own in zip(planes, at, strict=True)]
        for v in range(count):
            channels = [(v * self.lanes + lane) % count for lane in lanes]
            values = moved[0]
            for c in range(1, count):
                values = self.shuffle(values, moved[c], [lane + self.lanes * (channels[lane] == c) for lane in lanes])
            self.store(values, start, index + v * self.lanes)


# Channels last to planes and back


@intrinsic
def load_channels(_typing, src, stride):  # type: ignore[no-untyped-def]
    """4 vectors of pixels, the channels src[0] to src[3] of each; pixels are `stride` apart. Reads 4 of every pixel."""
    result = types.UniTuple(Vector(src.dtype, src.lanes), GROUP)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, (start, step) = _Memory(context, builder, src), arguments
        return context.make_tuple(builder, result, memory.channels_of(start, step))

    return result(src, types.intp), generate


@intrinsic
def load_pixels(_typing, filters, src):  # type: ignore[no-untyped-def]
    """K vectors of pixels, the channels of src (pixels, K). Reads up to 2 numbers beyond it where K is even."""
    count, result = filters.count, types.UniTuple(Vector(src.dtype, src.lanes), filters.count)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, start = _Memory(context, builder, src), arguments[1]
        if count % 2:
            planes = memory.planes_odd(start, count)
        else:
            step = ir.IntType(64)(count)
            planes = [v for c in range(0, count, GROUP) for v in memory.channels_of(memory.at(start, c), step)]
        return context.make_tuple(builder, result, planes[:count])

    return result(filters, src), generate


@intrinsic
def store_tile(_typing, sums, filters, dst):  # type: ignore[no-untyped-def]
    """dst (pixels, K) = a tile. Writes up to 2 numbers beyond it where K is even."""
    count, signature = filters.count, types.void(sums, filters, dst)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, values = _Memory(context, builder, dst), cgutils.unpack_tuple(builder, arguments[0])
        for v in range(len(values) // count):
            interleave = memory.interleave_odd if count % 2 else memory.interleave_even
            interleave(values[v * count : (v + 1) * count], arguments[2], v * memory.lanes * count)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def prefetch(_typing, start, index):  # type: ignore[no-untyped-def]
    """Begin to fetch the cache line of start[index], which may be anywhere."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(start, types.intp), generate


# Tiles of sums


@intrinsic
def tile_pixels(_typing, filters, like):  # type: ignore[no-untyped-def]
    """The pixels of a tile: a compile-time constant."""
    pixels = max_tile_pixels(filters.count, like.lanes)

    def generate(context, _builder, signature, _arguments):  # type: ignore[no-untyped-def]
        return context.get_constant(signature.return_type, pixels)

    return types.intp(filters, like), generate


@intrinsic
def first_sums(_typing, filters, bias):  # type: ignore[no-untyped-def]
    """A tile: bias (K,) for every pixel."""
    result, count = _sums(bias, _PIXELS[filters.count], filters), filters.count

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory = _Memory(context, builder, bias)
        values = [memory.broadcast(arguments[1], k) for k in range(count)]
        return context.make_tuple(builder, result, values * (result.count // count))

    return result(filters, bias), generate


@intrinsic
def add_tap(_typing, sums, filters, x, weights):  # type: ignore[no-untyped-def]
    """A tile + x (pixels,) times weights (K,)."""
    count = filters.count

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, values = _Memory(context, builder, x), cgutils.unpack_tuple(builder, arguments[0])
        vectors = [memory.load(arguments[2], v * memory.lanes) for v in range(len(values) // count)]
        for k in range(count):
            weight = memory.broadcast(arguments[3], k)
            for v, pixels in enumerate(vectors):
                values[v * count + k] = memory.fma(pixels, weight, values[v * count + k])
        return context.make_tuple(builder, sums, values)

    return sums(sums, filters, x, weights), generate


# Weight gradients: a tile of M taps by K filters, each lane a sum of its own


@intrinsic
def outer_taps(_typing, filters):  # type: ignore[no-untyped-def]
    """M: a compile-time constant."""
    taps = _TAPS[filters.count]

    def generate(context, _builder, signature, _arguments):  # type: ignore[no-untyped-def]
        return context.get_constant(signature.return_type, taps)

    return types.intp(filters), generate


@intrinsic
def load_outer(_typing, filters, src, stride):  # type: ignore[no-untyped-def]
    """A tile of vectors from src, `stride` apart."""
    result = _sums(src, _TAPS[filters.count], filters)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, (_, start, step) = _Memory(context, builder, src), arguments
        values = [memory.load(start, builder.mul(step, step.type(i))) for i in range(result.count)]
        return context.make_tuple(builder, result, values)

    return result(filters, src, types.intp), generate


@intrinsic
def store_vectors(_typing, values, dst, stride):  # type: ignore[no-untyped-def]
    """Store vectors to dst, `stride` apart."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, (values, start, step) = _Memory(context, builder, dst), arguments
        for i, value in enumerate(cgutils.unpack_tuple(builder, values)):
            memory.store(value, start, builder.mul(step, step.type(i)))
        return context.get_dummy_value()

    return types.void(values, dst, types.intp), generate


@intrinsic
def add_outer(_typing, sums, filters, x, offsets, dy, stride):  # type: ignore[no-untyped-def]
    """A tile + a vector of x at each of the `offsets` (M,), times one of each plane of dy, `stride` apart."""
    count = filters.count

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        memory, values = _Memory(context, builder, x), cgutils.unpack_tuple(builder, arguments[0])
        _, _, start, offset, planes, step = arguments
        taps = [
            memory.load(start, builder.load(builder.gep(offset, [ir.IntType(64)(m)])))
            for m in range(len(values) // count)
        ]
        for k in range(count):
            gradient = memory.load(planes, builder.mul(step, step.type(k)))
            for m, tap in enumerate(taps):
                values[m * count + k] = memory.fma(tap, gradient, values[m * count + k])
        return context.make_tuple(builder, sums, values)

    return sums(sums, filters, x, offsets, dy, types.intp), generate
