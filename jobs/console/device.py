"""Choose the device of a job."""

from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.backends.gpu import why_unusable
from jobs.console.output import detail


def choose_backend(device: str, threads: int | None = None) -> Backend:
    """Return the backend for `device`; with --verbose, print why `auto` does not use a GPU.

    Raises DeviceError where 'cuda' does not work.
    """
    backend = pick_backend(device, threads)
    if device == "auto" and backend.name == "cpu":
        detail(f"no GPU: {why_unusable()}")
    return backend
