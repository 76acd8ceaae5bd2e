"""The reference backend's array code, run on a GPU by CuPy: for cards too old for our kernels."""

import os
from functools import cache
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.reference import ReferenceBackend
from cnn.errors import first_line
from logpose.common.broken_packages import hide_if_broken
from logpose.common.cache_folder import share_folder


@cache
def why_unusable() -> str:
    """Why CuPy cannot use a GPU here, in one line; empty where it can."""
    if not share_folder("CUPY_CACHE_DIR", "~/.cupy/kernel_cache", "cupy"):
        os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")
    broken = hide_if_broken("cupy")
    try:
        if not broken:
            import cupy
    except ModuleNotFoundError as error:
        return f"CuPy is not installed ({first_line(error)})"
    except ImportError as error:
        broken = error
    if broken:  # CuPy's own message has many lines, below the reason
        reason = broken.__cause__ or broken
        return f"CuPy cannot be imported ({type(reason).__name__}: {first_line(reason)})"
    try:
        cupy.arange(8).sum().item()  # compiles and runs a kernel, to detect a broken CUDA
    except Exception as error:  # CuPy raises many types; a broken CUDA must not end a run on the CPU
        return f"CuPy cannot use a GPU ({type(error).__name__}: {first_line(error)})"
    return ""


def device_count() -> int:
    """The number of CUDA devices that CuPy can use; 0 where it can use none."""
    if why_unusable():
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def compute_capability() -> tuple[int, int]:
    """The current card's compute capability, such as (9, 0) for an H100."""
    properties = _properties()
    return properties["major"], properties["minor"]


class ArrayBackend(ReferenceBackend):
    """The reference on the current CUDA device. Matrix products use cuBLAS."""

    name = "cuda"

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        self.device_name = _properties()["name"].decode()
        self.description = f"cuda: {self.device_name}, CuPy {cupy.__version__}, {self.precision}"

    def to_host(self, values: Array) -> np.ndarray:
        return self.xp.asnumpy(values)


def _properties() -> dict[str, Any]:
    import cupy

    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
