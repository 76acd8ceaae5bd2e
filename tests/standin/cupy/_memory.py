"""Device memory: one arena, given out by caching pools as CuPy's are; and pinned memory of the host.

A freed block returns to its pool at once, and serves the next array of its stream that has as many bytes, rounded up
to 512. The checker learns that the old array is dead and the new one alive in the order of that stream's work.
"""

import bisect
import ctypes
import gc
import math
import os
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import numpy as np

from . import _streams
from ._build import runtime
from ._errors import CUDARuntimeError, OutOfMemoryError

_UNIT, _MARGINS = 512, 512
grown: Counter[str] = Counter()  # "times" and "bytes": allocations that no free block could serve


@cache
def arena() -> tuple[int, int, Any]:
    """The arena's address and size, and a buffer over it that owns nothing."""
    size = ctypes.c_size_t()
    address = runtime().cc_arena(ctypes.byref(size))
    return address, size.value, (ctypes.c_char * size.value).from_address(address)


def total_memory() -> int:
    """Bytes of the emulated device."""
    return int(os.environ.get("CUDA_CPU_MEMORY") or arena()[1])


def address_of(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def is_device(array: np.ndarray) -> bool:
    address, size, _ = arena()
    return address <= address_of(array) < address + size


def raw(array: np.ndarray) -> np.ndarray:
    """The same memory without keeping it allocated: what work on a stream knows of a device array."""
    address, _, buffer = arena()
    if not array.size:
        return array
    return np.ndarray(array.shape, array.dtype, buffer, address_of(array) - address, array.strides)


def check_live(array: np.ndarray, what: str) -> None:
    """Raise an error if a device array, contiguous or not, is not in live memory when work on it is done."""
    first, last = np.lib.array_utils.byte_bounds(array)
    if array.size and not runtime().cc_is_live(first - arena()[0], last - first):
        raise CUDARuntimeError(f"cudaErrorIllegalAddress: {what} uses freed device memory, or memory not yet allocated")


class Memory:
    """A block of device memory, as MemoryPointer.mem."""

    def __init__(self, buffer: Any, ptr: int, size: int) -> None:
        self.buffer, self.ptr, self.size, self.device_id = buffer, ptr, size, 0


class MemoryPointer:
    """An address in a block, which it keeps allocated."""

    device_id = 0

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset if mem.ptr else 0

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __int__(self) -> int:
        return self.ptr

    def bytes(self, size: int) -> np.ndarray:
        """The memory from here on, as the emulator's host sees it."""
        if size > self.mem.ptr + self.mem.size - self.ptr:
            raise ValueError(f"{size} bytes do not fit in the block of {self.mem.size} bytes")
        return np.ndarray((size,), np.uint8, self.mem.buffer, self.ptr - self.mem.ptr)

    def copy_from_host_async(self, source: Any, size: int, stream: Any = None) -> None:
        copy_from_host(self.bytes(size), host_bytes(source, size), stream)

    def copy_to_host_async(self, to: Any, size: int, stream: Any = None) -> None:
        copy_to_host(host_bytes(to, size), self.bytes(size), stream)

    def copy_from_device_async(self, source: "MemoryPointer", size: int, stream: Any = None) -> None:
        assign(self.bytes(size), source.bytes(size), "copy", stream)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        assign(self.bytes(size), np.uint8(value), "memset", stream)


class MemoryPool:
    """A caching pool of device memory."""

    _end = _UNIT * 2  # of the arena's part that was ever given out
    _returned: ClassVar["defaultdict[int, list[int]]"] = defaultdict(list)  # rounded size -> blocks that no pool holds
    _accounts: ClassVar[list[list[int]]] = []  # of all pools: as in CuPy, a pool that dies frees none of its blocks

    def __init__(self, allocator: Any = None) -> None:
        self._free: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # (stream, rounded size) -> offsets
        self._used: dict[int, int] = {}  # offset -> size
        self._account = [0]  # bytes asked of CUDA
        self._limit = 0
        self._kept: dict[int, int] = {}  # offset -> size, of blocks that were freed while a graph was captured
        MemoryPool._accounts.append(self._account)

    def malloc(self, size: int) -> MemoryPointer:
        if size == 0:
            return MemoryPointer(Memory(None, 0, 0), 0)
        with _streams._lock:
            stream = _streams.get_current_stream()
            rounded = -(-size // _UNIT) * _UNIT
            free = self._free[stream.ptr, rounded]
            if free:
                offset = free.pop()
                live = max(size, self._kept.pop(offset, 0))  # a graph may use it as a larger array
                _streams.add(stream, _revive(offset, live), light=True)
            else:
                live = size
                offset = self._grow(size, rounded, stream)
                runtime().cc_live(offset, size)
            self._used[offset] = live
            address = arena()[0] + offset
            buffer = (ctypes.c_char * size).from_address(address)
            # NumPy keeps the buffer while any view of it lives.
            weakref.finalize(buffer, self._release, stream, offset).atexit = False
            return MemoryPointer(Memory(buffer, address, size), 0)

    def _grow(self, size: int, rounded: int, stream: Any) -> int:
        if stream._graph is not None:
            raise CUDARuntimeError(f"the memory pool grows by {rounded} bytes while a stream is captured")
        grown["times"] += 1
        grown["bytes"] += rounded
        limit = min(total_memory(), self._limit or total_memory())
        if MemoryPool._all_bytes() + rounded > limit:
            self.free_all_blocks()
            gc.collect()
            self.free_all_blocks()
        total = MemoryPool._all_bytes()
        if total + rounded > limit:
            raise OutOfMemoryError(rounded, total, limit)
        self._account[0] += rounded
        if MemoryPool._returned[rounded]:
            return MemoryPool._returned[rounded].pop()
        offset = MemoryPool._end
        MemoryPool._end += rounded + _MARGINS
        if MemoryPool._end > arena()[1]:
            raise MemoryError("the emulator's arena is full: use smaller arrays in tests")
        return offset

    def _release(self, stream: Any, offset: int) -> None:
        with _streams._lock:
            size = self._used.pop(offset)
            if stream._graph is not None:  # the graph goes on using it, and nothing tells the pool so
                self._kept[offset] = size
            else:
                _streams.add(stream, lambda _: runtime().cc_dead(offset), light=True)
            self._free[stream.ptr, -(-size // _UNIT) * _UNIT].append(offset)

    def free_all_blocks(self, stream: Any = None) -> None:
        """Return free blocks to CUDA, which waits for all work before it takes them."""
        if any(self._free.values()):
            _streams.wait("free_all_blocks")
            _streams.finish_all()
        with _streams._lock:
            free, self._free = self._free, defaultdict(list)
            for (_, rounded), offsets in free.items():
                self._account[0] -= rounded * len(offsets)
                MemoryPool._returned[rounded] += offsets
            for offset in self._kept:  # of graphs that are no more
                runtime().cc_dead(offset)
            self._kept.clear()

    def used_bytes(self) -> int:
        return sum(-(-size // _UNIT) * _UNIT for size in self._used.values())

    def total_bytes(self) -> int:
        return self._account[0]

    @staticmethod
    def _all_bytes() -> int:
        return sum(account[0] for account in MemoryPool._accounts)

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def n_free_blocks(self) -> int:
        return sum(map(len, self._free.values()))

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size if size is not None else int((fraction or 0) * total_memory())

    def get_limit(self) -> int:
        return self._limit


def _revive(offset: int, size: int) -> Callable[[Any], None]:
    def run(_: Any) -> None:
        runtime().cc_dead(offset)
        runtime().cc_live(offset, size)

    return run


pool = MemoryPool()
_allocator: Callable[[int], MemoryPointer] = pool.malloc
_thread = threading.local()  # `allocator` within `using_allocator`, which other threads do not see


def alloc(size: int) -> MemoryPointer:
    return (getattr(_thread, "allocator", None) or _allocator)(size)


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _allocator
    if getattr(_thread, "allocator", None):
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    _allocator = allocator or pool.malloc


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = getattr(_thread, "allocator", None)
    _thread.allocator = allocator or pool.malloc
    try:
        yield
    finally:
        _thread.allocator = before


def empty(shape: Any, dtype: np.dtype, order: str = "C", memory: MemoryPointer | None = None) -> np.ndarray:
    """A NumPy array over device memory."""
    shape = (int(shape),) if isinstance(shape, int | np.integer) else tuple(map(int, shape))
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return np.ndarray(shape, dtype, order=order)
    memory = memory or alloc(size)
    if memory.ptr + size > memory.mem.ptr + memory.mem.size:
        raise ValueError(f"an array of {size} bytes does not fit in the block of {memory.mem.size} bytes")
    return np.ndarray(shape, dtype, memory.mem.buffer, memory.ptr - memory.mem.ptr, order=order)


# Pinned memory. Freed blocks are used again at once: no stream's work is waited for, as in CuPy.

_pinned: list[tuple[int, int]] = []  # sorted (first, last) addresses of all blocks, free ones too
_pinned_buffers: dict[int, Any] = {}
_pinned_free: defaultdict[int, list[int]] = defaultdict(list)


def is_pinned(array: np.ndarray) -> bool:
    address = address_of(array)
    place = bisect.bisect_right(_pinned, (address, 1 << 63)) - 1
    return place >= 0 and address + array.nbytes <= _pinned[place][1]


@cache
def _pinned_type(size: int) -> Any:
    return type("PinnedMemoryPointer", (ctypes.c_char * size,), {"size": lambda self: size})


def alloc_pinned_memory(size: int) -> Any:
    """A buffer of pinned memory, of `size` bytes rounded up to a power of two, as from CuPy's pool."""
    rounded = max(_UNIT, 1 << (size - 1).bit_length()) if size else 0
    if not rounded:
        return _pinned_type(0)()
    if not _pinned_free[rounded]:
        buffer = np.empty(rounded + _UNIT, np.uint8)
        address = -(-address_of(buffer) // _UNIT) * _UNIT
        _pinned_buffers[address] = buffer
        bisect.insort(_pinned, (address, address + rounded))
        _pinned_free[rounded].append(address)
    address = _pinned_free[rounded].pop()
    ctypes.memset(address, 0xFF, rounded)
    pointer = _pinned_type(rounded).from_address(address)
    pointer.ptr = address
    weakref.finalize(pointer, _release_pinned, address, rounded).atexit = False
    return pointer


def _release_pinned(address: int, rounded: int) -> None:
    ctypes.memset(address, 0xFF, rounded)
    _pinned_free[rounded].append(address)


class PinnedMemoryPool:
    """CuPy's pool of pinned memory; here there is only one."""

    def malloc(self, size: int) -> Any:
        return alloc_pinned_memory(size)

    def free_all_blocks(self) -> None: ...

    def n_free_blocks(self) -> int:
        return sum(map(len, _pinned_free.values()))


def host_bytes(memory: Any, size: int) -> np.ndarray:
    """Host memory by address: an int, or a ctypes.c_void_p."""
    address = memory if isinstance(memory, int) else memory.value
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)


# Copies

copied: Counter[str] = Counter()  # bytes from the host ("bytes") and to it ("to_host")


def copy_from_host(to: np.ndarray, source: np.ndarray, stream: Any = None) -> None:
    """Copy to the device. Pinned memory is read when the copy is done, other memory now."""
    stream = stream or _streams.get_current_stream()
    pinned = is_pinned(source)
    if stream._graph is not None and not pinned:
        raise CUDARuntimeError("a copy from memory that is not pinned while the stream is captured")
    copied["bytes"] += source.nbytes
    if not pinned:
        source = source.copy()
    target = raw(to)

    def run(_: Any) -> None:
        check_live(target, "a copy from the host")
        target[...] = source

    _streams.add(stream, run)


def copy_to_host(
    out: np.ndarray, source: np.ndarray, stream: Any = None, wait: str = "get", blocking: bool = False
) -> None:
    """Copy from the device. Pinned memory holds 0xff until the host has waited for a copy that is not `blocking`."""
    stream = stream or _streams.get_current_stream()
    blocking = blocking or not is_pinned(out)
    if blocking and stream._graph is not None:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {wait} while the stream is captured")
    copied["to_host"] += source.nbytes
    source = raw(source)

    def poison() -> None:
        out.view(np.uint8)[...] = 0xFF

    def run(work: Any) -> None:
        check_live(source, "a copy to the host")
        values = source.copy()
        work.stream._arriving.append((work.number, lambda: np.copyto(out, values)))

    work = _streams.add(stream, run, prepare=None if blocking or not out.ndim else poison)
    if blocking:
        _streams.wait(wait, work)


def assign(to: np.ndarray, value: Any, name: str, stream: Any = None) -> None:
    """Set device memory to a scalar or to the values of other device memory, in the order of the stream."""
    _streams.launches[name] += 1
    target = raw(to)
    source = raw(value) if isinstance(value, np.ndarray) else value

    def run(_: Any) -> None:
        check_live(target, name)
        if isinstance(source, np.ndarray):
            check_live(source, name)
        target[...] = source

    _streams.add(stream or _streams.get_current_stream(), run)
