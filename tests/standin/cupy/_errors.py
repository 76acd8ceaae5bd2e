"""CuPy's exceptions."""


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime."""


class OutOfMemoryError(MemoryError):
    """Out of device memory: what was asked for, what was allocated, and the limit."""

    def __init__(self, size: int, total: int, limit: int) -> None:
        allocated = f"allocated so far: {total:,} bytes, limit: {limit:,} bytes"
        super().__init__(f"Out of memory allocating {size:,} bytes ({allocated}).")
