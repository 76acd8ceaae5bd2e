"""Errors of the jobs."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cnn.errors import DeviceFailedError, cuda_reason, is_cuda_error
from logpose.common.errors import LogposeError
from logpose.common.files import NotAFileError

OUT_OF_MEMORY = "out of memory; use a smaller --batch-size, --ram-budget or --size, or fewer --workers"

# A limit of the system (ulimit -u, or that of a container).
NO_THREADS = "the system starts no more threads; use fewer --workers and --threads, or raise its limit (ulimit -u)"

OUT_OF_GPU_MEMORY = "out of GPU memory; use --device cpu or a smaller --batch-size, or close other programs on the GPU"
CHECK_GPU = "check it with nvidia-smi and 'logpose selftest --device cuda', or use --device cpu"


class JobError(LogposeError):
    """Wrong use of a job, or bad input. Nothing was changed."""


class WorkFailedError(JobError):
    """The use was right, but the work failed."""

    exit_code = 1


class OutputLostError(WorkFailedError):
    """Standard output takes no more: it is full, or a pipe without a reader (`is_pipe`). The work is saved as usual."""

    def __init__(self, message: str, *, is_pipe: bool) -> None:
        super().__init__(message)
        self.is_pipe = is_pipe


class RanksLostError(WorkFailedError):
    """All ranks of a training were lost, and its state with them: it goes on from the last checkpoint."""


class Interrupted(LogposeError):
    """Ctrl-C was pressed. The work so far is saved; the message says how to resume."""

    exit_code = 130


def out_of_memory(error: MemoryError) -> str:
    """Return the message, with a remedy."""
    return OUT_OF_GPU_MEMORY if is_cuda_error(error) else OUT_OF_MEMORY


@contextmanager
def gpu_errors(remedy: Callable[[], str] = lambda: CHECK_GPU) -> Iterator[None]:
    """Turn errors of CuPy and CUDA, except for too little memory, into DeviceFailedErrors that end in `remedy`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or not is_cuda_error(error):
            raise
        raise DeviceFailedError(f"the GPU failed ({cuda_reason(error)}); {remedy()}") from error


def explain(error: OSError) -> tuple[str, int]:
    """Return the message, with a remedy, and the exit code of an error of the operating system."""
    reason, where = (error.strerror or str(error)).lower(), f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}{where}; make room and run the same command again to resume (train: with --resume)", 1
    if isinstance(error, FileNotFoundError) and not error.filename:  # os.getcwd
        return "expected to start in a folder, found that the current one has been deleted; change to another", 2
    if isinstance(error, NotAFileError):
        return f"expected a file, found a pipe, socket, device or folder{where}; check the path", 2
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError):
        return f"{reason}{where}; check the path", 2
    if error.errno == errno.ENAMETOOLONG:
        return f"{reason}{where}; choose a shorter one", 2
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return f"{reason}{where}; remove what is there, or choose another path", 2
    if isinstance(error, PermissionError):
        return f"{reason}{where}; check the permissions of the file and of its folder", 2
    return f"{reason}{where}; check the disk and run the same command again", 1
