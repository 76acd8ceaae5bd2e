"""Eight numbers at a time: vector values for Numba kernels, spelled out where its own vectoriser would guess.

`Lanes` is a value of eight floats that lives in vector registers; inside a kernel it is read and written through
pointers and takes part in `+`, `-`, `*` and `fma`. Everything becomes LLVM's vector instructions, so that it runs on
any processor and fast on those with AVX2 and FMA. Nothing is checked: an index outside the array reads other memory.

    p = pointer(array, start)                 # from where on; array is contiguous
    store(p, i, fma(broadcast(p, j), load(p, k), lanes(0.0)))
"""

import operator
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 8

# Compiles what only kernels call. Wrappers for Python would double the time that takes.
inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")

# A constant that is passed to an inner function goes through `whole`: for each bare one, Numba would compile the
# function again.
int64 = types.int64

_LLVM_SCALARS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_INT32 = ir.IntType(32)


class Lanes(types.Type):  # type: ignore[misc]
    """The type of `LANES` numbers of `dtype`, in a register."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(_LLVM_SCALARS[lanes.dtype], LANES))


def _vector_pointer(context: Any, builder: Any, pointer: Any, index: Any, lanes: Lanes) -> Any:
    vector = context.get_value_type(lanes)
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def _splat(builder: Any, vector: Any, number: Any) -> Any:
    """`number` in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))


def _llvm_function(builder: Any, name: str, result: Any, arguments: list[Any], lanes: Lanes) -> Any:
    suffix = f"v{LANES}f{32 if lanes.dtype == types.float32 else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), f"{name}.{suffix}")


def _first(builder: Any, count: Any) -> Any:
    """A mask of the first `count` lanes."""
    numbers = ir.VectorType(_INT32, LANES)
    positions = ir.Constant(numbers, list(range(LANES)))
    return builder.icmp_signed("<", positions, _splat(builder, numbers, builder.trunc(count, _INT32)))


@intrinsic
def pointer(_typing, array, index):  # type: ignore[no-untyped-def]
    """Where number `index` of a contiguous array, counted through all its axes, lies in memory."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        return builder.gep(view.data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), generate


@intrinsic
def advance(_typing, start, count):  # type: ignore[no-untyped-def]
    """The pointer `count` numbers further on."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.intp), generate


@inner
def round_up(number, multiple):  # type: ignore[no-untyped-def]
    return (number + multiple - 1) // multiple * multiple


@intrinsic
def load_scalar(_typing, start, index):  # type: ignore[no-untyped-def]
    """The one number start[index]."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load(builder.gep(arguments[0], [arguments[1]]))

    return start.dtype(start, types.intp), generate


@intrinsic
def store_scalar(_typing, start, index, number):  # type: ignore[no-untyped-def]
    """start[index] becomes the number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.void(start, types.intp, start.dtype), generate


@intrinsic
def load(_typing, start, index):  # type: ignore[no-untyped-def]
    """The numbers start[index], start[index + 1], ... in lanes."""
    lanes = Lanes(start.dtype)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = _vector_pointer(context, builder, arguments[0], arguments[1], lanes)
        return builder.load(place, align=lanes.dtype.bitwidth // 8)

    return lanes(start, types.intp), generate


@intrinsic
def load_masked(_typing, start, index, count):  # type: ignore[no-untyped-def]
    """As `load`, but only the first `count` lanes are read; the others are zero."""
    lanes = Lanes(start.dtype)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(lanes)
        place = _vector_pointer(context, builder, arguments[0], arguments[1], lanes)
        mask = _first(builder, arguments[2])
        function = _llvm_function(
            builder, "llvm.masked.load", vector, [vector.as_pointer(), _INT32, mask.type, vector], lanes
        )
        align = ir.Constant(_INT32, lanes.dtype.bitwidth // 8)
        return builder.call(function, [place, align, mask, ir.Constant(vector, None)])

    return lanes(start, types.intp, types.intp), generate


@intrinsic
def store(_typing, start, index, values):  # type: ignore[no-untyped-def]
    """start[index], start[index + 1], ... become the lanes."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = _vector_pointer(context, builder, arguments[0], arguments[1], values)
        builder.store(arguments[2], place, align=values.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(start, types.intp, values), generate


@intrinsic
def store_masked(_typing, start, index, values, count):  # type: ignore[no-untyped-def]
    """As `store`, but only the first `count` lanes are written."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(values)
        place = _vector_pointer(context, builder, arguments[0], arguments[1], values)
        mask = _first(builder, arguments[3])
        function = _llvm_function(
            builder, "llvm.masked.store", ir.VoidType(), [vector, vector.as_pointer(), _INT32, mask.type], values
        )
        builder.call(function, [arguments[2], place, ir.Constant(_INT32, values.dtype.bitwidth // 8), mask])
        return context.get_dummy_value()

    return types.void(start, types.intp, values, types.intp), generate


@intrinsic
def broadcast(_typing, start, index):  # type: ignore[no-untyped-def]
    """The number start[index] in every lane."""
    lanes = Lanes(start.dtype)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        number = builder.load(builder.gep(arguments[0], [arguments[1]]))
        return _splat(builder, context.get_value_type(lanes), number)

    return lanes(start, types.intp), generate


@intrinsic
def full_like(_typing, pattern, number):  # type: ignore[no-untyped-def]
    """`number` in every lane, in the precision of `pattern`: lanes or a pointer."""
    lanes = Lanes(pattern.dtype)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        converted = context.cast(builder, arguments[1], number, lanes.dtype)
        return _splat(builder, context.get_value_type(lanes), converted)

    return lanes(pattern, number), generate


@intrinsic
def fma(_typing, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c, rounded once where the processor can."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(a)
        return builder.call(_llvm_function(builder, "llvm.fmuladd", vector, [vector] * 3, a), arguments)

    return a(a, b, c), generate


@intrinsic
def maximum(_typing, a, b):  # type: ignore[no-untyped-def]
    """The larger of each two lanes; NaN where `a` has it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.select(builder.fcmp_ordered("<", *arguments), arguments[1], arguments[0])

    return a(a, b), generate


@intrinsic
def select_positive(_typing, gate, values):  # type: ignore[no-untyped-def]
    """`values` where `gate` is above zero, else zero."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(context.get_value_type(gate), None)
        return builder.select(builder.fcmp_ordered(">", arguments[0], zero), arguments[1], zero)

    return gate(gate, values), generate


def _define(operation: Any, instruction: str) -> None:
    """Lanes `operation` lanes, lane by lane."""

    @type_callable(operation)
    def typer(_context):  # type: ignore[no-untyped-def]
        return lambda a, b: a if isinstance(a, Lanes) and a == b else None

    @lower_builtin(operation, Lanes, Lanes)
    def lower(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return getattr(builder, instruction)(*arguments)


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define(_operation, _instruction)


@intrinsic
def bit_width(_typing, pattern):  # type: ignore[no-untyped-def]
    """How many bits a number of `pattern` has, lanes or a pointer: known when the kernel is compiled."""
    width = pattern.dtype.bitwidth

    def generate(context, _builder, signature, _arguments):  # type: ignore[no-untyped-def]
        return context.get_constant(signature.return_type, width)

    return types.intp(pattern), generate


@intrinsic
def minimum(_typing, a, b):  # type: ignore[no-untyped-def]
    """The smaller of each two lanes; NaN where `a` has it."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.select(builder.fcmp_ordered(">", *arguments), arguments[1], arguments[0])

    return a(a, b), generate


@intrinsic
def exp2_of_low_bits(_typing, values):  # type: ignore[no-untyped-def]
    """2 to the power of the integer in the lowest bits of each lane, which is within the precision's exponents."""
    width, bias, fraction_bits = (32, 127, 23) if values.dtype == types.float32 else (64, 1023, 52)
    whole_numbers = ir.VectorType(ir.IntType(width), LANES)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        exponent = builder.add(
            builder.bitcast(arguments[0], whole_numbers), ir.Constant(whole_numbers, [bias] * LANES)
        )
        field = builder.shl(exponent, ir.Constant(whole_numbers, [fraction_bits] * LANES))
        return builder.bitcast(field, context.get_value_type(values))

    return values(values), generate


_define(operator.truediv, "fdiv")


@intrinsic
def to_float64(_typing, values):  # type: ignore[no-untyped-def]
    """The same numbers in double precision."""
    lanes = Lanes(types.float64)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fpext(arguments[0], context.get_value_type(lanes)) if values != lanes else arguments[0]

    return lanes(values), generate


@intrinsic
def select_greater(_typing, best, challenger, then, otherwise):  # type: ignore[no-untyped-def]
    """`then` where `challenger` is larger than `best` or NaN, else `otherwise`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        best, challenger, then, otherwise = arguments
        beaten = builder.or_(
            builder.fcmp_ordered(">", challenger, best), builder.fcmp_unordered("uno", challenger, challenger)
        )
        return builder.select(beaten, then, otherwise)

    return best(best, challenger, then, otherwise), generate


@intrinsic
def select_equal(_typing, a, b, values):  # type: ignore[no-untyped-def]
    """`values` where `a` equals `b`, else zero."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        zero = ir.Constant(context.get_value_type(values), None)
        return builder.select(builder.fcmp_ordered("==", arguments[0], arguments[1]), arguments[2], zero)

    return values(a, b, values), generate


@intrinsic
def load_uint(_typing, start, index, pattern):  # type: ignore[no-untyped-def]
    """The unsigned integers start[index], start[index + 1], ... as lanes like `pattern`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        numbers = ir.VectorType(ir.IntType(start.dtype.bitwidth), LANES)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), numbers.as_pointer())
        loaded = builder.load(place, align=start.dtype.bitwidth // 8)
        return builder.uitofp(loaded, context.get_value_type(pattern))

    return pattern(start, types.intp, pattern), generate


@intrinsic
def store_uint(_typing, start, index, values):  # type: ignore[no-untyped-def]
    """The unsigned integers start[index], start[index + 1], ... become the lanes, which hold whole numbers."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        numbers = ir.VectorType(ir.IntType(start.dtype.bitwidth), LANES)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), numbers.as_pointer())
        converted = builder.fptoui(arguments[2], numbers)
        builder.store(converted, place, align=start.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(start, types.intp, values), generate


@intrinsic
def sqrt(_typing, values):  # type: ignore[no-untyped-def]
    """The square root of each lane."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = context.get_value_type(values)
        return builder.call(_llvm_function(builder, "llvm.sqrt", vector, [vector], values), arguments)

    return values(values), generate


@inner
def load_up_to(start, index, count):  # type: ignore[no-untyped-def]
    """The first `count` lanes, or all if there are more. Masks are slow, so that they are left to the last few."""
    return load(start, index) if count >= LANES else load_masked(start, index, count)


@inner
def store_up_to(start, index, values, count):  # type: ignore[no-untyped-def]
    """As `load_up_to`."""
    if count >= LANES:
        store(start, index, values)
    else:
        store_masked(start, index, values, count)
