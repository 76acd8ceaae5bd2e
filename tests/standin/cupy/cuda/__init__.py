"""cupy.cuda: devices, streams, memory; and counters that tests read.

waits     what made the host wait for the device
launches  kernels, array functions, copies on the device and graphs
copied    bytes from the host ("bytes") and to it ("to_host")
grown     device memory that the pool asked of CUDA: "times" and "bytes"

`schedule(name)` runs a block with another schedule of streams, and `finish_all()` does all work that is
put off; `discard_all()` forgets it.
"""

from .._device import Device
from .._errors import CUDARuntimeError
from .._memory import (
    MemoryPointer,
    MemoryPool,
    PinnedMemoryPool,
    alloc,
    alloc_pinned_memory,
    copied,
    grown,
    set_allocator,
    using_allocator,
)
from .._streams import (
    Event,
    Graph,
    Stream,
    discard_all,
    finish_all,
    get_current_stream,
    get_elapsed_time,
    launches,
    schedule,
    waits,
)
from . import memory, runtime

__all__ = [
    "CUDARuntimeError", "Device", "Event", "Graph", "MemoryPointer", "MemoryPool", "PinnedMemoryPool", "Stream",
    "alloc", "alloc_pinned_memory", "copied", "discard_all", "finish_all", "get_current_stream", "get_elapsed_time",
    "grown", "is_available", "launches", "memory", "runtime", "schedule", "set_allocator", "using_allocator", "waits",
]  # fmt: skip


def is_available() -> bool:
    return True
