"""CuPy: the reference's array code, run on a GPU.

Every kernel is inherited: the reference asks only for functions that NumPy and CuPy share, so what a GPU computes
is what `reference.py` says, with cuBLAS underneath the matrix products.
"""

from functools import cache
from typing import Any

import numpy as np

from cnn.backends.base import Array
from cnn.backends.reference import ReferenceBackend


@cache
def why_unusable() -> str:
    """Empty where CuPy works on a GPU here, else the reason in one line."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is not installed ({str(error).partition(chr(10))[0]})"
    try:
        cupy.arange(8).sum().item()  # compiles and runs a kernel, so a broken CUDA shows here
    except Exception as error:  # whatever CuPy raises: a broken CUDA must not end a run that the CPU can do
        return f"CuPy cannot use a GPU ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    return ""


class GpuBackend(ReferenceBackend):
    """CuPy on the current CUDA device."""

    name = "cuda"

    def __init__(self) -> None:
        import cupy

        self.xp: Any = cupy
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.description = f"cuda: {properties['name'].decode()}, CuPy {cupy.__version__}"

    def to_host(self, values: Array) -> np.ndarray:
        return self.xp.asnumpy(values)
