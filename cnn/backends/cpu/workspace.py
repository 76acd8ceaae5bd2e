"""Workspace: scratch buffers that are allocated once and reused in every step."""

import math
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.team import Team


class Workspace:
    """A thread team and its scratch buffers."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self._buffers: dict[tuple[str, Any], Array] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array of `shape`, valid until the next call with the same name and dtype.

        The memory grows as needed and is never freed.
        """
        size, key = math.prod(shape), (name, np.dtype(dtype))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            self._buffers.pop(key, None)  # free it before allocating the larger one
            buffer = self._buffers[key] = empty((size,), dtype)  # (size,)
        return buffer[:size].reshape(shape)
