"""RawModule and RawKernel: the source text that a GPU would get, compiled by g++ and run by the emulator."""

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import _build, _device, _memory, _streams
from ._errors import CUDARuntimeError

# Every kernel runs in each of these orders of threads and blocks, and must leave the same bits.
ORDERS = tuple(map(int, (os.environ.get("CUDA_CPU_ORDERS") or "0").split(",")))
_checked: set[Any] | None = None  # launches that need not be checked again; None: check all
_DTYPES = {
    "f": np.float32, "d": np.float64, "?": np.bool_, "b": np.int8, "B": np.uint8, "h": np.int16, "H": np.uint16,
    "i": np.int32, "I": np.uint32, "q": np.int64, "Q": np.uint64,
}  # fmt: skip
_EXTERN_C = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\('
)


class RawModule:
    def __init__(
        self,
        *,
        code: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: Any = None,
        translate_cucomplex: bool = False,
    ) -> None:
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("RawModule: code must be a str, and options a tuple")
        self.code, self.options = code, tuple(options)
        self.name_expressions = tuple(name_expressions or ())
        self._compiled: dict[str, tuple[ctypes.CDLL, Path, int]] = {}

    def compile(self, log_stream: Any = None) -> None:
        if not self._compiled:
            names = self.name_expressions or tuple(_EXTERN_C.findall(self.code))
            self._compiled = _build.modules(self.code, self.options, names)

    def get_function(self, name: str) -> "RawKernel":
        self.compile()
        if name not in self._compiled:
            raise KeyError(f'{name} is not among the module\'s name_expressions, nor an extern "C" kernel')
        kernel = RawKernel.__new__(RawKernel)
        kernel._set(self.code, name, *self._compiled[name])
        return kernel


class RawKernel:
    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **_: Any) -> None:
        module = RawModule(code=code, options=options, name_expressions=(name,))
        module.compile()
        self._set(code, name, *module._compiled[name])

    def _set(self, code: str, name: str, library: ctypes.CDLL, path: Path, number: int) -> None:
        self.code, self.name, self._path = code, name, path

        def ask(what: str, kind: Any) -> Any:
            function = getattr(library, f"cc_{what}_{number}")
            function.restype = kind
            return function()

        self._codes = ask("codes", ctypes.c_char_p).decode()
        self._pointees = ask("pointees", ctypes.c_char_p).decode()
        self._sizes = ask("sizes", ctypes.POINTER(ctypes.c_int))[: len(self._codes)]
        self.max_threads_per_block = ask("bound", ctypes.c_int)
        self._entry = ctypes.cast(getattr(library, f"cc_run_{number}"), ctypes.c_void_p)
        self._max_dynamic = 48 << 10

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._max_dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        limit = _device.shared_memory_limit()
        if size > limit:
            raise CUDARuntimeError(f"{self.name}: {size} bytes of shared memory, {limit} at most")
        self._max_dynamic = size

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *,
        shared_mem: int = 0, stream: Any = None,
    ) -> None:  # fmt: skip
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError(f"{self.name}: grid {grid} and block {block} must be tuples")
        sizes = [(*map(int, each), 1, 1)[:3] for each in (grid, block)]
        if any(not isinstance(n, int | np.integer) or n < 1 for n in (*grid, *block)):
            raise ValueError(f"{self.name}: grid {grid} and block {block} must be whole numbers of 1 or more")
        if np.prod(block) > self.max_threads_per_block:
            raise CUDARuntimeError(f"{self.name}: a block of {block} threads, {self.max_threads_per_block} at most")
        if shared_mem > self._max_dynamic:
            allowed = f"max_dynamic_shared_size_bytes is {self._max_dynamic}"
            raise CUDARuntimeError(f"{self.name}: {shared_mem} bytes of shared memory, but {allowed}")
        if len(args) != len(self._codes):
            raise TypeError(f"{self.name}: {len(self._codes)} arguments expected, {len(args)} given")
        held = [self._argument(place, value) for place, value in enumerate(args)]
        pointers = (ctypes.c_void_p * max(len(args), 1))(*(each.ctypes.data for each in held))
        arrays = [_memory.raw(each._host) for each in args if hasattr(each, "_host") and each.size]
        where = f"{self.name}<<<{grid}, {block}, {shared_mem}>>>"
        check = self._is_new((where, *map(_layout, args, held)))

        def run(_: Any, held: Any = held) -> None:  # `held` keeps the numbers that `pointers` points to
            self._run(where, sizes[0], sizes[1], pointers, shared_mem, arrays, check)

        _streams.launches[self.name] += 1
        stream = stream or _streams.get_current_stream()
        stream._runs_kernels = True
        _streams.add(stream, run)

    def _is_new(self, launch: Any) -> bool:
        if _checked is None:
            return True
        key = self._path, launch
        new = key not in _checked
        _checked.add(key)
        return new

    def _run(
        self, where: str, grid: Any, block: Any, pointers: Any, shared_mem: int, arrays: list[np.ndarray], check: bool
    ) -> None:
        orders = ORDERS if check else ORDERS[:1]
        if len(orders) == 1:
            arrays = []
        before = [each.copy() for each in arrays]
        first = None
        for order in orders:
            for array, values in zip(arrays, before, strict=True):
                array[...] = values
            grids, blocks = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
            problems = _build.runtime().cc_launch(
                self._entry, pointers, grids, blocks, ctypes.c_size_t(shared_mem), order, int(_build.CHECK and check)
            )
            if problems:
                raise CUDARuntimeError(f"{where}:\n{self._explain(problems.decode())}")
            results = [each.tobytes() for each in arrays]
            if first is not None and results != first:
                changed = [i for i, (a, b) in enumerate(zip(results, first, strict=True)) if a != b]
                difference = f"order {order} of the threads gives other bits than order {ORDERS[0]}"
                raise CUDARuntimeError(f"{where}: {difference} in arrays {changed}")
            first = results

    def _argument(self, place: int, value: Any) -> np.ndarray:
        """The argument as the kernel reads it; an error where CuPy would pass something else than is declared."""
        code = self._codes[place]
        what = f"{self.name}: argument {place}"
        if code == "p":
            return np.array([self._pointer(what, self._pointees[place], value)], np.uint64)
        if code == "s":
            size = self._sizes[place]
            if not isinstance(value, np.ndarray | np.generic) or value.nbytes != size or value.size != 1:
                raise TypeError(f"{what} is a struct of {size} bytes, given {type(value).__name__}")
            return np.frombuffer(value.tobytes(), np.uint8)
        dtype = np.dtype(_DTYPES[code])
        if isinstance(value, np.generic):
            if value.dtype != dtype:
                raise TypeError(f"{what} is {dtype}, given {value.dtype}")
        elif type(value) is int and dtype.kind in "iu" and dtype.itemsize >= 4:
            # CuPy passes 8 bytes, of which the kernel reads the lower ones.
            info = np.iinfo(dtype)
            if not info.min <= value <= info.max:
                raise OverflowError(f"{what} is {dtype}: {value} does not fit")
        elif not (isinstance(value, bool) and code == "?") and not (isinstance(value, float) and code == "d"):
            raise TypeError(f"{what} is {dtype}, given {type(value).__name__} {value!r}")
        return np.array([value], dtype)

    def _pointer(self, what: str, pointee: str, value: Any) -> int:
        if value is None:
            return 0
        if isinstance(value, _memory.MemoryPointer):
            return value.ptr
        if not hasattr(value, "_host"):
            raise TypeError(f"{what} is a pointer, given {type(value).__name__}")
        if not value.flags.c_contiguous:
            raise TypeError(f"{what} is a strided view, whose strides a kernel does not see")
        expected = np.dtype(_DTYPES.get(pointee, value.dtype))
        if value.dtype != expected and not _same_integer(value.dtype, expected):
            raise TypeError(f"{what} points to {expected}, given an array of {value.dtype}")
        return _memory.address_of(value._host) if value.size else 0

    def _explain(self, problems: str) -> str:
        """Replace addresses in the code by lines of the .cu file, and show lines of the source."""
        base = _load_address(self._path)
        addresses = sorted(set(re.findall(r"@(\d+)", problems)))
        places = dict(zip(addresses, _places(self._path, tuple(int(a) - base - 1 for a in addresses)), strict=True))
        lines = self.code.splitlines()

        def with_source(match: re.Match[str]) -> str:
            number = int(match[1])
            return f"{match[0]} `{lines[number - 1].strip()[:100]}`" if 0 < number <= len(lines) else match[0]

        return re.sub(rf"\b{_build.FILE}:(\d+)", with_source, re.sub(r"@(\d+)", lambda m: places[m[1]], problems))


def _layout(value: Any, argument: np.ndarray) -> Any:
    """What of an argument decides which places a kernel accesses: sizes of arrays, and all other arguments."""
    if hasattr(value, "_host"):
        return value.shape, int(argument[0]) % 16
    return None if isinstance(value, _memory.MemoryPointer) else argument.tobytes()


@contextmanager
def first_in_orders(orders: tuple[int, ...]) -> Iterator[None]:
    """Run each kernel in these orders of threads and blocks, under the checker, when it is launched first.

    Launches that differ from an earlier one in nothing but the contents of arrays then run once, unchecked.
    """
    global ORDERS, _checked
    before, ORDERS, _checked = (ORDERS, _checked), orders, set()
    try:
        yield
    finally:
        ORDERS, _checked = before


def _same_integer(a: np.dtype, b: np.dtype) -> bool:
    """Whether only the sign differs; bool counts as an 8-bit integer."""
    return a.itemsize == b.itemsize and a.kind in "iub" and b.kind in "iub"


def _load_address(path: Path) -> int:
    with Path("/proc/self/maps").open() as maps:
        return next((int(line.split("-")[0], 16) for line in maps if str(path) in line), 0)


@cache
def _places(path: Path, offsets: tuple[int, ...]) -> list[str]:
    """file:line of places in a library's code."""
    if not offsets:
        return []
    command = ["addr2line", "-a", "-i", "-e", path, *map(hex, offsets)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places = []
    for inlined in text.split("0x")[1:]:  # the address, and then lines from the inside out
        lines = [line.split(" (")[0].rpartition("/")[2] for line in inlined.splitlines()[1:]]
        places.append(next((line for line in lines if not line.startswith("cuda_cpu.h")), "?:0"))
    return places


@contextmanager
def costs(kernel: RawKernel) -> Iterator[list[tuple[str, str, int, float]]]:
    """Count what the kernel's loads and stores would cost; the list is filled when the block ends.

    A row for each line of the source: ("line 7", "global" or "shared", requests of a warp, sectors or turns at the
    banks over the fewest possible). All launches within the block are counted.
    """
    rows: list[tuple[str, str, int, float]] = []
    _streams.finish_all()
    _build.runtime().cc_count(1)
    try:
        yield rows
        _streams.finish_all()
        told = [line.split() for line in _build.runtime().cc_costs().decode().splitlines()]
    finally:
        _build.runtime().cc_count(0)
    base = _load_address(kernel._path)
    places = _places(kernel._path, tuple(int(address[1:]) - base - 1 for address, *_ in told))
    sums: dict[tuple[int, str], list[int]] = {}
    for place, (_, memory, *numbers) in zip(places, told, strict=True):
        row = sums.setdefault((int(place.rpartition(":")[2]), memory), [0, 0, 0])
        row[:] = [a + int(b) for a, b in zip(row, numbers, strict=True)]
    for (line, memory), (requests, moved, ideal) in sorted(sums.items()):
        rows.append((f"line {line}", memory, requests, moved / max(ideal, 1)))
