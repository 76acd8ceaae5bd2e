"""CUDA kernels on a CPU, for tests: the source that a GPU would get is compiled by g++ and run under a checker.

tests/cuda_cpu/      cuda_cpu.h is what kernels see; runtime.cpp and its headers run them, a fiber for each CUDA thread
tests/standin/cupy/  a strict stand-in for CuPy on top of it
tests/cnn/backends/gpu/conftest.py  the fixtures that use both, or a real GPU where there is one

Environment variables, read when the stand-in is imported unless noted:

CUDA_CPU_CHECK=0              do not check loads and stores: several times faster, and only margins are checked
CUDA_CPU_ORDERS=0,1,2         run each kernel in several orders of threads and blocks, which must give the same bits
CUDA_CPU_STREAMS=early        another schedule of streams; standin/cupy/_streams.py says which there are
CUDA_CPU_CAPABILITY=8.0       the compute capability that the device has (read at each use)
CUDA_CPU_MEMORY=100000000     bytes of device memory (read at each use)
CUDA_CPU_DEVICES=2            cards of the machine; a process uses the first of CUDA_VISIBLE_DEVICES (read at each use)
CUDA_CPU_NCCL=0               without NCCL
CUDA_CPU_CACHE=FOLDER         where compiled modules are kept, by default a folder in the temporary folder
"""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

STANDIN = Path(__file__).resolve().parent.parent / "standin"
_installed: dict[str, ModuleType] = {}  # the stand-in's modules, once imported; they are never imported twice


def why_unusable() -> str:
    """Why kernels cannot be emulated here, in one line; empty where they can."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"CUDA is emulated on Linux on x86-64 and aarch64 only, not on {platform.system()} {platform.machine()}"
    return "" if shutil.which("g++") else "CUDA is emulated with g++, which is not installed"


def environment(**variables: str) -> dict[str, str]:
    """The environment of a subprocess that is to import the stand-in as CuPy, with more `variables`."""
    path = os.pathsep.join(filter(None, [str(STANDIN), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **variables}


@contextmanager
def emulated_cuda() -> Iterator[Any]:
    """Have `import cupy` import the stand-in, for all modules, until the block ends."""
    outside = _remove("cupy", "cupyx")
    sys.modules.update(_installed)
    sys.path.insert(0, str(STANDIN))
    _forget_devices()
    try:
        cupy = importlib.import_module("cupy")
        yield cupy
        cupy.cuda.finish_all()
    finally:
        sys.path.remove(str(STANDIN))
        _installed.update(_remove("cupy", "cupyx"))
        sys.modules.update(outside)
        _forget_devices()


def _remove(*packages: str) -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in packages]
    return {name: sys.modules.pop(name) for name in names}


def _forget_devices() -> None:
    """Clear what the GPU backend caches: whether CuPy works, and compiled kernels."""
    for name, module in list(sys.modules.items()):
        if name.startswith("cnn.backends.gpu"):
            for each in list(vars(module).values()):
                if hasattr(each, "cache_clear"):
                    each.cache_clear()
