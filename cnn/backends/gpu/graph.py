"""CUDA graphs: record the kernels of a small forward pass once, then launch all of them by one call.

A launch from Python takes several microseconds. That is longer than many kernels of a small batch run, so the card
would wait for Python. A graph replays the recorded launches with the same addresses: its input, its output and all
arrays between lie in a memory pool of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from cnn.backends.base import Array

_MAX_VALUES = 1 << 20  # of the input; the kernels of larger batches run longer than their launches
_MAX_GRAPHS = 4  # shapes at a time: full batches, and the last batch of a split


class _Graph(NamedTuple):
    graph: Any
    x: Array  # the input
    y: Array  # the output
    pool: Any  # holds the memory of all arrays between


class Captured:
    """A function of one array, from its second call for a shape on replayed from a graph.

    The function must only launch kernels, and its other arrays must not move or be freed.
    """

    def __init__(self, run: Callable[[Array], Array]) -> None:
        self._run = run
        self._seen: set[tuple[Any, ...]] = set()
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, x: Array) -> Array:
        key = (x.shape, x.strides, str(x.dtype))
        if x.size > _MAX_VALUES or not x.size:
            return self._run(x)
        if key not in self._graphs:
            if key not in self._seen:  # a shape that comes once is not worth a graph; and this compiles the kernels
                self._seen.add(key)
                return self._run(x)
            if len(self._graphs) == _MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # the oldest
            self._graphs[key] = self._record(x)
        graph = self._graphs[key]
        graph.x[...] = x
        graph.graph.launch()
        return graph.y.copy()

    def _record(self, x: Array) -> _Graph:
        import cupy

        pool = cupy.cuda.MemoryPool()
        stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(pool.malloc):
            pitch = x.strides[-2] // x.itemsize  # the channels, with their padding
            own_x = cupy.zeros((*x.shape[:-1], pitch), x.dtype)[..., : x.shape[-1]]  # shape of x
            self._run(own_x)  # fills the pool: no memory may be allocated while recording
            cupy.cuda.get_current_stream().synchronize()
            with stream:
                stream.begin_capture()
                try:
                    y = self._run(own_x)
                finally:
                    graph = stream.end_capture()
        return _Graph(graph, own_x, y, pool)

