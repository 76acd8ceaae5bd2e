"""Convolution on the GPU: choose tile sizes, and launch the kernels of cuda/convolution.cu.

N images, H by W pixels, C channels in; OH by OW pixels, K filters out; kernels (KH, KW, C, K). Each pass is a matrix
product, whose sums are computed in tiles, one a block. `math` is PLAIN, TF32 or BF16.
"""

import math as maths
from functools import cache
from typing import Any, NamedTuple

from cnn.backends.base import Array, Window
from cnn.backends.gpu import kernels
from cnn.backends.gpu.norm import Statistics

_FILE = "convolution.cu"
_THREADS = 128
_SLICE = 64  # bytes of a row or column that are multiplied between two barriers


class Tile(NamedTuple):
    """The rows and columns of sums that a block computes, and how fast: multiply-adds a clock, relative to the first.

    Small tiles are slower because each number that is read from shared memory is used in fewer products.
    """

    rows: int
    cols: int
    speed: float

    def blocks(self, rows: int, cols: int) -> int:
        """How many tiles cover a matrix."""
        return -(-rows // self.rows) * -(-cols // self.cols)

    @property
    def shared_bytes(self) -> int:
        stages = 3 if self.rows * self.cols > 128 * 64 else 4  # as in the kernel
        return stages * (self.rows + self.cols + 16) * _SLICE  # 8 rows or columns more of some layouts


TILES = (Tile(128, 128, 1.0), Tile(256, 64, 0.95), Tile(128, 64, 0.7), Tile(64, 64, 0.5))

# Weight gradients are summed in portions, whose number must not depend on the GPU, so that all give the same bits.
_BLOCKS = 264  # that run at a time: two on each of 132 multiprocessors
_ADD_COST = 0.06  # of writing and adding up one block's sums, in units of the time of one slice
_MIN_SLICES = 4  # that a block sums


@cache
def choose_tile(rows: int, cols: int, multiprocessors: int, itemsize: int, aligned: bool) -> Tile:
    """The tile with which the busiest multiprocessor is done first. It does not change the bits of any sum."""
    if itemsize == 8 or not aligned:  # kernels that are for correctness, not speed, come in the smallest tile only
        return TILES[-1]

    def time(tile: Tile) -> float:
        return -(-tile.blocks(rows, cols) // multiprocessors) * tile.rows * tile.cols / tile.speed

    return min(TILES, key=time)


@cache
def choose_splits(tiles: int, slices: int) -> int:
    """In how many portions to sum a weight gradient of so many tiles, from so many slices of pixels."""

    def time(splits: int) -> float:
        return -(-tiles * splits // _BLOCKS) * -(-slices // splits) + _ADD_COST * tiles * splits * (splits > 1)

    return min(range(1, max(1, min(_BLOCKS, slices // _MIN_SLICES)) + 1), key=time)


def forward(
    x: Array, weight: Array, bias: Array | None, window: Window, math: str, kind: str = "", statistics: bool = False
) -> tuple[Array, Statistics | None]:
    """y (N, OH, OW, K): x (N, H, W, C) convolved with weight (KH, KW, C, K), plus bias (K,), then activation `kind`.

    x may be a view of an image whose channels are padded with zeros to 16 bytes. With `statistics`, also the mean and
    squared distances of each filter over each tile's rows of y, for batch norm. The bits of an image's y depend neither
    on the other images nor on their number.
    """
    import cupy

    grid, filters = window.out_size(*x.shape[1:3]), weight.shape[3]
    y = cupy.empty((len(x), *grid, filters), x.dtype)  # (N, OH, OW, K)
    rows = y.size // filters
    image = _image(x, filters)
    tile = choose_tile(rows, filters, _multiprocessors(), x.itemsize, image.aligned)
    partial = cupy.empty((-(-rows // tile.rows), 2, filters), wide_dtype(x)) if statistics else None  # (tiles, 2, K)
    if rows:
        _launch(
            "FORWARD", math, tile, (tile.blocks(rows, filters), 1, 1), image, _aligned(weight), bias, y, partial,
            grid, window, kernels.ACTIVATIONS.index(kind),
        )  # fmt: skip
    return y, None if partial is None else Statistics(partial, tile.rows)


def input_gradient(dy: Array, weight: Array, window: Window, in_shape: tuple[int, ...], math: str) -> Array:
    """dx of `in_shape` (N, H, W, C), from dy (N, OH, OW, K) and weight (KH, KW, C, K).

    With strides, pixels at equal distances from the windows' corners form phases, which see only some of the taps; all
    phases are one launch.
    """
    import cupy

    dx = cupy.empty(in_shape, dy.dtype)  # (N, H, W, C)
    images, height, width, channels = in_shape
    down, across = window.stride
    rows = images * -(-height // down) * -(-width // across)  # of the largest phase
    image = _image(dy, channels)
    if not rows:
        return dx
    tile = choose_tile(rows * down * across, channels, _multiprocessors(), dy.itemsize, image.aligned)
    _launch(
        "INPUT", math, tile, (tile.blocks(rows, channels), 1, down * across), image, _aligned(weight), None, dx, None,
        (height, width), window,
    )  # fmt: skip
    return dx


def weight_gradient(dy: Array, x: Array, window: Window, math: str, d_weight: Array) -> None:
    """Write the gradient w.r.t. the weight to d_weight (KH, KW, C, K), from dy (N, OH, OW, K) and x (N, H, W, C)."""
    import cupy

    filters, pixels = dy.shape[3], dy.size // dy.shape[3]
    if not pixels:
        d_weight[...] = 0
        return
    image = _image(x, filters)
    rows = maths.prod(window.size) * image.channels
    tile = choose_tile(rows, filters, 1, x.itemsize, image.aligned)  # the portions are to occupy all multiprocessors
    tiles = tile.blocks(rows, filters)
    depth = _SLICE // x.itemsize  # pixels in a slice
    slices = -(-pixels // depth)
    stretch = -(-slices // choose_splits(tiles, slices)) * depth
    splits = -(-pixels // stretch)
    direct = splits == 1 and _is_aligned(d_weight)
    parts = d_weight if direct else cupy.empty((splits, *d_weight.shape), d_weight.dtype)  # (splits, KH, KW, C, K)
    _launch(
        "WEIGHT", math, tile, (tiles, 1, splits), image, _aligned(dy), None, parts, None, dy.shape[1:3], window,
        stretch=stretch,
    )  # fmt: skip
    if not direct:
        add = kernels.kernel(_FILE, f"add_splits<{kernels.type_name(d_weight)}>")
        add((-(-d_weight.size // 32),), (256,), (parts, d_weight, d_weight.size, splits))


def wide_dtype(x: Array) -> str:
    """The type of sums and parameters beside a feature map: float64, or float32."""
    return "float64" if x.dtype == "float64" else "float32"


class _Image(NamedTuple):
    """An array whose windows are gathered, (N, H, W, C), with `channels` of the `pitch` elements of a pixel read."""

    array: Array
    channels: int  # those of the array, or of its padding too
    pitch: int
    aligned: bool  # whether all copies are of 16 bytes


def _image(x: Array, cols: int) -> _Image:
    """Find out how to read x; it is copied where it has other strides than a whole image, or one with padding."""
    import cupy

    chunk = 16 // x.itemsize
    channels, pitch = x.shape[3], x.strides[2] // x.itemsize
    padded = channels < pitch == chunk and x.strides == tuple(
        x.itemsize * pitch * maths.prod(x.shape[axis + 1 : 3]) if axis < 3 else x.itemsize for axis in range(4)
    )
    if padded and _is_aligned(x) and cols % chunk == 0:
        return _Image(x, pitch, pitch, True)
    x = _aligned(cupy.ascontiguousarray(x))
    return _Image(x, channels, channels, channels % chunk == 0 and cols % chunk == 0)


def _is_aligned(array: Array) -> bool:
    return bool(array.data.ptr % 16 == 0)


def _aligned(array: Array) -> Array:
    """The array, or a copy where it does not begin at a multiple of 16 bytes: the kernel then copies 16 at a time."""
    import cupy

    array = cupy.ascontiguousarray(array)
    return array if _is_aligned(array) else array.copy()


@cache
def _multiprocessors() -> int:
    import cupy

    return int(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["multiProcessorCount"])


def kernel_name(type_name: str, math: str, which: str, tile: Tile, aligned: bool) -> str:
    """The instance of `convolve` for a C++ type, one of the passes FORWARD, INPUT and WEIGHT, and a tile."""
    return f"convolve<{type_name}, {math}, {which}, {tile.rows}, {tile.cols}, {str(aligned).lower()}>"


@cache
def _kernel(name: str, tile: Tile) -> Any:
    kernel = kernels.kernel(_FILE, name)
    kernel.max_dynamic_shared_size_bytes = tile.shared_bytes
    return kernel


def _launch(
    which: str, math: str, tile: Tile, blocks: tuple[int, int, int], image: _Image, right: Array, bias: Array | None,
    out: Array, partial: Array | None, grid: tuple[int, ...], window: Window, kind: int = 0, stretch: int = 0,
) -> None:
    """Launch one pass. `grid`: the pixels that rows run over, or in WEIGHT the sum."""
    images, height, width, real = image.array.shape
    kernel = _kernel(kernel_name(kernels.type_name(image.array), math, which, tile, image.aligned), tile)
    kernel(
        blocks, (_THREADS,),
        (
            image.array.data, right, bias, out, partial, images, height, width, image.channels, image.pitch, real,
            *grid, out.shape[-1], *window.size, *window.stride, window.top, window.left, kind, stretch,
        ),
        shared_mem=tile.shared_bytes,
    )  # fmt: skip
