"""Scratch memory that kernels use and forget: allocated once, then lent again in every step."""

import math
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.team import Team


class Workspace:
    """The threads of `team`, and what they work on. What is lent lives until the next loan for the same purpose."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self._kept: dict[tuple[str, Any], Array] = {}

    def buffer(self, purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array of `shape`, its contents arbitrary; grown when it must be, never given back."""
        size, key = math.prod(shape), (purpose, np.dtype(dtype))
        kept = self._kept.get(key)
        if kept is None or kept.size < size:
            self._kept.pop(key, None)
            kept = self._kept[key] = np.empty(size, dtype)  # (size,)
        return kept[:size].reshape(shape)
