"""Batch norm fused with its activation, and sums over rows; see cuda/norm.cu.

M rows, the pixels of all images or vectors; C channels; B blocks that each sum a stretch of rows. Scales, shifts, means
and variances are in the wide type: float64 for float64 maps, else float32.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cnn.backends.base import Array
from cnn.backends.gpu.kernels import ACTIVATIONS, TYPES, kernel
from cnn.backends.gpu.layout import THREADS, Layout, layout_of, wide_type

_MERGE_CHANNELS, _MERGE_LANES = 8, 64  # as in cuda/norm.cu
_MAX_PARTS = 1024  # stretches of rows: a constant, so that sums do not depend on the device
_MIN_ROWS = 64  # of a stretch, so that partial results are little memory compared with x
_SMALL = 1 << 14  # elements that one block sums in less time than another launch takes
_BATCH = 4  # rows per thread at a time


class Statistics(NamedTuple):
    """Partial statistics of rows (M, C), in tiles of `tile_rows` rows, the last one perhaps shorter.

    `partial` (tiles, 2, C) has each tile's mean and sum of squared distances from it, per channel.
    """

    partial: Array
    tile_rows: int


def statistics(x: Array) -> Statistics:
    """Partial statistics of x (..., C)."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (..., C)
    channels, rows = x.shape[-1], x.size // x.shape[-1]
    layout = layout_of(channels, x)
    stretch = _stretch(rows, layout)
    parts = -(-rows // stretch)
    partial = cupy.empty((parts, 2, channels), wide_type(x))  # (B, 2, C)
    if parts:
        _kernel("norm_statistics", x.dtype, layout.vector)(
            (parts, layout.slices), (THREADS,), (x, partial, rows, channels, layout.width, stretch)
        )
    return Statistics(partial, stretch)


def merge(
    stats: Statistics, rows: int, running_mean: Array | None, running_variance: Array | None, momentum: float | None
) -> tuple[Array, Array]:
    """Mean and biased variance of all rows, (C,) each.

    The running statistics, if given, move towards the mean and the unbiased variance where both are finite; without
    `momentum`, the mean and the biased variance are written to them, and they are returned.
    """
    import cupy

    parts, _, channels = stats.partial.shape
    wide = wide_type(stats.partial)
    if momentum is None:
        mean, variance, running_mean, running_variance, momentum = running_mean, running_variance, None, None, 0.0
    else:
        mean, variance = cupy.empty(channels, wide), cupy.empty(channels, wide)  # (C,) each
    _kernel("norm_merge", stats.partial.dtype)(
        (-(-channels // _MERGE_CHANNELS),), (_MERGE_CHANNELS * _MERGE_LANES,),
        (stats.partial, mean, variance, running_mean, running_variance, wide(momentum), rows, channels,
         stats.tile_rows, parts),
    )  # fmt: skip
    return mean, variance


def apply(
    x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str
) -> Array:
    """See `ReferenceBackend.batch_norm_infer`."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (..., C)
    y = cupy.empty(x.shape, x.dtype)  # (..., C)
    if x.size:
        channels, rows = x.shape[-1], x.size // x.shape[-1]
        layout = layout_of(channels, x)
        _kernel("norm_apply", x.dtype, layout.vector)(
            (layout.blocks(rows, _BATCH), layout.slices), (THREADS,),
            (x, scale, shift, mean, variance, y, rows, channels, layout.width, wide_type(x)(epsilon),
             ACTIVATIONS.index(kind)),
        )  # fmt: skip
    return y


def backward(
    dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
    d_scale: Array, d_shift: Array,
) -> Array:
    """See `ReferenceBackend.batch_norm_backward`."""
    import cupy

    dy, x = cupy.ascontiguousarray(dy), cupy.ascontiguousarray(x)  # (..., C) each
    dx = cupy.empty(x.shape, x.dtype)  # (..., C)
    if not x.size:
        d_scale.fill(0)
        d_shift.fill(0)
        return dx
    channels, rows = x.shape[-1], x.size // x.shape[-1]
    layout = layout_of(channels, x, dy)
    stretch = _stretch(rows, layout)
    parts = -(-rows // stretch)
    partial = cupy.empty((parts, 2, channels), wide_type(x))  # (B, 2, C)
    affine, options = (scale, shift, mean, variance), (wide_type(x)(epsilon), ACTIVATIONS.index(kind))
    _kernel("norm_backward_sums", x.dtype, layout.vector)(
        (parts, layout.slices), (THREADS,), (dy, x, *affine, partial, rows, channels, layout.width, stretch, *options)
    )
    _merge_sums(partial, d_shift, d_scale)
    _kernel("norm_backward_apply", x.dtype, layout.vector)(
        (layout.blocks(rows, _BATCH), layout.slices), (THREADS,),
        (dy, x, *affine, d_shift, d_scale, dx, rows, channels, layout.width, *options),
    )  # fmt: skip
    return dx


def channel_sums(x: Array, out: Array) -> None:
    """Set `out` (C,), of the wide type, to the sums of x (..., C) over all axes but the last."""
    import cupy

    x = cupy.ascontiguousarray(x)  # (..., C)
    if not x.size:
        out.fill(0)
        return
    channels, rows = x.shape[-1], x.size // x.shape[-1]
    layout = layout_of(channels, x)
    stretch = rows if x.size <= _SMALL else _stretch(rows, layout)
    parts = -(-rows // stretch)
    partial = out if parts == 1 else cupy.empty((parts, channels), wide_type(x))  # (B, C)
    _kernel("channel_sums", x.dtype, layout.vector)(
        (parts, layout.slices), (THREADS,), (x, partial, rows, channels, layout.width, stretch)
    )
    if parts > 1:
        _merge_sums(partial, out, None)


def _merge_sums(partial: Array, first: Array, second: Array | None) -> None:
    """Sum partial results (B, 2, C) or (B, C) into `first` (C,) and, if there are two, `second` (C,)."""
    parts, channels = len(partial), partial.shape[-1]
    _kernel("sums_merge", partial.dtype, 1 if second is None else 2)(
        (-(-channels // _MERGE_CHANNELS),), (_MERGE_CHANNELS * _MERGE_LANES,),
        (partial, first, second, channels, parts),
    )  # fmt: skip


def _stretch(rows: int, layout: Layout) -> int:
    """Rows per block of a sum over all rows."""
    return max(_MIN_ROWS, 4 * layout.lanes, -(-rows // _MAX_PARTS))


@cache
def _kernel(name: str, dtype: np.dtype, number: int = 0) -> Any:
    """The kernel for arrays of `dtype`, compiled with all for that type.

    `number` is its second template argument: the elements per load or, of `sums_merge`, the sums.
    """
    kind = TYPES[str(dtype)]
    wide = "double" if kind == "double" else "float"
    names = ("norm_statistics", "norm_apply", "norm_backward_sums", "norm_backward_apply", "channel_sums")
    together = {
        ("norm_merge", 0): f"norm_merge<{wide}>",
        **{("sums_merge", sums): f"sums_merge<{wide}, {sums}>" for sums in (1, 2)},
        **{(each, vector): f"{each}<{kind}, {vector}>" for vector in (16 // dtype.itemsize, 1) for each in names},
    }
    return kernel("norm.cu", together[name, number], tuple(together.values()))
