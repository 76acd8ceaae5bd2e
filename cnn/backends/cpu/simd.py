"""SIMD vectors for Numba kernels: explicit vector instructions instead of auto-vectorisation.

A `Vector` holds 8 or 16 floats in vector registers (see `widths.py`), as many as the pointer says through which it is
loaded. Kernels apply `+`, `-`, `*`, `/` and the functions below, which become LLVM vector instructions: portable, and
fast where the processor has AVX2 and FMA, or AVX-512. Nothing is bounds-checked.

    p = pointer(array, 0)                             # of a contiguous array
    store(p, i, fma(broadcast(p, j), load(p, k), full_like(p, 0)))
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from cnn.backends.cpu.widths import LANES, ByLanes, by_lanes
from logpose.common import kernels

# Compiles a function that only kernels call.
inner = by_lanes(lambda lanes: kernels.inner_without_arrays)

# Integer literals passed to an inner function go through `int64`: Numba would specialise it for each literal.
int64 = types.int64

_LLVM_SCALARS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_INT32 = ir.IntType(32)


class _Lanes(types.Type):  # type: ignore[misc]
    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"{type(self).__name__}({dtype}, {lanes})")


class Vector(_Lanes):
    """The Numba type of `lanes` numbers of `dtype` in vector registers."""


class Pointer(_Lanes):
    """The Numba type of the address of numbers of `dtype`, loaded `lanes` at a time."""


register_model(Pointer)(models.PointerModel)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_LLVM_SCALARS[vector.dtype], vector.lanes))


def _vector_pointer(context: Any, builder: Any, pointer: Any, index: Any, vector: Vector) -> Any:
    llvm_type = context.get_value_type(vector)
    return builder.bitcast(builder.gep(pointer, [index]), llvm_type.as_pointer())


def splat(builder: Any, llvm_type: Any, number: Any) -> Any:
    """`number` in every lane."""
    undefined = ir.Constant(llvm_type, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT32, llvm_type.count), None))


def llvm_function(builder: Any, name: str, result: Any, arguments: list[Any], vector: Vector) -> Any:
    suffix = f"v{vector.lanes}f{32 if vector.dtype == types.float32 else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), f"{name}.{suffix}")


def _lane_by_lane(name: str, vector: Vector, count: int) -> Any:
    """Code that calls LLVM's function `name` of `count` vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        llvm_type = context.get_value_type(vector)
        return builder.call(llvm_function(builder, name, llvm_type, [llvm_type] * count, vector), arguments)

    return generate


def _first_lanes(builder: Any, vector: Vector, count: Any) -> Any:
    """The mask of the first `count` lanes."""
    integers = ir.VectorType(_INT32, vector.lanes)
    positions = ir.Constant(integers, list(range(vector.lanes)))
    return builder.icmp_signed("<", positions, splat(builder, integers, builder.trunc(count, _INT32)))


# Pointers and scalars


@ByLanes
def pointer(lanes: int) -> Any:
    """The address of element `index` of a contiguous array, counted through all its axes."""

    @intrinsic
    def pointer(_typing, array, index):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            view = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
            return builder.gep(view.data, [arguments[1]])

        return Pointer(array.dtype, lanes)(array, types.intp), generate

    return pointer


@intrinsic
def advance(_typing, start, count):  # type: ignore[no-untyped-def]
    """The pointer `start + count`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.intp), generate


@intrinsic
def load_scalar(_typing, start, index):  # type: ignore[no-untyped-def]
    """The number start[index]."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(builder.gep(arguments[0], [arguments[1]]))

    return start.dtype(start, types.intp), generate


@intrinsic
def store_scalar(_typing, start, index, number):  # type: ignore[no-untyped-def]
    """start[index] = number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(start, types.intp, start.dtype), generate


@intrinsic
def bit_width(_typing, like):  # type: ignore[no-untyped-def]
    """The bits of a number of `like`, a vector or pointer: a compile-time constant."""
    width = like.dtype.bitwidth

    def generate(context, _builder, signature, _arguments):  # type: ignore[no-untyped-def]
        return context.get_constant(signature.return_type, width)

    return types.intp(like), generate


# Load, store and fill


@intrinsic
def load(_typing, start, index):  # type: ignore[no-untyped-def]
    """The vector start[index : index + LANES]; no alignment needed."""
    vector = Vector(start.dtype, start.lanes)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = _vector_pointer(context, builder, arguments[0], arguments[1], vector)
        return builder.load(address, align=vector.dtype.bitwidth // 8)

    return vector(start, types.intp), generate


@intrinsic
def load_masked(_typing, start, index, count):  # type: ignore[no-untyped-def]
    """`load`, but reading only the first `count` lanes; the others are zero."""
    vector = Vector(start.dtype, start.lanes)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        llvm_type = context.get_value_type(vector)
        address = _vector_pointer(context, builder, arguments[0], arguments[1], vector)
        mask = _first_lanes(builder, vector, arguments[2])
        function = llvm_function(
            builder, "llvm.masked.load", llvm_type, [llvm_type.as_pointer(), _INT32, mask.type, llvm_type], vector
        )
        align = ir.Constant(_INT32, vector.dtype.bitwidth // 8)
        return builder.call(function, [address, align, mask, ir.Constant(llvm_type, None)])

    return vector(start, types.intp, types.intp), generate


@intrinsic
def store(_typing, start, index, values):  # type: ignore[no-untyped-def]
    """start[index : index + LANES] = values."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = _vector_pointer(context, builder, arguments[0], arguments[1], values)
        builder.store(arguments[2], address, align=values.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(start, types.intp, values), generate


@intrinsic
def store_masked(_typing, start, index, values, count):  # type: ignore[no-untyped-def]
    """`store`, but writing only the first `count` lanes."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        llvm_type = context.get_value_type(values)
        address = _vector_pointer(context, builder, arguments[0], arguments[1], values)
        mask = _first_lanes(builder, values, arguments[3])
        function = llvm_function(
            builder, "llvm.masked.store", ir.VoidType(), [llvm_type, llvm_type.as_pointer(), _INT32, mask.type], values
        )
        builder.call(function, [arguments[2], address, ir.Constant(_INT32, values.dtype.bitwidth // 8), mask])
        return context.get_dummy_value()

    return types.void(start, types.intp, values, types.intp), generate


@intrinsic
def load_uint(_typing, start, index, like):  # type: ignore[no-untyped-def]
    """The unsigned integers start[index : index + LANES], converted to floats of the precision of `like`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integers = ir.VectorType(ir.IntType(start.dtype.bitwidth), like.lanes)
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), integers.as_pointer())
        loaded = builder.load(address, align=start.dtype.bitwidth // 8)
        return builder.uitofp(loaded, context.get_value_type(like))

    return like(start, types.intp, like), generate


@intrinsic
def store_uint(_typing, start, index, values):  # type: ignore[no-untyped-def]
    """start[index : index + LANES] = values, converted to unsigned integers."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integers = ir.VectorType(ir.IntType(start.dtype.bitwidth), values.lanes)
        address = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), integers.as_pointer())
        converted = builder.fptoui(arguments[2], integers)
        builder.store(converted, address, align=start.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(start, types.intp, values), generate


@intrinsic
def broadcast(_typing, start, index):  # type: ignore[no-untyped-def]
    """The number start[index] in every lane."""
    vector = Vector(start.dtype, start.lanes)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = builder.load(builder.gep(arguments[0], [arguments[1]]))
        return splat(builder, context.get_value_type(vector), number)

    return vector(start, types.intp), generate


@intrinsic
def full_like(_typing, like, number):  # type: ignore[no-untyped-def]
    """`number` in every lane, in the precision of `like`, a vector or pointer."""
    vector = Vector(like.dtype, like.lanes)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        converted = context.cast(builder, arguments[1], number, vector.dtype)
        return splat(builder, context.get_value_type(vector), converted)

    return vector(like, number), generate


# Masked loads and stores are slow, so they are left to the last few numbers.


@inner
def load_up_to(start, index, count):  # type: ignore[no-untyped-def]
    """`load` of min(count, LANES) lanes; the others are zero."""
    return load(start, index) if count >= LANES else load_masked(start, index, count)


@inner
def store_up_to(start, index, values, count):  # type: ignore[no-untyped-def]
    """`store` of min(count, LANES) lanes."""
    if count >= LANES:
        store(start, index, values)
    else:
        store_masked(start, index, values, count)


@inner
def copy(src, dst, count):  # type: ignore[no-untyped-def]
    """dst[:count] = src[:count]."""
    full = count // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, i, load(src, i))
    if full < count:
        store_masked(dst, full, load_masked(src, full, count - full), count - full)


# Arithmetic and selection


@intrinsic
def fma(_typing, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c, rounded once where the processor has FMA."""
    return a(a, b, c), _lane_by_lane("llvm.fmuladd", a, 3)


@intrinsic
def sqrt(_typing, values):  # type: ignore[no-untyped-def]
    """The square root of each lane."""
    return values(values), _lane_by_lane("llvm.sqrt", values, 1)


@intrinsic
def maximum(_typing, a, b):  # type: ignore[no-untyped-def]
    """The larger of `a` and `b` in each lane; NaN where `a` is NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.select(builder.fcmp_ordered("<", *arguments), arguments[1], arguments[0])

    return a(a, b), generate


@intrinsic
def minimum(_typing, a, b):  # type: ignore[no-untyped-def]
    """The smaller of `a` and `b` in each lane; NaN where `a` is NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.select(builder.fcmp_ordered(">", *arguments), arguments[1], arguments[0])

    return a(a, b), generate


@intrinsic
def select_positive(_typing, condition, values):  # type: ignore[no-untyped-def]
    """`values` where `condition` > 0, else zero."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(context.get_value_type(condition), None)
        return builder.select(builder.fcmp_ordered(">", arguments[0], zero), arguments[1], zero)

    return condition(condition, values), generate


@intrinsic
def select_equal(_typing, a, b, values):  # type: ignore[no-untyped-def]
    """`values` where a == b, else zero."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(context.get_value_type(values), None)
        return builder.select(builder.fcmp_ordered("==", arguments[0], arguments[1]), arguments[2], zero)

    return values(a, b, values), generate


@intrinsic
def select_greater(_typing, a, b, if_true, if_false):  # type: ignore[no-untyped-def]
    """`if_true` where a > b or `a` is NaN, else `if_false`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        a, b, if_true, if_false = arguments
        greater = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
        return builder.select(greater, if_true, if_false)

    return a(a, b, if_true, if_false), generate


@intrinsic
def exp2_of_low_bits(_typing, values):  # type: ignore[no-untyped-def]
    """2 ** n for the integer n in the low bits of each lane, which must be a valid exponent of the precision."""
    width, bias, fraction_bits = (32, 127, 23) if values.dtype == types.float32 else (64, 1023, 52)
    integers, lanes = ir.VectorType(ir.IntType(width), values.lanes), values.lanes

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        exponent = builder.add(builder.bitcast(arguments[0], integers), ir.Constant(integers, [bias] * lanes))
        field = builder.shl(exponent, ir.Constant(integers, [fraction_bits] * lanes))
        return builder.bitcast(field, context.get_value_type(values))

    return values(values), generate


@intrinsic
def to_float64(_typing, values):  # type: ignore[no-untyped-def]
    """The same numbers in double precision."""
    vector = Vector(types.float64, values.lanes)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fpext(arguments[0], context.get_value_type(vector)) if values != vector else arguments[0]

    return vector(values), generate


def _define_operator(operation: Any, instruction: str) -> None:
    """Define vector `operation` vector, lane by lane."""

    @type_callable(operation)
    def typer(_context):  # type: ignore[no-untyped-def]
        return lambda a, b: a if isinstance(a, Vector) and a == b else None

    @lower_builtin(operation, Vector, Vector)
    def lower(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return getattr(builder, instruction)(*arguments)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")
