"""cupy.cuda.memory"""

from .._errors import OutOfMemoryError
from .._memory import Memory, MemoryPointer, MemoryPool, alloc, set_allocator, using_allocator

__all__ = ["Memory", "MemoryPointer", "MemoryPool", "OutOfMemoryError", "alloc", "set_allocator", "using_allocator"]
