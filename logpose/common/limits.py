"""Limits of the system that must be known before work begins: beyond them LLVM ends the process, or waits for ever."""

from logpose.common.cpus import available_cpus
from logpose.common.errors import LogposeError

# Address space of a job on small images, measured: 0.9 GB for a build, 1.0 GB for a training on 2 CPUs; and for each
# CPU the stack of a thread, and BLAS's buffer.
_JOB_BYTES = 2**30
_CPU_BYTES = 2**26


class AddressSpaceError(LogposeError):
    """The process may not use enough address space (ulimit -v)."""

    exit_code = 1


def check_address_space() -> None:
    """Raise AddressSpaceError where no job can run. Too little memory is another matter: using it fails in time."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = _JOB_BYTES + _CPU_BYTES * available_cpus()
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise AddressSpaceError(
            f"expected an address space of at least {needed // 10**6:,} MB, found a limit of {limit // 10**6:,} MB:"
            f" raise it with 'ulimit -v {needed // 1024}', or 'ulimit -v unlimited'"
        )
