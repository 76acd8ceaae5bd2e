"""cupy.cuda.runtime: the CUDA runtime's functions that a backend may call."""

from typing import Any

import numpy as np

from .. import _device, _memory, _streams
from .._errors import CUDARuntimeError as CUDARuntimeError

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
streamNonBlocking = 1
eventDisableTiming = 2
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)


def getDeviceCount() -> int:
    return len(_device.cards())


def getDevice() -> int:
    return 0


def setDevice(device: int) -> None: ...


def getDeviceProperties(device: int) -> dict[str, Any]:
    return _device.properties()


def runtimeGetVersion() -> int:
    return 12090


def driverGetVersion() -> int:
    return 12090


def memGetInfo() -> tuple[int, int]:
    return _device.memory_info()


def deviceSynchronize() -> None:
    _device.synchronize()


def streamSynchronize(stream: int) -> None:
    _streams.stream_of(stream).synchronize()


def memcpyAsync(to: int, source: int, size: int, kind: int, stream: int) -> None:
    on = _streams.stream_of(stream)
    if kind == memcpyDefault:
        kind = {(False, True): 1, (True, False): 2, (True, True): 3}[_in_arena(source), _in_arena(to)]
    if kind == memcpyHostToDevice:
        _memory.copy_from_host(_device_bytes(to, size), _memory.host_bytes(source, size), on)
    elif kind == memcpyDeviceToHost:
        _memory.copy_to_host(_memory.host_bytes(to, size), _device_bytes(source, size), on, "memcpyAsync")
    elif kind == memcpyDeviceToDevice:
        _memory.assign(_device_bytes(to, size), _device_bytes(source, size), "memcpyAsync", on)
    else:
        raise CUDARuntimeError(f"cudaErrorInvalidMemcpyDirection: {kind}")


def memcpy(to: int, source: int, size: int, kind: int) -> None:
    memcpyAsync(to, source, size, kind, 0)
    _streams.Stream.null.synchronize()


def memsetAsync(to: int, value: int, size: int, stream: int) -> None:
    _memory.assign(_device_bytes(to, size), np.uint8(value), "memset", _streams.stream_of(stream))


def _in_arena(address: int) -> bool:
    first, size, _ = _memory.arena()
    return first <= address < first + size


def _device_bytes(address: int, size: int) -> np.ndarray:
    first, _, buffer = _memory.arena()
    return np.ndarray((size,), np.uint8, buffer, address - first)
