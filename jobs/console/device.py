"""Choose the device of a job."""

from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.backends.gpu import why_unusable
from jobs.console.output import detail


def device_text(backend: Backend) -> str:
    """Return what results depend on: 'cpu, AVX-512' or 'NVIDIA H100 80GB HBM3 in bf16', for example."""
    if backend.name == "cuda":
        return f"{backend.device_name} in {backend.precision}"
    if backend.name == "cpu":
        from cnn.backends.cpu.processor import instruction_set  # imports LLVM

        return f"{backend.device_name}, {instruction_set()}"
    return backend.device_name


def results_device(backend: Backend) -> str:
    """Return what a table's probabilities depend on: 'cpu', or a GPU as in `device_text`.

    CPUs are all the same here: other vector instructions may change the last of the printed digits.
    """
    return device_text(backend) if backend.name == "cuda" else backend.name


def has_changed(before: str, now: str) -> bool:
    """Whether the device is another one: `before` may be empty, or lack the instruction set, in older trainings."""
    return before not in ("", now) and not now.startswith(f"{before}, ")


def choose_backend(device: str, precision: str, threads: int | None = None) -> Backend:
    """Return the backend for `device` and `precision`; with --verbose, print why `auto` does not use a GPU.

    Raises DeviceError where 'cuda' does not work, and for a precision that the device does not have.
    """
    backend = pick_backend(device, threads, precision)
    if device == "auto" and backend.name == "cpu":
        detail(f"no GPU: {why_unusable()}")
    return backend
