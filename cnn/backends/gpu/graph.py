"""CUDA graphs: record the kernels of a small forward pass once, then launch all of them by one call.

A launch from Python takes several microseconds. That is longer than many kernels of a small batch run, so the card
would wait for Python. A graph repeats the recorded launches with the same addresses: its input, its output and all
arrays between lie in a memory pool of its own.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from cnn.backends.base import Array

_MAX_VALUES = 1 << 20  # of the input; the kernels of larger batches run longer than their launches
_MAX_GRAPHS = 4  # shapes at a time: full batches, and the last batch of a split
_FIRST_CALLS = 2  # of each shape, launched one by one: a rare shape is not worth a graph, and the first call compiles


class _Graph:
    """A graph, its input x and output y, and the pool of memory for these and all arrays between."""

    def __init__(self, graph: Any, x: Array, y: Array, pool: Any) -> None:
        self.graph, self.x, self.y, self._pool = graph, x, y, pool

    def __del__(self) -> None:
        del self.graph, self.x, self.y
        if not sys.is_finalizing():
            self._pool.free_all_blocks()  # CuPy never frees what a pool still keeps when it dies


class Captured:
    """A function of one array, replayed from a graph after a few calls for the same shape: see `Backend.captured`."""

    def __init__(self, run: Callable[[Array], Array]) -> None:
        self._run = run
        self._calls: Counter[tuple[Any, ...]] = Counter()  # by shape, without those that were replayed
        self._graphs: dict[tuple[Any, ...], _Graph] = {}  # the one used last is the last
        self._works = True

    def __call__(self, x: Array) -> Array:
        if not self._works or not 0 < x.size <= _MAX_VALUES:
            return self._run(x)
        key = (x.shape, x.strides, str(x.dtype))
        found = self._graphs.pop(key, None)
        if found is None:
            self._calls[key] += 1
            if self._calls[key] <= _FIRST_CALLS:
                return self._run(x)
            found = self._try_to_record(x)
            if found is None:
                return self._run(x)
            del self._calls[key]
            if len(self._graphs) == _MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = found
        found.x[...] = x
        found.graph.launch()
        return found.y.copy()

    def _try_to_record(self, x: Array) -> _Graph | None:
        """None where CUDA cannot: a graph only saves time. What is wrong with the device, `run` will find too."""
        import cupy

        pool = cupy.cuda.MemoryPool()
        try:
            return self._record(x, pool)
        except Exception:  # CuPy raises many types
            self._works = False
        self._graphs.clear()
        pool.free_all_blocks()  # after the exception, whose frames keep arrays
        return None

    def _record(self, x: Array, pool: Any) -> _Graph:
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)  # the null stream cannot be captured
        stream.wait_event(cupy.cuda.get_current_stream().record())  # the weights were prepared there
        with cupy.cuda.using_allocator(pool.malloc), stream:
            pitch = x.strides[-2] // x.itemsize if x.ndim > 1 else 1  # the channels, with their padding
            own_x = cupy.zeros((*x.shape[:-1], pitch), x.dtype)[..., : x.shape[-1]]  # shape of x
            self._run(own_x)  # fills the pool, so that recording does not allocate
            stream.synchronize()
            stream.begin_capture()
            try:
                y = self._run(own_x)
            finally:
                graph = stream.end_capture()
        return _Graph(graph, own_x, y, pool)
