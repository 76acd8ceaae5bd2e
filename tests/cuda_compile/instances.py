"""Every instance of every kernel that the GPU backend can ask for, and what its machine code must have."""

from typing import NamedTuple


class Instance(NamedTuple):
    """A kernel with its template arguments."""

    name: str  # as given to cnn.backends.gpu.kernels.kernel
    needs: tuple[str, ...] = ()  # instructions that must occur: keys of tests.cuda_compile.resources.INSTRUCTIONS
    min_blocks: int = 1  # on one multiprocessor at a time
    dynamic_shared: int = 0  # bytes of a block that the launch asks for
    main: bool = False  # most of a step's time: checked on all architectures by every run of the tests


INSTANCES: dict[str, list[Instance]] = {}
