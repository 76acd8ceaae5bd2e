"""Backends: the protocol (base), the plain NumPy reference, and the fast ones, which are tested against it."""

from cnn.backends.base import Backend
from cnn.errors import DeviceError, UnknownNameError

DEVICES = ("auto", "cpu", "cuda", "reference")
PRECISIONS = ("auto", "float32", "tf32", "bf16")


def pick_backend(device: str = "auto", threads: int | None = None, precision: str = "auto") -> Backend:
    """Return the backend of `device`: 'auto' is the GPU if CuPy works, else the CPU.

    `threads` is the number of CPU threads, by default as many as the process may use. `precision` is that of a GPU's
    products and feature maps: 'auto' is bf16 where the card has it; a CPU always computes in float32.

    Raises `DeviceError` where 'cuda' does not work, `threads` is less than 1 or the device does not have the precision,
    and `UnknownNameError` for an unknown device or precision.
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if threads is not None and threads < 1:
        raise DeviceError(f"threads must be 1 or more, found {threads}; leave it out to use all CPUs")
    if device == "reference" and precision in ("auto", "float32"):
        from cnn.backends.reference import ReferenceBackend

        return ReferenceBackend()
    if device in ("auto", "cuda"):
        from cnn.backends.gpu import gpu_backend, why_unusable

        reason = why_unusable()
        if not reason:
            return gpu_backend(precision)
        if device == "cuda":
            missing = reason.startswith("CuPy is not installed")
            check = "check with nvidia-smi that the driver works, and fits CuPy's version of CUDA"
            cure = "install the extra cuda12 or cuda13" if missing else check
            raise DeviceError(f"no usable GPU: {reason}; use --device cpu, or {cure}")
    if precision not in ("auto", "float32"):
        raise DeviceError(f"precision {precision}: expected a GPU, found none; leave it out, or use --device cuda")
    from cnn.backends.cpu import CpuBackend

    return CpuBackend(threads)
