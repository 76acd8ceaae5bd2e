"""The CUDA backend, through CuPy."""

from cnn.backends.gpu.backend import GpuBackend, why_unusable

__all__ = ["GpuBackend", "why_unusable"]
