"""Copies from host to device memory beside the kernels: pinned buffers, a stream of their own, and events.

    arrays ──host copies──▶ pinned buffer ──copy stream──▶ device buffer ──compute stream──▶ kernels

A buffer is used again after two others. Events make sure that the copy out of it and the kernels that read it are done;
by then they mostly are, so that neither the host nor the copy waits.
"""

import threading
from typing import Any

import numpy as np

from cnn.backends.base import Array

_SLOTS = 3
_ALIGNMENT = 256  # of each array in a buffer, in bytes: as CuPy's own arrays


class _Slot:
    """A pinned and a device buffer of the same size, and what has to be done before they are filled again."""

    def __init__(self) -> None:
        import cupy

        self.host = np.empty(0, np.uint8)  # (bytes,), pinned
        self.device: Any = None  # cupy.cuda.MemoryPointer to as many bytes
        self.copied = cupy.cuda.Event(disable_timing=True)  # the copy from host to device
        self.used = cupy.cuda.Event(disable_timing=True)  # the kernels that read the device buffer

    def grow(self, size: int) -> bool:
        """Make the buffers at least `size` bytes; whether they are new."""
        import cupy

        if self.device is not None and len(self.host) >= size:
            return False
        size = max(size, 1)
        host = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8)[:size]  # (bytes,)
        self.device = cupy.cuda.alloc(size)  # may raise: then both buffers stay as they are
        self.host = host
        return True


class _Ring:
    """The buffers and the copy stream of one thread."""

    def __init__(self) -> None:
        import cupy

        # Non-blocking: else the null stream, where kernels run, would wait for every copy and every copy for it.
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.slots = [_Slot() for _ in range(_SLOTS)]
        self.count = 0  # uploads so far

    def upload(self, arrays: list[np.ndarray]) -> list[Array]:
        import cupy

        compute = cupy.cuda.get_current_stream()
        if self.count:  # whatever reads the last upload has been started
            self.slots[(self.count - 1) % _SLOTS].used.record(compute)
        slot = self.slots[self.count % _SLOTS]
        places, size = [], 0
        for array in arrays:
            places.append(slice(size, size + array.nbytes))
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self.count >= _SLOTS and not slot.copied.done:
            slot.copied.synchronize()  # before the pinned buffer is written to, or freed
        if slot.grow(size):
            slot.used.record(compute)  # work under way may still use the memory that CuPy gives us again
        for array, place in zip(arrays, places, strict=True):
            slot.host[place].view(array.dtype).reshape(array.shape)[...] = array
        self.stream.wait_event(slot.used)
        if size:
            slot.device.copy_from_host_async(slot.host.ctypes.data, size, self.stream)
        slot.copied.record(self.stream)
        compute.wait_event(slot.copied)
        self.count += 1
        return [
            cupy.ndarray(array.shape, array.dtype, slot.device + place.start)  # shape of array
            for array, place in zip(arrays, places, strict=True)
        ]


class Uploads:
    """Copies of host arrays to the device, for all threads: each has its own buffers.

    Keep it until work that uses the copies is done: it holds the pinned buffers.
    """

    def __init__(self) -> None:
        self._rings = threading.local()

    def upload(self, *arrays: Any) -> list[Array]:
        """See `Backend.upload`."""
        if not hasattr(self._rings, "ring"):
            self._rings.ring = _Ring()
        own = [array for array in arrays if isinstance(array, np.ndarray)]
        copies = iter(self._rings.ring.upload(own))
        return [next(copies) if isinstance(array, np.ndarray) else array for array in arrays]


def free_bytes() -> int:
    """Device memory that could be allocated: free, or kept by CuPy for later."""
    import cupy

    pool = cupy.get_default_memory_pool()
    return cupy.cuda.runtime.memGetInfo()[0] + pool.total_bytes() - pool.used_bytes()
