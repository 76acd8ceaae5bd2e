"""The emulated device: its properties, which CUDA_CPU_CAPABILITY (such as 8.0) and CUDA_CPU_MEMORY (bytes) change.

The machine has CUDA_CPU_DEVICES cards, by default one. A process sees those in CUDA_VISIBLE_DEVICES, as with CUDA, and
uses the first.
"""

import os
from typing import Any

from . import _memory, _streams

# KiB of shared memory that a block may ask for, by compute capability
_SHARED = {
    (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227, (12, 0): 99,
}  # fmt: skip


def capability() -> tuple[int, int]:
    major, _, minor = (os.environ.get("CUDA_CPU_CAPABILITY") or "9.0").partition(".")
    return int(major), int(minor or 0)


def shared_memory_limit() -> int:
    """Bytes of shared memory that a block may ask for."""
    return _SHARED.get(capability(), 48) << 10


def cards() -> list[int]:
    """The numbers of the cards that this process sees."""
    count = int(os.environ.get("CUDA_CPU_DEVICES") or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(range(count)) if visible is None else [int(each) for each in visible.split(",") if int(each) < count]


def properties() -> dict[str, Any]:
    major, minor = capability()
    return {
        "name": b"CUDA emulated on the CPU",
        "major": major,
        "minor": minor,
        "multiProcessorCount": 132,
        "totalGlobalMem": _memory.total_memory(),
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": shared_memory_limit(),
        "sharedMemPerMultiprocessor": shared_memory_limit() + (1 << 10),
        "regsPerBlock": 65536,
        "regsPerMultiprocessor": 65536,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiProcessor": 2048,
        "l2CacheSize": 50 << 20,
        "concurrentKernels": 1,
        "asyncEngineCount": 3,
    }


class Device:
    """The only device in use, number 0."""

    def __init__(self, device: Any = 0) -> None:
        self.id = int(device)

    def __int__(self) -> int:
        return self.id

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{cards()[0]:02X}:00.0"

    @property
    def compute_capability(self) -> str:
        return "".join(map(str, capability()))

    @property
    def attributes(self) -> dict[str, int]:
        told = properties()
        return {
            "MultiProcessorCount": told["multiProcessorCount"],
            "MaxSharedMemoryPerBlock": told["sharedMemPerBlock"],
            "MaxSharedMemoryPerBlockOptin": told["sharedMemPerBlockOptin"],
            "ComputeCapabilityMajor": told["major"],
            "ComputeCapabilityMinor": told["minor"],
            "L2CacheSize": told["l2CacheSize"],
            "WarpSize": 32,
        }

    @property
    def mem_info(self) -> tuple[int, int]:
        return memory_info()

    def synchronize(self) -> None:
        synchronize()

    def use(self) -> "Device":
        return self

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None: ...


def synchronize() -> None:
    _streams.wait("device.synchronize")
    _streams.finish_all()


def memory_info() -> tuple[int, int]:
    """Free and total bytes."""
    total = _memory.total_memory()
    return total - _memory.MemoryPool._all_bytes(), total
