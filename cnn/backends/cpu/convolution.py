"""Which way each convolution goes, and in what portions.

3x3 at stride 1 goes by Winograd where there are enough channels to pay for the transforms, everything else directly.
`choose` decides from a count of multiply-adds; the constants in it were measured (docs/performance.md).

N images, C channels in, K filters out, T threads.
"""

import math
from typing import NamedTuple

import numpy as np

from cnn.backends.base import Array, Window
from cnn.backends.cpu import direct, winograd
from cnn.backends.cpu.direct import Slide, Units
from cnn.backends.cpu.gemm import MR, NR
from cnn.backends.cpu.simd import LANES
from cnn.backends.cpu.workspace import Workspace

# What each way costs beside its products, in multiply-adds. For each channel of a tile: its patch transformed.
_TRANSFORM = {4: 900, 2: 400}
# For each pair of channel and filter: the kernels packed or transformed. 0 is direct convolution.
_KERNEL = {0: 400, 4: 1500, 2: 600}
_TILES = 48  # in a block
_TILES_OF_MANY_SUMS = 96  # where each block adds to gradients that lie in slower memory
_UNIT_BYTES = 192 << 10  # of padded images that a unit of direct convolution takes: fits into a core's L2
_UNIT_PIXELS = 96  # and the fewest results it should make, so that the packed kernels are not fetched for a few
_MAX_SUMS = 1 << 19  # numbers of weight gradient that each thread may sum up for itself


def choose(window: Window, shape: tuple[int, ...], filters: int, packed: bool = False) -> int:
    """The side of Winograd's tiles, 4 or 2, for images of `shape` (N, H, W, C), or 0 for direct convolution.

    `packed` says that the kernels are brought into form once for many batches, which then costs nothing.
    """
    if window.size != (3, 3) or window.stride != (1, 1):
        return 0
    out_h, out_w = window.out_size(*shape[1:3])
    images, channels = shape[0], shape[3]
    costs = {0: images * out_h * out_w * 9 * channels * filters}
    for m, transform in _TRANSFORM.items():
        tiles = images * -(-out_h // m) * -(-out_w // m)
        costs[m] = tiles * ((m + 2) ** 2 * channels * filters + transform * (channels + filters))
    if not packed:
        costs = {way: cost + _KERNEL[way] * channels * filters for way, cost in costs.items()}
    return min(costs, key=lambda way: costs[way])


def forward(x: Array, weight: Array, bias: Array | None, window: Window, work: Workspace) -> Array:
    """y (N, OH, OW, K) = x (N, H, W, C) convolved with weight (KH, KW, C, K), plus bias (K,)."""
    y = np.empty((len(x), *window.out_size(*x.shape[1:3]), weight.shape[3]), x.dtype)  # (N, OH, OW, K)
    offset = np.empty(0, x.dtype) if bias is None else bias  # (K,) or (0,)
    m = choose(window, x.shape, weight.shape[3])
    if m:
        _winograd(m, x, weight, offset, (window.top, window.left), y, adjoint_kernel=False, work=work)
    else:
        slide = direct.forward_slide(window, *y.shape[1:3])
        _direct(x, weight, offset, slide, y, adjoint_kernel=False, work=work)
    return y


class Packed(NamedTuple):
    """Kernels in the form that their convolution takes, made once for many batches."""

    kernels: Array  # (P matrices C, K8) for tiles of side `tile`, (taps * C * K8,) where that is 0
    bias: Array  # (K,)
    window: Window
    tile: int


def pack(weight: Array, bias: Array, window: Window, shape: tuple[int, ...], work: Workspace) -> Packed:
    """For images of `shape` (H, W, C)."""
    channels, filters = weight.shape[2:]
    m = choose(window, (1, *shape), filters, packed=True)
    columns = _up(filters, LANES)
    size = _matrices(m, channels, columns) if m else math.prod(window.size) * channels * columns
    kernels = np.empty(size, weight.dtype)
    if m:
        _transformed(m, weight, False, work, kernels)
    else:
        _packed(weight, direct.forward_slide(window, *window.out_size(*shape[:2])), False, work, kernels)
    return Packed(kernels, bias, window, m)


def forward_packed(x: Array, packed: Packed, relu: bool, work: Workspace) -> Array:
    """As `forward`."""
    window, bias = packed.window, packed.bias
    y = np.empty((len(x), *window.out_size(*x.shape[1:3]), len(bias)), x.dtype)  # (N, OH, OW, K)
    if packed.tile:
        _winograd_products(packed.tile, x, packed.kernels, bias, relu, (window.top, window.left), y, work)
    else:
        _direct_products(x, packed.kernels, bias, relu, direct.forward_slide(window, *y.shape[1:3]), y, work)
    return y


def input_gradient(dy: Array, weight: Array, window: Window, shape: tuple[int, ...], work: Workspace) -> Array:
    """dx, of `shape` (N, H, W, C), from dy (N, OH, OW, K): a convolution with the kernels turned around."""
    dx = np.empty(shape, dy.dtype)  # (N, H, W, C)
    no_bias = np.empty(0, dy.dtype)  # (0,)
    back = adjoint_window(window)
    m = choose(back, dy.shape, shape[3]) if window.stride == (1, 1) else 0
    if m:
        _winograd(m, dy, weight, no_bias, (back.top, back.left), dx, adjoint_kernel=True, work=work)
        return dx
    slides = direct.phases(window, *shape[1:3])
    if sum(math.prod(slide.results) for slide in slides) < math.prod(shape[1:3]):
        dx[...] = 0  # some pixels are seen by no window
    for slide in slides:
        _direct(dy, weight, no_bias, slide, dx, adjoint_kernel=True, work=work)
    return dx


def weight_gradient(dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace) -> None:
    """d_weight (KH, KW, C, K) becomes the derivative, from dy (N, OH, OW, K) and x (N, H, W, C)."""
    m = choose(window, x.shape, dy.shape[3])
    if m:
        _winograd_weights(m, dy, x, window, d_weight, work)
    else:
        _direct_weights(dy, x, window, d_weight, work)


def adjoint_window(window: Window) -> Window:
    """The window that takes dy (N, OH, OW, K) to dx (N, H, W, C) at stride 1, with the kernels turned around."""
    (kh, kw), top, left = window.size, window.top, window.left
    return Window(window.size, (1, 1), kh - 1 - top, kh - 1 - window.bottom, kw - 1 - left, kw - 1 - window.right)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _share(threads: int, sums: int, filters: int) -> tuple[int, int]:
    """Among how many threads to split the images, and the filters: the filters where sums are too many to double."""
    if sums > _MAX_SUMS and threads <= _up(filters, NR) // NR:
        return 1, threads
    return threads, 1


# Winograd


def _block(most: int, tiles: int, threads: int) -> int:
    """Tiles a block: no more than a thread has."""
    return min(most, _up(-(-tiles // threads), MR))


def _tile_scratch(m: int, block: int, channels: int, filters: int) -> int:
    """The numbers that a thread needs for a block of tiles."""
    planes = sum(_matrices(m, block, _up(count, LANES)) for count in (channels, filters))
    return winograd.header_size.py_func(channels, filters) + planes + NR


def _matrices(m: int, rows: int, columns: int) -> int:
    """The numbers of all P matrices (rows, columns)."""
    return (m + 2) ** 2 * winograd.plane_size.py_func(rows, columns)


def _tiles(m: int, y: Array) -> int:
    return len(y) * -(-y.shape[1] // m) * -(-y.shape[2] // m)


def _winograd(
    m: int, x: Array, weight: Array, bias: Array, padding: tuple[int, int], y: Array, *, adjoint_kernel: bool, work: Workspace
) -> None:
    u = _transformed(m, weight, adjoint_kernel, work)  # (P matrices C, K8)
    _winograd_products(m, x, u, bias, False, padding, y, work)


def _transformed(m: int, weight: Array, adjoint_kernel: bool, work: Workspace, u: Array | None = None) -> Array:
    """Kernels in the form that `_winograd_products` takes, in `u` or else in lent memory: (P matrices C, K8)."""
    filters, channels = weight.shape[2:] if adjoint_kernel else weight.shape[:1:-1]
    if u is None:
        u = work.buffer("weights", (_matrices(m, channels, _up(filters, LANES)),), weight.dtype)
    scratch = work.buffer("tiles", (work.team.threads, winograd.WEIGHT_SCRATCH), weight.dtype)  # (T, size)
    work.team.run(winograd.transform_weights, m, weight, adjoint_kernel, u, scratch)
    return u


def _winograd_products(
    m: int, x: Array, u: Array, bias: Array, relu: bool, padding: tuple[int, int], y: Array, work: Workspace
) -> None:
    threads = work.team.threads
    block = _block(_TILES, _tiles(m, y), threads)
    scratch = work.buffer("tiles", (threads, _tile_scratch(m, block, x.shape[3], y.shape[3])), x.dtype)  # (T, size)
    work.team.run(winograd.forward, m, x, u, bias, relu, y, *padding, block, scratch)


def _winograd_weights(m: int, dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace) -> None:
    channels, filters, threads = x.shape[3], dy.shape[3], work.team.threads
    size = _matrices(m, _up(channels, MR), _up(filters, LANES))
    parts = _share(threads, size, filters)
    sums = work.buffer("weights", (parts[0], size), x.dtype)  # (tile parts, P matrices C6, K8)
    most = _TILES_OF_MANY_SUMS if size > _MAX_SUMS else _TILES
    block = _block(most, _tiles(m, dy), parts[0])
    scratch = work.buffer("tiles", (threads, _tile_scratch(m, block, channels, filters)), x.dtype)  # (T, size)
    work.team.run(winograd.weight_gradient, m, x, dy, window.top, window.left, block, sums, scratch)
    work.team.run(winograd.sum_weight_gradient, m, sums, d_weight, scratch)


# Direct


def _units(slide: Slide, images: int, channels: int, item: int, threads: int) -> Units:
    """Bands that fit the cache, or several images where one has few pixels; enough of them for all threads."""
    rows, across = slide.results
    line = ((across - 1) * slide.stride[1] + slide.size[1]) * channels * item * slide.stride[0]  # bytes a result row
    if rows * across < _UNIT_PIXELS:
        together = min(-(-_UNIT_PIXELS // (rows * across)), -(-images // threads))
        return Units(max(1, together), rows)
    most = max(1, _UNIT_BYTES // line, -(-_UNIT_PIXELS // across))
    return Units(1, min(rows, most, max(1, rows * images // threads)))


def _direct(
    x: Array, weight: Array, bias: Array, slide: Slide, y: Array, *, adjoint_kernel: bool, work: Workspace
) -> None:
    packed = _packed(weight, slide, adjoint_kernel, work)  # (taps * C * K8,)
    _direct_products(x, packed, bias, False, slide, y, work)


def _packed(weight: Array, slide: Slide, adjoint_kernel: bool, work: Workspace, packed: Array | None = None) -> Array:
    """Kernels in the form that `_direct_products` takes, in `packed` or else in lent memory: (taps * C * K8,)."""
    filters, channels = weight.shape[2:] if adjoint_kernel else weight.shape[:1:-1]
    if packed is None:
        packed = work.buffer("weights", (math.prod(slide.size) * channels * _up(filters, LANES),), weight.dtype)
    work.team.run(direct.pack_weights, weight, slide.vector(Units(1, 1)), adjoint_kernel, packed)
    return packed


def _direct_products(
    x: Array, packed: Array, bias: Array, relu: bool, slide: Slide, y: Array, work: Workspace
) -> None:
    channels, threads = x.shape[3], work.team.threads
    units = _units(slide, len(x), channels, x.itemsize, threads)
    start = work.buffer("bias", (_up(y.shape[3], NR),), x.dtype)  # (K16,)
    start[...] = 0
    start[: bias.size] = bias
    bands = work.buffer("tiles", (threads, direct.band_size(slide, units, channels)), x.dtype)  # (T, size)
    places = work.buffer("places", (threads, 2, direct.unit_results(slide, units) + MR), np.int64)
    work.team.run(direct.convolve, x, packed, start, relu, y, slide.vector(units), bands, places)


def _direct_weights(dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace) -> None:
    channels, filters, threads = x.shape[3], dy.shape[3], work.team.threads
    slide = direct.forward_slide(window, *dy.shape[1:3])
    (kh, kw), columns = slide.size, _up(filters, LANES)
    size = kh * _up(kw * channels, MR) * columns
    parts = _share(threads, size, filters)
    sums = work.buffer("weights", (parts[0], size), x.dtype)  # (unit parts, KH * R6 * K8)
    units = _units(slide, len(x), channels, x.itemsize, parts[0])
    padded_dy = direct.unit_results(slide, units) * columns if columns > filters else 0
    bands = work.buffer(
        "tiles", (threads, direct.band_size(slide, units, channels) + 2 * LANES + padded_dy), x.dtype
    )  # (T, size)
    work.team.run(direct.weight_gradient, x, dy, slide.vector(units), bands, sums)
    work.team.for_size(sums.size).run(direct.sum_weight_gradient, sums, d_weight)
