"""The reference backend: its memory is the host's, its kernels are in `layers.py`, `training.py` and `images.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cnn.backends.base import Array, KernelProgress
from cnn.backends.reference.images import ImageKernels
from cnn.backends.reference.layers import LayerKernels
from cnn.backends.reference.training import TrainingKernels


class ReferenceBackend(LayerKernels, TrainingKernels, ImageKernels):
    """Plain NumPy, one operation at a time."""

    name = device_name = "reference"
    precision = "float32"
    xp: Any = np

    def __init__(self) -> None:
        self.description = "reference: plain NumPy, written to be read"

    def for_thread(self) -> "ReferenceBackend":
        return self

    def prepare(
        self, rehearsal: Callable[[], object], progress: KernelProgress | None = None, processes: int | None = None
    ) -> None:
        pass

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.xp.zeros(shape, dtype)

    def asarray(self, values: Any) -> Array:
        return self.xp.asarray(values)

    def to_host(self, values: Array) -> np.ndarray:
        return np.array(values)

    def upload(self, *arrays: Array | None) -> list[Array]:
        return [None if array is None else self.asarray(array) for array in arrays]

    def captured(self, run: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return run

    def begin_pass(self, parameters: Array) -> None:
        pass

    def end_pass(self) -> None:
        pass

    def read_later(self, values: Array) -> Callable[[], np.ndarray]:
        """Begin to copy a small array to the host; the function that is returned waits for the copy and returns it."""
        copy = self.to_host(values)  # shape of values
        return lambda: copy
