"""Choose the device of a job."""

from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.backends.gpu import why_unusable
from jobs.console.output import detail


def choose_backend(device: str, precision: str, threads: int | None = None) -> Backend:
    """Return the backend for `device` and `precision`; with --verbose, print why `auto` does not use a GPU.

    Raises DeviceError where 'cuda' does not work, and for a precision that the device does not have.
    """
    backend = pick_backend(device, threads, precision)
    if device == "auto" and backend.name == "cpu":
        detail(f"no GPU: {why_unusable()}")
    return backend
