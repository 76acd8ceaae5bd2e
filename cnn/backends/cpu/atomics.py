"""What threads need to wait for each other without Python: atomic numbers, a pause, and the interpreter's own locks.

Numbers are int64 at an address, an integer. All operations are sequentially consistent: what a thread wrote before one
of them is seen by a thread that reads its result.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_ORDER = "seq_cst"
_INT64, _INT32 = ir.IntType(64), ir.IntType(32)
_X86 = llvmlite.binding.get_default_triple().startswith(("x86_64", "i686"))

# The interpreter's locks (pythread.h), by the address that `PyThread_allocate_lock` returned. The thread that releases
# one may be another than the one that acquired it.
acquire_lock = types.ExternalFunction("PyThread_acquire_lock", types.int32(types.intp, types.int32))
release_lock = types.ExternalFunction("PyThread_release_lock", types.void(types.intp))


def _number(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _INT64.as_pointer())


@intrinsic
def load(_typing, address):  # type: ignore[no-untyped-def]
    """The number at `address`."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_number(builder, arguments[0]), _ORDER, 8)

    return types.int64(types.intp), generate


@intrinsic
def store(_typing, address, number):  # type: ignore[no-untyped-def]
    """Set the number at `address`."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        builder.store_atomic(arguments[1], _number(builder, arguments[0]), _ORDER, 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def exchange(_typing, address, number):  # type: ignore[no-untyped-def]
    """Set the number at `address`; returns what it was."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("xchg", _number(builder, arguments[0]), arguments[1], _ORDER)

    return types.int64(types.intp, types.int64), generate


@intrinsic
def add(_typing, address, number):  # type: ignore[no-untyped-def]
    """Add to the number at `address`; returns what it was."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("add", _number(builder, arguments[0]), arguments[1], _ORDER)

    return types.int64(types.intp, types.int64), generate


@intrinsic
def pause(_typing):  # type: ignore[no-untyped-def]
    """Tell the processor that this thread waits in a loop: its core's other thread gets on faster, where it has one."""

    def generate(context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        if _X86:
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate
