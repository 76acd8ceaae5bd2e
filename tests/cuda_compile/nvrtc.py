"""NVRTC, NVIDIA's run-time compiler, by ctypes: CUDA C++ -> machine code. It needs neither a GPU nor a driver.

CuPy compiles by the same library. The wheels `nvidia-cuda-nvrtc` and `nvidia-cuda-nvdisasm` are in the extra `dev`.
"""

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

NVRTC = "nvidia-cuda-nvrtc", "libnvrtc.so."
NVDISASM = "nvidia-cuda-nvdisasm", "nvdisasm"
# Those of cnn/backends/gpu/kernels.py and those that CuPy adds; the last has the assembler report what it used.
OPTIONS = ("-std=c++17", "-ftz=true", "-default-device", "--ptxas-options=-v")


class Compiled(NamedTuple):
    """The compiler's output for one file and one architecture."""

    symbols: dict[str, str]  # name expression -> symbol in the machine code
    log: str
    ptx: str
    cubin: bytes


class CompileError(Exception):
    """The compiler's messages."""


def why_missing() -> str:
    """Why kernels cannot be compiled here, in one line; empty where they can."""
    try:
        _library()
        _find(*NVDISASM)
    except (FileNotFoundError, OSError) as error:
        return f"{error}; install the extra dev"
    return ""


def compile_cuda(code: str, names: tuple[str, ...], architecture: int) -> Compiled:
    """Compile the instances `names`, such as `scale<float>`, for `architecture`, such as 90. Raises CompileError."""
    library, program = _library(), ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None))
    try:
        for name in names:
            _check(library.nvrtcAddNameExpression(program, name.encode()))
        options = [option.encode() for option in (*OPTIONS, f"-arch=sm_{architecture}")]
        failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _read(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).decode().rstrip("\0")
        if failed:
            errors = re.findall(r"^.*: error: .*(?:\n .*)*", log, re.MULTILINE)  # without the warnings
            raise CompileError("\n".join(errors) or log)
        symbols = {}
        for name in names:
            symbol = ctypes.c_char_p()
            _check(library.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
            symbols[name] = (symbol.value or b"").decode()
        ptx = _read(program, library.nvrtcGetPTXSize, library.nvrtcGetPTX).decode().rstrip("\0")
        return Compiled(symbols, log, ptx, _read(program, library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN))
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def disassemble(cubin: bytes) -> str:
    """The machine code as text (SASS)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([_find(*NVDISASM), "-c", file.name], capture_output=True, text=True, check=True)
    return done.stdout


def _find(distribution: str, name: str) -> Path:
    """The file of an installed wheel whose name begins with `name`. Raises FileNotFoundError."""
    try:
        found = [path.locate() for path in files(distribution) or () if path.name.startswith(name)]
    except PackageNotFoundError:
        found = []
    if not found:
        raise FileNotFoundError(f"no {name} of the wheel {distribution}")
    return Path(str(found[0]))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_find(*NVRTC)))


def _check(code: int) -> None:
    if code:
        text = _library().nvrtcGetErrorString
        text.restype = ctypes.c_char_p
        raise CompileError(text(code).decode())


def _read(program: ctypes.c_void_p, size_of: Callable[..., int], read: Callable[..., int]) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer))
    return buffer.raw
