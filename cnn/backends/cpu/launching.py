"""Launch a compiled kernel on all threads of a team without Python: posting it takes a microsecond, not thirty.

A kernel is compiled together with its *launcher*, the function that Python calls. It writes the kernel's address and
arguments to the team's *board*, computes its own slice, and waits until all threads are done. The other threads wait
at the board in compiled code, which needs no interpreter lock: in a loop for as long as their patience lasts, then
asleep. So a thread that waits for a short time never leaves its processor, which a busy system might give back late.

A thread that falls asleep first says so, then looks for news again; one that has news first writes it, then looks for
sleepers. So at least one of the two notices the other.
"""

import builtins
import ctypes
import inspect
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cnn.backends.base import Array
from cnn.backends.cpu import atomics
from cnn.backends.cpu.memory import zeros
from logpose.common import kernels
from logpose.common.cpus import available_cpus

# The board's numbers, at bytes: what is written by different threads is on different cache lines.
_TASK, _FUNCTION = 0, 8  # the number of tasks so far; the last one's function, 0 for one of Python's
_PENDING = 64  # threads that have not done their slice
_WAITING, _CALLERS_LOCK, _CALLERS_PATIENCE = 128, 136, 144  # as of a worker, see below
_MAX_PATIENCE, _THREADS = 192, 200  # and the team's size
_ARGUMENTS = 256
_ARGUMENT_BYTES = 2048
_WORKERS, _WORKER_BYTES = _ARGUMENTS + _ARGUMENT_BYTES, 64
# Of a worker: its last task, whether it is asleep, what wakes it, and how often it looks for news before it sleeps.
_DONE, _ASLEEP, _LOCK, _PATIENCE = 0, 8, 16, 24
_MIN_PATIENCE = 64  # of which the longest is so many times as long

_SPIN_SECONDS = 1e-3  # the longest patience: longer than most waits within a step
int64 = types.int64  # literals go through it: Numba would specialise functions for each
_BYTE_POINTER, _INT64 = ir.IntType(8).as_pointer(), ir.IntType(64)
_SLICE = ir.FunctionType(ir.VoidType(), [_INT64, _INT64, _BYTE_POINTER])  # computes slice t of `threads`


def make_board(threads: int) -> Array:
    """A board for a team of `threads` threads; it is never freed."""
    board = zeros(((_WORKERS + threads * _WORKER_BYTES) // 8,), np.int64)  # (numbers,)
    board[_THREADS // 8] = threads
    if threads > 1:
        board[_CALLERS_LOCK // 8] = _new_lock()
        board[(_WORKERS + _LOCK) // 8 :: _WORKER_BYTES // 8] = [_new_lock() for _ in range(threads)]
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(board))  # its threads run until the process ends
        patience = _pauses() if threads <= available_cpus() else 0  # else others could use the time
        board[_MAX_PATIENCE // 8] = board[_CALLERS_PATIENCE // 8] = patience
        board[(_WORKERS + _PATIENCE) // 8 :: _WORKER_BYTES // 8] = patience
    return board


def _new_lock() -> int:
    """The address of a lock, acquired. It is never freed, as its team is not."""
    allocate, acquire = ctypes.pythonapi.PyThread_allocate_lock, ctypes.pythonapi.PyThread_acquire_lock
    allocate.restype, acquire.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)
    address: int | None = allocate()
    if address is None:
        raise MemoryError
    acquire(address, 1)
    return address


@cache
def _pauses() -> int:
    """How many pauses take `_SPIN_SECONDS`: between ten and some hundred cycles each."""
    seconds, count = [], 1000
    for _ in range(5):
        began = time.perf_counter()
        spin(count)
        seconds.append(time.perf_counter() - began)
    return max(1, int(count * _SPIN_SECONDS / min(seconds)))


def compiled_with_launcher(function: Callable[..., Any], compile: Callable[[Callable[..., Any]], Any]) -> Any:
    """The launcher of a kernel `function(t, threads, ...)`: `(board, threads, ...)`, compiled by `compile`.

    It has the kernel's name and place, by which caches and other processes find it.
    """
    names = ", ".join(list(inspect.signature(function).parameters)[2:])
    source = f"def launcher(board, threads, {names}): launch(board, threads, ({names},))"
    known = {"launch": _launch_of(kernels.inner_without_arrays(function))}
    code = function.__code__
    placed = "\n" * (code.co_firstlineno - 1) + source  # as if it were where the kernel is
    exec(builtins.compile(placed, code.co_filename, "exec"), known)
    launcher: Any = known["launcher"]
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(launcher, name, getattr(function, name))
    launcher.__dict__.update(function.__dict__)
    return compile(launcher)


# In compiled code


def _launch_of(slices: Any) -> Any:
    """The function that computes all slices of a kernel, `slices` being its compiled function."""

    @intrinsic
    def launch(_typing, board, threads, arguments):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            board, threads, arguments = values
            kind = arguments.type.as_pointer()
            if context.get_abi_sizeof(arguments.type) > _ARGUMENT_BYTES:
                raise ValueError(f"expected a kernel's arguments in {_ARGUMENT_BYTES} bytes, found more")
            function = _slice_function(context, builder, slices, signature.args[2])
            with builder.if_else(builder.icmp_signed("==", threads, _INT64(1))) as (alone, together):
                with alone:
                    place = cgutils.alloca_once_value(builder, arguments)
                    builder.call(function, [_INT64(0), _INT64(1), builder.bitcast(place, _BYTE_POINTER)])
                with together:
                    place = builder.inttoptr(builder.add(board, _INT64(_ARGUMENTS)), kind)
                    builder.store(arguments, place)
                    _call_compiled(
                        context, builder, _run_slices, (types.int64,) * 3,
                        [board, threads, builder.ptrtoint(function, _INT64)],
                    )  # fmt: skip
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, arguments), generate

    return launch


def _call_compiled(context: Any, builder: Any, function: Any, kinds: tuple[Any, ...], values: list[Any]) -> None:
    """Code that calls a compiled function, which raises no errors."""
    function.compile(kinds)
    compiled = function.overloads[kinds]
    context.add_linking_libs([compiled.library])
    context.call_internal_no_propagate(builder, compiled.fndesc, compiled.signature, values)


def _slice_function(context: Any, builder: Any, slices: Any, arguments: Any) -> Any:
    """The LLVM function (t, threads, address of arguments) that computes a slice of a kernel; made once a module."""
    name = "slice_of_kernel"
    if name in builder.module.globals:
        return builder.module.globals[name]
    function = ir.Function(builder.module, _SLICE, name)
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    t, threads, address = function.args
    llvm_type = context.get_value_type(arguments)
    stored = inside.load(inside.bitcast(address, llvm_type.as_pointer()))
    values = [t, threads, *cgutils.unpack_tuple(inside, stored, len(arguments))]
    _call_compiled(context, inside, slices, (types.int64, types.int64, *arguments), values)
    inside.ret_void()
    return function


@intrinsic
def _call(_typing, function, t, threads, address):  # type: ignore[no-untyped-def]
    """Compute slice t of `threads` of a kernel whose function and arguments are at these addresses."""

    def generate(context, builder, _signature, values):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(values[0], _SLICE.as_pointer())
        builder.call(pointer, [values[1], values[2], builder.inttoptr(values[3], _BYTE_POINTER)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.intp), generate


@kernels.inner_without_arrays
def _start(board, threads, function):  # type: ignore[no-untyped-def]
    """Have the other threads begin."""
    atomics.store(board + _PENDING, threads - 1)
    atomics.store(board + _FUNCTION, function)
    atomics.add(board + _TASK, 1)
    for t in range(1, threads):
        own = board + _WORKERS + t * _WORKER_BYTES
        if atomics.exchange(own + _ASLEEP, 0) == 1:
            atomics.release_lock(atomics.load(own + _LOCK))


@kernels.inner_without_arrays
def _look(board, patience_at, number_at, wanted):  # type: ignore[no-untyped-def]
    """Wait until a number is `wanted`, for as long as the patience at an address lasts; returns whether it came.

    Patience grows while it is rewarded, and halves when it is not: threads of a busy machine soon leave it to others.
    """
    patience, longest = atomics.load(patience_at), atomics.load(board + _MAX_PATIENCE)
    for _ in range(patience):
        if atomics.load(number_at) == wanted:
            atomics.store(patience_at, min(longest, patience + patience // 4 + 1))
            return True
        atomics.pause()
    atomics.store(patience_at, max(longest // _MIN_PATIENCE, patience // 2))
    return False


@kernels.inner_without_arrays
def _wait(board):  # type: ignore[no-untyped-def]
    """Return when all other threads are done."""
    if _look(board, board + _CALLERS_PATIENCE, board + _PENDING, int64(0)):
        return
    while atomics.load(board + _PENDING) > 0:  # a late waker may mean the task before
        atomics.store(board + _WAITING, 1)
        if atomics.load(board + _PENDING) == 0 and atomics.exchange(board + _WAITING, 0) == 1:
            return
        atomics.acquire_lock(atomics.load(board + _CALLERS_LOCK), 1)


@kernels.inner_without_arrays
def _run_slices(board, threads, function):  # type: ignore[no-untyped-def]
    """Compute all slices, this thread the first; the arguments are on the board."""
    _start(board, threads, function)
    _call(function, int64(0), threads, board + _ARGUMENTS)
    _wait(board)


@kernels.inner_without_arrays
def _finish(board):  # type: ignore[no-untyped-def]
    """Say that a thread is done."""
    if atomics.add(board + _PENDING, -1) == 1 and atomics.exchange(board + _WAITING, 0) == 1:
        atomics.release_lock(atomics.load(board + _CALLERS_LOCK))


@kernels.inner_without_arrays
def _wait_for_task(board, own, task):  # type: ignore[no-untyped-def]
    """Return when there is task number `task` for the thread whose part of the board is at `own`."""
    if _look(board, own + _PATIENCE, board + _TASK, task):
        return
    while atomics.load(board + _TASK) != task:
        atomics.store(own + _ASLEEP, 1)
        if atomics.load(board + _TASK) == task and atomics.exchange(own + _ASLEEP, 0) == 1:
            return
        atomics.acquire_lock(atomics.load(own + _LOCK), 1)


# Called by Python


@kernels.cached_njit(nogil=True, **kernels.NO_ARRAYS)
def serve(board, t, finished):  # type: ignore[no-untyped-def]
    """Compute slice t of each kernel that is launched; return when there is a task of Python's instead.

    `finished`: such a task has just been done.
    """
    own = board + _WORKERS + t * _WORKER_BYTES
    if finished:
        _finish(board)
    while True:
        task = atomics.load(own + _DONE) + 1
        _wait_for_task(board, own, task)
        atomics.store(own + _DONE, task)
        function = atomics.load(board + _FUNCTION)
        if function == 0:
            return
        _call(function, t, atomics.load(board + _THREADS), board + _ARGUMENTS)
        _finish(board)


@kernels.cached_njit(nogil=True, **kernels.NO_ARRAYS)
def python_task(board, threads, done):  # type: ignore[no-untyped-def]
    """Have the other threads do a task of Python's; when it is `done` here, wait for them."""
    if done:
        _wait(board)
    else:
        _start(board, threads, int64(0))


@kernels.cached_njit(nogil=True, **kernels.NO_ARRAYS)
def spin(count):  # type: ignore[no-untyped-def]
    """Pause so often."""
    for _ in range(count):
        atomics.pause()


# These, and arguments of theirs: what a team needs besides the kernels that it runs.
OWN_KERNELS: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (serve, (0, 1, False)), (python_task, (0, 2, False)), (spin, (1,))
)  # fmt: skip
