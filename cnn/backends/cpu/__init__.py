"""The CPU backend: Numba kernels on every core. `backend.py` is where to begin."""

from cnn.backends.cpu.cache import kernels_of_this_version

with kernels_of_this_version():
    from cnn.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
