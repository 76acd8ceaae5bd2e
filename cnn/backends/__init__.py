"""Backends: the protocol (base), the plain NumPy reference, and the fast ones, which are tested against it."""

from cnn.backends.base import Backend
from cnn.errors import DeviceError, UnknownNameError

DEVICES = ("auto", "cpu", "cuda", "reference")


def pick_backend(device: str = "auto", threads: int | None = None) -> Backend:
    """Return the backend of `device`: 'auto' is the GPU if CuPy works, else the CPU.

    `threads` is the number of CPU threads, by default as many as the process may use. Raises `DeviceError`
    where 'cuda' does not work or `threads` is less than 1, and `UnknownNameError` for an unknown device.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if threads is not None and threads < 1:
        raise DeviceError(f"threads must be 1 or more, found {threads}; leave it out to use all CPUs")
    if device == "reference":
        from cnn.backends.reference import ReferenceBackend

        return ReferenceBackend()
    if device in ("auto", "cuda"):
        from cnn.backends.gpu import GpuBackend, why_unusable

        reason = why_unusable()
        if not reason:
            return GpuBackend()
        if device == "cuda":
            raise DeviceError(f"no usable GPU: {reason}; use --device cpu, or install the extra cuda12")
    from cnn.backends.cpu import CpuBackend

    return CpuBackend(threads)
