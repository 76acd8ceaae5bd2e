"""The CPU backend: multi-threaded Numba kernels. Start reading at `backend.py`."""

from cnn.backends.cpu.cache import versioned_kernel_cache

with versioned_kernel_cache():
    from cnn.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
