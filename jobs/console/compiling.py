"""Tell the user that kernels are compiled: once on a machine, before the work begins and its rates are measured."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cnn.backends.base import KernelProgress
from jobs.console.output import say
from jobs.console.progress import Bar, bar
from logpose.common.cpus import available_cpus

MIN_KERNELS = 4  # fewer are compiled in a second or two: not worth a line
# Measured (docs/performance.md): what a kernel takes on one core, and the start of the processes that compile.
_KERNEL_SECONDS, _START_SECONDS, _MAX_PROCESSES = 0.5, 1.0, 4


@contextmanager
def compiling() -> Iterator[KernelProgress]:
    """Yield what to give as `progress` to `Backend.prepare`; a line and a bar appear if there is much to compile."""
    with ExitStack() as shown:
        bars: list[Bar] = []

        def show(done: int, total: int) -> None:
            if total < MIN_KERNELS:
                return
            if not bars:
                say(f"compiling kernels, once, about {expected_seconds(total)} s")
                bars.append(shown.enter_context(bar("compiling", "kernels", total, ends=False)))
            bars[0].update(done)

        yield show


def expected_seconds(kernels: int) -> int:
    """Return about how long it takes on a quiet machine."""
    return round(_START_SECONDS + _KERNEL_SECONDS * kernels / min(available_cpus(), _MAX_PROCESSES))
