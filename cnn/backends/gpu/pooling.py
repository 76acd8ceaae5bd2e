"""Max and average pooling with any window, and over whole images; see cuda/pooling.cu.

N images, H by W pixels, C channels in; OH by OW pixels out. Global pools give vectors (N, C) of the wide type: float64
for float64 maps, else float32.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from cnn.backends.base import Array, Window
from cnn.backends.gpu.kernels import TYPES, kernel
from cnn.backends.gpu.layout import THREADS, layout_of, processors, wide_type

_WINNERS = {1: "unsigned char", 4: "int"}  # C++ types of a winner's index in the window
_2X2 = Window((2, 2), (2, 2))


def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """See `ReferenceBackend.max_pool`; the indices are uint8, or int32 for windows of more than 256 pixels."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (N, H, W, C)
    shape = (len(x), *window.out_size(*x.shape[1:3]), x.shape[3])
    y = cupy.empty(shape, x.dtype)  # (N, OH, OW, C)
    winners = cupy.empty(shape, np.uint8 if math.prod(window.size) <= 256 else np.int32)  # (N, OH, OW, C)
    if window == _2X2:
        _run("max_pool_2x2", (x, y, winners), y, x.shape, y.shape, None)
    else:
        _run("max_pool", (x, y, winners), y, x.shape, y.shape, window, winners)
    return y, winners


def max_pool_backward(dy: Array, winners: Array, in_shape: tuple[int, ...], window: Window) -> Array:
    """See `ReferenceBackend.max_pool_backward`."""
    import cupy

    dy, dx = cupy.ascontiguousarray(dy), cupy.empty(in_shape, dy.dtype)  # (N, OH, OW, C), (N, H, W, C)
    if window == _2X2:
        _run("max_pool_2x2_backward", (dy, winners, dx), dx, in_shape, dy.shape, None)
    else:
        _run("max_pool_backward", (dy, winners, dx), dx, in_shape, dy.shape, window, winners)
    return dx


def average_pool(x: Array, window: Window) -> Array:
    """See `ReferenceBackend.average_pool`."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (N, H, W, C)
    y = cupy.empty((len(x), *window.out_size(*x.shape[1:3]), x.shape[3]), x.dtype)  # (N, OH, OW, C)
    _run("average_pool", (x, y), y, x.shape, y.shape, window)
    return y


def average_pool_backward(dy: Array, in_shape: tuple[int, ...], window: Window) -> Array:
    """See `ReferenceBackend.average_pool_backward`."""
    import cupy

    dy, dx = cupy.ascontiguousarray(dy), cupy.empty(in_shape, dy.dtype)  # (N, OH, OW, C), (N, H, W, C)
    _run("average_pool_backward", (dy, dx), dx, in_shape, dy.shape, window)
    return dx


def global_max_pool(x: Array) -> tuple[Array, Array]:
    """See `ReferenceBackend.global_max_pool`; the indices are int32."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (N, H, W, C)
    n, height, width, channels = x.shape
    y, winners = cupy.empty((n, channels), wide_type(x)), cupy.empty((n, channels), np.int32)  # (N, C) each
    if x.size:
        layout = layout_of(channels, x)
        _kernel("global_max_pool", x.dtype, layout.vector)(
            (n, layout.slices), (THREADS,), (x, y, winners, height * width, channels, layout.width)
        )
    return y, winners


def global_max_pool_backward(dy: Array, winners: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
    """See `ReferenceBackend.global_max_pool_backward`; dy (N, C) is wide, the result of `dtype`."""
    return _global_backward(dy, winners, in_shape, dtype)  # (N, H, W, C)


def global_average_pool(x: Array) -> Array:
    """See `ReferenceBackend.global_average_pool`."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (N, H, W, C)
    n, height, width, channels = x.shape
    y = cupy.empty((n, channels), wide_type(x))  # (N, C)
    if x.size:
        layout = layout_of(channels, x)
        _kernel("global_average_pool", x.dtype, layout.vector)(
            (n, layout.slices), (THREADS,), (x, y, height * width, channels, layout.width)
        )
    return y


def global_average_pool_backward(dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array:
    """See `ReferenceBackend.global_average_pool_backward`; dy (N, C) is wide, the result of `dtype`."""
    return _global_backward(dy, None, in_shape, dtype)  # (N, H, W, C)


def _global_backward(dy: Array, winners: Array | None, in_shape: tuple[int, ...], dtype: Any) -> Array:
    import cupy

    dy, dx = cupy.ascontiguousarray(dy), cupy.empty(in_shape, dtype)  # (N, C), (N, H, W, C)
    if dx.size:
        n, height, width, channels = in_shape
        pixels, layout = height * width, layout_of(channels, dx)
        # Chunks of an image's pixels: enough blocks for the device, of at least four pixels per thread.
        chunks = max(1, min(-(-8 * processors() // (n * layout.slices)), pixels // (4 * layout.lanes)))
        chunk = -(-pixels // chunks)
        _kernel("global_pool_backward", dx.dtype, layout.vector)(
            (n, layout.slices, -(-pixels // chunk)), (THREADS,),
            (dy, winners, dx, pixels, channels, layout.width, chunk),
        )  # fmt: skip
    return dx


def _run(
    name: str, arrays: tuple[Array, ...], written: Array, in_shape: tuple[int, ...], out_shape: tuple[int, ...],
    window: Window | None, winners: Array | None = None,
) -> None:
    """Run a kernel over the pixels of `written`; without a window, one for 2x2 windows, over the windows."""
    if not written.size:
        return
    maps = [array for array in arrays if array.dtype == written.dtype]
    layout = layout_of(in_shape[3], *maps)
    rows = written.size // in_shape[3]
    if window is None:
        rows = in_shape[0] * -(-in_shape[1] // 2) * -(-in_shape[2] // 2) if name.endswith("backward") else rows
        geometry: tuple[int, ...] = ()
    else:
        geometry = (*window.size, *window.stride, window.top, window.left)
    index = "" if winners is None else _WINNERS[winners.itemsize]
    _kernel(name, written.dtype, layout.vector, index)(
        (layout.blocks(rows, 1), layout.slices), (THREADS,),
        (*arrays, rows, layout.width, *in_shape[1:3], *out_shape[1:], *geometry),
    )  # fmt: skip


@cache
def _kernel(name: str, dtype: np.dtype, vector: int, index: str = "") -> Any:
    """The kernel for maps of `dtype`, compiled with all for that type and 8-bit indices."""
    kind = TYPES[str(dtype)]

    def full_name(name: str, vector: int, index: str = "") -> str:
        return f"{name}<{kind}, {vector}{', ' * bool(index)}{index}>"

    with_index = ("max_pool", "max_pool_backward")
    others = (
        "max_pool_2x2", "max_pool_2x2_backward", "average_pool", "average_pool_backward",
        "global_average_pool", "global_max_pool", "global_pool_backward",
    )  # fmt: skip
    wanted, vectors = full_name(name, vector, index), (16 // dtype.itemsize, 1)
    together = tuple(full_name(each, v, _WINNERS[1]) for each in with_index for v in vectors)
    together += tuple(full_name(each, v) for each in others for v in vectors)
    return kernel("pooling.cu", wanted, together if wanted in together else (wanted,))
