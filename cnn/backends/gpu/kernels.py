"""Compile the CUDA kernels of `cuda/` at first use, each with only the types that are needed.

CuPy keeps the compiled code on disk, by source, names, architecture and version of the compiler, so that only the first
start on a machine compiles. It compiles with -ftz=true: float32 numbers below 1.2e-38 count as 0.
"""

from functools import cache
from pathlib import Path
from typing import Any

from cnn.backends.base import Array

_FOLDER = Path(__file__).resolve().parent / "cuda"
_HEADERS = ("common.cuh", "ptx.cuh")
_PARTS = {"convolution.cu": ("product.cuh", "operands.cuh", "output.cuh")}  # files that one kernel file is split into
# The C++ type of each dtype. Bfloat16 numbers, the upper halves of float32 ones, are kept in uint16 arrays.
TYPES = {"float64": "double", "float32": "float", "uint16": "bf16"}
# The names of activations, in the order of `enum Activation` in cuda/common.cuh.
ACTIVATIONS = ("", "relu", "sigmoid", "tanh", "silu", "gelu")


def type_name(array: Array) -> str:
    """The C++ type of the array's elements."""
    return TYPES[str(array.dtype)]


def source(file: str) -> str:
    """The CUDA C++ of one file, with the shared headers before it: CuPy's cache does not see included files."""
    return "".join((_FOLDER / each).read_text(encoding="utf-8") for each in (*_HEADERS, *_PARTS.get(file, ()), file))


@cache
def _module(file: str, names: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=source(file), options=("-std=c++17",), name_expressions=names)


@cache
def kernel(file: str, name: str, together: tuple[str, ...] = ()) -> Any:
    """Return the kernel `name` of `file`, such as `norm_merge<float>`, ready to be called.

    `together` are kernels that are compiled in one go with it, itself included; by default it alone.
    """
    return _module(file, together or (name,)).get_function(name)
