"""The CUDA backend, by way of CuPy."""

from cnn.backends.gpu.backend import GpuBackend, why_unusable

__all__ = ["GpuBackend", "why_unusable"]
