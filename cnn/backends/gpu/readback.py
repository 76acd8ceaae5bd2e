"""Copies of small arrays from the device to the host beside the computation."""

import threading
import weakref
from collections.abc import Callable

import numpy as np

from cnn.backends.base import Array


class _Slot:
    """Pinned memory for a copy, and the event that tells when the copy is done."""

    def __init__(self, size: int) -> None:
        import cupy

        self.memory = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8)[:size]  # (bytes,)
        # Waiting threads sleep: the reader threads need the CPU while the device computes.
        self.done = cupy.cuda.Event(block=True, disable_timing=True)
        self.user: Callable[[], _Copy | None] = lambda: None  # who still has to read it

    @property
    def free(self) -> bool:
        copy = self.user()
        return copy is None or copy.values is not None


class _Copy:
    """An array as it was when the copy was started. Calling it waits for the copy, and returns it."""

    def __init__(self, slot: _Slot, values: Array) -> None:
        self._slot = slot
        self.values: np.ndarray | None = None  # shape of the array, once it is known
        self._pinned = slot.memory[: values.nbytes].view(values.dtype).reshape(values.shape)  # shape of values
        values.get(out=self._pinned, blocking=False)
        slot.done.record()
        slot.user = weakref.ref(self)

    def __call__(self) -> np.ndarray:
        if self.values is None:
            self._slot.done.synchronize()
            self.values = self._pinned.copy()  # shape of the array
        return self.values


class Readback:
    """Starts copies to the host, on the current stream. Pinned memory is used again once its copy was read."""

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._lock = threading.Lock()

    def read_later(self, values: Array) -> Callable[[], np.ndarray]:
        """Start to copy a contiguous array; the function that is returned waits for the copy, and returns it."""
        with self._lock:
            return _Copy(self._slot(max(values.nbytes, 1)), values)

    def _slot(self, size: int) -> _Slot:
        """A free slot, the smallest that is large enough."""
        free = [slot for slot in self._slots if slot.free and len(slot.memory) >= size]
        if not free:
            self._slots.append(_Slot(size))
            return self._slots[-1]
        slot = min(free, key=lambda slot: len(slot.memory))
        if not slot.done.done:  # dropped unread
            slot.done.synchronize()
        return slot
