"""The CPU backend: multi-threaded Numba kernels. Start reading at `backend.py`."""

from cnn.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
