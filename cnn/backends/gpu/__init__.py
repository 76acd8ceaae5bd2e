"""The CUDA backend: kernels of our own (`cuda/`), compiled and launched by CuPy."""

from cnn.backends.base import Backend
from cnn.backends.gpu.arrays import ArrayBackend, compute_capability, device_count, why_unusable
from cnn.errors import DeviceError

__all__ = ["device_count", "gpu_backend", "why_unusable"]

_OLDEST = (8, 0)  # of the cards with bfloat16 and asynchronous copies (Ampere, 2020)


def gpu_backend(precision: str = "auto") -> Backend:
    """Return the backend of the current CUDA device: 'auto' is bf16 where the card has it, else float32.

    Raises `DeviceError` for a precision that the card does not have.
    """
    capability = compute_capability()
    if capability >= _OLDEST:
        from cnn.backends.gpu.backend import GpuBackend

        return GpuBackend("bf16" if precision == "auto" else precision)
    if precision not in ("auto", "float32"):
        raise DeviceError(
            f"precision {precision}: expected a card of compute capability {_OLDEST[0]}.{_OLDEST[1]} or newer, found "
            f"{capability[0]}.{capability[1]}; use --precision float32"
        )
    return ArrayBackend()
