"""Convolution: choose the algorithm (Winograd, direct or narrow) and its block sizes, and run it.

3x3 convolutions at stride 1 use Winograd if there are enough channels to amortise the transforms, all others a direct
algorithm: with filters in the lanes of a vector (`direct.py`), or, for few filters at stride 1, with pixels
(`narrow.py`). `choose_tile` decides by a count of multiply-adds, with measured constants (docs/performance.md), and
`is_narrow` by measured limits.

N images, H by W pixels, C channels in; OH by OW pixels, K filters out; T threads; S portions of a sum, see team.py;
KV: K rounded up to whole vectors.
"""

import math
from typing import NamedTuple

import numpy as np

from cnn.backends.base import Array, Window
from cnn.backends.cpu import direct, elementwise, narrow, winograd
from cnn.backends.cpu.direct import Block, Geometry
from cnn.backends.cpu.gemm import LONG_RUN, MR, NR, round_up
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.tiles import MAX_FILTERS, tile_taps
from cnn.backends.cpu.vector_math import KINDS
from cnn.backends.cpu.widths import NARROW, WIDE, lanes_for
from cnn.backends.cpu.workspace import Workspace

# Overheads of the algorithms in multiply-adds, by Winograd tile size m; 0 is direct convolution.
_TRANSFORM_COST = {4: 900, 2: 400}  # per tile and channel: transforming its patch
_PACKING_COST = {0: 400, 4: 1500, 2: 600}  # per channel and filter: packing or transforming its kernel
_BLOCK_TILES = 48  # Winograd tiles in a block
_BLOCK_BYTES = 192 << 10  # of a direct convolution block's padded input: fits in a core's L2
_MIN_BLOCK_PIXELS = 96  # output pixels of a block, to amortise loading the packed kernels
_SUM_COUNTS = ((1 << 16, 8), (1 << 18, 4), (1 << 19, 2))  # portions of the sum of a weight gradient of so many elements
_MIN_PORTION_PIXELS = 96  # output pixels, or Winograd tiles, of a portion: to amortise adding its sum to the others

# Narrow convolutions, as measured on Zen 3 (docs/performance.md).
_MAX_NARROW_CHANNELS = 32  # of the input
_MIN_NARROW_ROW = 14  # output pixels: shorter rows leave lanes idle
_MIN_GRADIENT_ROW, _MIN_GRADIENT_SIZE = 10, 4  # for the weights' gradient: output pixels a filter; pixels of a kernel
_GROUP_PIXELS = 200  # of dy's rows that a narrow weight gradient sums over together, to amortise loading sums

_round_up = round_up[NARROW].py_func


def choose_tile(window: Window, shape: tuple[int, ...], filters: int, packed: bool = False) -> int:
    """The Winograd tile size m, 4 or 2, for images of `shape` (N, H, W, C), or 0 for direct convolution.

    `packed`: the kernels are packed once for many batches, at no cost here.
    """
    if window.size != (3, 3) or window.stride != (1, 1):
        return 0
    out_h, out_w = window.out_size(*shape[1:3])
    images, channels = shape[0], shape[3]
    costs = {0: images * out_h * out_w * 9 * channels * filters}
    for m, transform in _TRANSFORM_COST.items():
        tiles = images * -(-out_h // m) * -(-out_w // m)
        costs[m] = tiles * ((m + 2) ** 2 * channels * filters + transform * (channels + filters))
    if not packed:
        costs = {m: cost + _PACKING_COST[m] * channels * filters for m, cost in costs.items()}
    return min(costs, key=lambda m: costs[m])


def is_narrow(window: Window, out_w: int, channels: int, filters: int) -> bool:
    """Whether a direct convolution, with rows of `out_w` output pixels, has its pixels in the lanes of vectors."""
    few = filters <= MAX_FILTERS and channels <= _MAX_NARROW_CHANNELS and window.size[1] * channels < LONG_RUN
    return few and window.stride == (1, 1) and out_w >= _MIN_NARROW_ROW


def is_narrow_gradient(window: Window, out_w: int, channels: int, filters: int) -> bool:
    """Whether the gradient w.r.t. the weights has. More filters need longer rows, and the input's planes many taps."""
    fits = is_narrow(window, out_w, channels, filters) and filters < MAX_FILTERS
    return fits and out_w >= _MIN_GRADIENT_ROW * filters and math.prod(window.size) >= _MIN_GRADIENT_SIZE


def forward(x: Array, weight: Array, bias: Array | None, window: Window, work: Workspace) -> Array:
    """y (N, OH, OW, K) = x (N, H, W, C) convolved with weight (KH, KW, C, K), plus bias (K,)."""
    m = choose_tile(window, x.shape, weight.shape[3])
    kernels, by_pixels = _forward_kernels(m, weight, window, x.shape[1:], work)
    offset = np.empty(0, x.dtype) if bias is None else bias  # (K,) or (0,)
    return forward_packed(x, Packed(kernels, offset, window, weight.shape[3], m, by_pixels), "", work)


class Packed(NamedTuple):
    """Kernels in the layout of their algorithm."""

    kernels: Array  # see `_forward_kernels`
    bias: Array  # (K,), or (0,) for none
    window: Window
    filters: int
    tile: int  # Winograd tile size m; 0 for direct convolution
    narrow: bool  # direct convolution with pixels in the lanes


def pack(weight: Array, bias: Array, window: Window, shape: tuple[int, ...], work: Workspace) -> Packed:
    """Pack the kernels (KH, KW, C, K) for images of `shape` (H, W, C)."""
    filters = weight.shape[3]
    m = choose_tile(window, (1, *shape), filters, packed=True)
    kernels, by_pixels = _forward_kernels(m, weight, window, shape, work)
    return Packed(kernels.copy(), bias, window, filters, m, by_pixels)


def forward_packed(x: Array, packed: Packed, kind: str, work: Workspace, pool: int = 1) -> Array:
    """As `forward`, with packed kernels, then the activation `kind`.

    With `pool` 2, the 2x2 maxima; for Winograd only, with ReLU or no activation.
    """
    window, bias = packed.window, packed.bias
    out_h, out_w = window.out_size(*x.shape[1:3])
    y = empty((len(x), out_h // pool, out_w // pool, packed.filters), x.dtype)  # (N, OH, OW, K)
    if packed.narrow:
        _narrow(x, packed.kernels, bias, kind, window, y, work)
        return y
    if packed.tile:
        _winograd(packed.tile, x, packed.kernels, bias, kind == "relu", (window.top, window.left), y, work, pool)
    else:
        _direct(x, packed.kernels, bias, kind == "relu", direct.forward_geometry(window, *y.shape[1:3]), y, work)
    return y if kind in ("", "relu") else elementwise.activate(kind, y, work.team, out=y)


def _forward_kernels(
    m: int, weight: Array, window: Window, shape: tuple[int, ...], work: Workspace
) -> tuple[Array, bool]:
    """The kernels (KH, KW, C, K) in the layout for images of `shape` (H, W, C), perhaps in a workspace buffer.

    (P matrices C, KV) for Winograd tiles of size m; where m is 0, (taps * C * K,) if the convolution is narrow, which
    is the second result, else (taps * C * KV,).
    """
    if m:
        return _transform_weights(m, weight, False, work), False
    out_h, out_w = window.out_size(*shape[:2])
    if is_narrow(window, out_w, shape[2], weight.shape[3]):
        return np.ascontiguousarray(weight).reshape(-1), True
    return _pack_weights(weight, direct.forward_geometry(window, out_h, out_w), False, work), False


def input_gradient(dy: Array, weight: Array, window: Window, shape: tuple[int, ...], work: Workspace) -> Array:
    """dx of `shape` (N, H, W, C) from dy (N, OH, OW, K): a convolution with the kernels rotated by 180 degrees."""
    dx = empty(shape, dy.dtype)  # (N, H, W, C)
    no_bias = np.empty(0, dy.dtype)  # (0,)
    back = adjoint_window(window)
    m = choose_tile(back, dy.shape, shape[3]) if window.stride == (1, 1) else 0
    if m:
        u = _transform_weights(m, weight, True, work)  # (P matrices K, CV)
        _winograd(m, dy, u, no_bias, False, (back.top, back.left), dx, work)
        return dx
    if is_narrow(back, shape[2], dy.shape[3], shape[3]) and window.stride == (1, 1):
        rotated = work.buffer("weights", (*window.size, dy.shape[3], shape[3]), dy.dtype)  # (KH, KW, K, C)
        rotated[...] = weight[::-1, ::-1].swapaxes(2, 3)
        _narrow(dy, rotated.reshape(-1), no_bias, "", back, dx, work)
        return dx
    phases = direct.phases(window, *shape[1:3])
    if sum(math.prod(phase.out_size) for phase in phases) < math.prod(shape[1:3]):
        dx[...] = 0  # some pixels are in no window
    for phase in phases:
        _direct(dy, _pack_weights(weight, phase, True, work), no_bias, False, phase, dx, work)
    return dx


def weight_gradient(dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace) -> None:
    """Write the gradient w.r.t. the weights to d_weight (KH, KW, C, K), from dy (N, OH, OW, K) and x (N, H, W, C)."""
    m = choose_tile(window, x.shape, dy.shape[3])
    if m:
        _winograd_weight_gradient(m, dy, x, window, d_weight, work)
    elif is_narrow_gradient(window, dy.shape[2], x.shape[3], dy.shape[3]):
        _narrow_weight_gradient(dy, x, window, d_weight, work)
    else:
        _direct_weight_gradient(dy, x, window, d_weight, work)


def adjoint_window(window: Window) -> Window:
    """The window that maps dy (N, OH, OW, K) to dx (N, H, W, C) at stride 1, with the kernels rotated."""
    (kh, kw), top, left = window.size, window.top, window.left
    return Window(window.size, (1, 1), kh - 1 - top, kh - 1 - window.bottom, kw - 1 - left, kw - 1 - window.right)


def _sum_count(size: int, pixels: int) -> int:
    """The number of portions in which a weight gradient of `size` elements is summed over pixels or tiles.

    A power of two: 2, 4 or 8 threads then seldom share a portion, of which each has to transform or copy all inputs.
    """
    count = next((count for limit, count in _SUM_COUNTS if size <= limit), 1)
    while count > 1 and count * _MIN_PORTION_PIXELS > pixels:
        count //= 2
    return count


# Winograd


def _block_tiles(tiles: int, slices: int) -> int:
    """The tiles in a block: at most those of a slice."""
    return min(_BLOCK_TILES, _round_up(-(-tiles // slices), MR))


def _tile_scratch(m: int, lanes: int, block: int, channels: int, filters: int) -> int:
    """The elements that a thread needs for a block of tiles."""
    planes = sum(_planes_size(m, block, _round_up(count, lanes)) for count in (channels, filters))
    header: int = winograd.header_size[lanes].py_func(channels, filters)
    return header + planes + int(NR[lanes])


def _planes_size(m: int, rows: int, columns: int) -> int:
    """The elements of all P matrices (rows, columns)."""
    plane: int = winograd.plane_size[NARROW].py_func(rows, columns)  # at any width
    return (m + 2) ** 2 * plane


def _tile_count(m: int, y: Array, pool: int = 1) -> int:
    return len(y) * -(-pool * y.shape[1] // m) * -(-pool * y.shape[2] // m)


def _transform_weights(m: int, weight: Array, adjoint: bool, work: Workspace) -> Array:
    """The kernels as `_winograd` takes them, in a workspace buffer: (P matrices C, KV)."""
    filters, channels = weight.shape[2:] if adjoint else weight.shape[:1:-1]
    lanes = lanes_for(filters)
    u = work.buffer("weights", (_planes_size(m, channels, _round_up(filters, lanes)),), weight.dtype)
    scratch = work.buffer("scratch", (work.team.threads, winograd.WEIGHT_SCRATCH[lanes]), weight.dtype)  # (T, size)
    work.team.run(winograd.transform_weights[lanes], m, weight, adjoint, u, scratch)
    return u


def _winograd(
    m: int, x: Array, u: Array, bias: Array, relu: bool, padding: tuple[int, int], y: Array, work: Workspace,
    pool: int = 1,
) -> None:
    threads, lanes = work.team.threads, lanes_for(y.shape[3])
    block = _block_tiles(_tile_count(m, y, pool), threads)
    size = _tile_scratch(m, lanes, block, x.shape[3], y.shape[3])
    scratch = work.buffer("scratch", (threads, size), x.dtype)  # (T, size)
    work.team.run(winograd.forward[lanes], m, x, u, bias, relu, y, pool, *padding, block, scratch)


def _winograd_weight_gradient(
    m: int, dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace
) -> None:
    channels, filters, threads = x.shape[3], dy.shape[3], work.team.threads
    lanes, tiles = lanes_for(filters), _tile_count(m, dy)
    narrow, size = (_planes_size(m, _round_up(channels, MR), _round_up(filters, each)) for each in (NARROW, lanes))
    sum_count = _sum_count(narrow, tiles)
    sums = work.buffer("weights", (sum_count, size), x.dtype)  # (S, P matrices C6, KV)
    block = _block_tiles(tiles, sum_count)
    scratch_size = _tile_scratch(m, lanes, block, channels, filters)
    scratch = work.buffer("scratch", (threads, scratch_size), x.dtype)  # (T, size)
    work.team.run(winograd.weight_gradient[lanes], m, x, dy, window.top, window.left, block, sums, scratch)
    work.team.run(winograd.sum_weight_gradient[lanes], m, sums, d_weight, scratch)


# Direct


def _choose_block(geometry: Geometry, images: int, channels: int, itemsize: int, slices: int) -> Block:
    """A band of rows that fits in cache, or several images where one has few pixels; at least one block a slice."""
    rows, across = geometry.out_size
    in_columns = (across - 1) * geometry.stride[1] + geometry.size[1]
    row_bytes = in_columns * channels * itemsize * geometry.stride[0]  # of input for each output row
    if rows * across < _MIN_BLOCK_PIXELS:
        together = min(-(-_MIN_BLOCK_PIXELS // (rows * across)), -(-images // slices))
        return Block(max(1, together), rows)
    limit = max(1, _BLOCK_BYTES // row_bytes, -(-_MIN_BLOCK_PIXELS // across))
    return Block(1, min(rows, limit, max(1, rows * images // slices)))


def _pack_weights(weight: Array, geometry: Geometry, adjoint: bool, work: Workspace) -> Array:
    """The kernels as `_direct` takes them, in a workspace buffer: (taps * C * KV,)."""
    filters, channels = weight.shape[2:] if adjoint else weight.shape[:1:-1]
    lanes = lanes_for(filters)
    size = math.prod(geometry.size) * channels * _round_up(filters, lanes)
    packed = work.buffer("weights", (size,), weight.dtype)
    work.team.run(direct.pack_weights[lanes], weight, geometry.to_array(Block(1, 1)), adjoint, packed)
    return packed


def _direct(
    x: Array, packed: Array, bias: Array, relu: bool, geometry: Geometry, y: Array, work: Workspace
) -> None:
    channels, threads, lanes = x.shape[3], work.team.threads, lanes_for(y.shape[3])
    block = _choose_block(geometry, len(x), channels, x.itemsize, threads)
    padded_bias = work.buffer("bias", (_round_up(y.shape[3], NR[lanes]),), x.dtype)  # (KN,), N: NR
    padded_bias[...] = 0
    padded_bias[: bias.size] = bias
    scratch = work.buffer("scratch", (threads, direct.padded_size(geometry, block, channels)), x.dtype)  # (T, size)
    offsets = work.buffer("offsets", (threads, 2, direct.block_outputs(geometry, block) + MR), np.int64)
    arguments = (x, packed, padded_bias, relu, y, geometry.to_array(block), scratch, offsets)
    work.team.run(direct.convolve[lanes], *arguments)


def _direct_weight_gradient(dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace) -> None:
    channels, filters, threads = x.shape[3], dy.shape[3], work.team.threads
    geometry = direct.forward_geometry(window, *dy.shape[1:3])
    (kh, kw), lanes = geometry.size, lanes_for(filters)
    columns, rows = _round_up(filters, lanes), kh * _round_up(kw * channels, MR)
    sum_count = _sum_count(rows * _round_up(filters, NARROW), math.prod(dy.shape[:3]))
    sums = work.buffer("weights", (sum_count, rows * columns), x.dtype)  # (S, KH * R6 * KV)
    block = _choose_block(geometry, len(x), channels, x.itemsize, sum_count)
    padded_dy = direct.block_outputs(geometry, block) * columns if columns > filters else 0
    scratch_size = direct.padded_size(geometry, block, channels) + 2 * lanes + padded_dy
    scratch = work.buffer("scratch", (threads, scratch_size), x.dtype)  # (T, size)
    work.team.run(direct.weight_gradient[lanes], x, dy, geometry.to_array(block), scratch, sums)
    work.team.for_size(sums.size).run(direct.sum_weight_gradient[lanes], sums, d_weight)


# Narrow


def _narrow_plan(window: Window, x: Array, out_size: tuple[int, ...], filters: int, slices: int) -> narrow.Plan:
    """Blocks that fit in cache, at least one a slice, and so small that no lane sums more than MAX_SUM pixels."""
    out_h, out_w = out_size
    plane, vectors = narrow.row_size(out_w, window.size[1], filters), -(-out_w // WIDE)
    limit = min(_BLOCK_BYTES // (plane * x.shape[3] * x.itemsize), narrow.MAX_SUM // vectors, out_h * len(x) // slices)
    rows = min(out_h, max(1, limit))
    return narrow.Plan(window.size, (window.top, window.left), rows, min(rows, -(-_GROUP_PIXELS // out_w)), plane)


def _narrow(
    x: Array, weights: Array, bias: Array, kind: str, window: Window, y: Array, work: Workspace
) -> None:
    channels, filters, threads = x.shape[3], y.shape[3], work.team.threads
    plan = _narrow_plan(window, x, y.shape[1:3], filters, threads)
    scratch = work.buffer("scratch", (threads, plan.scratch(channels, filters)), x.dtype)  # (T, size)
    first = work.buffer("bias", (filters,), x.dtype)  # (K,)
    first[...] = bias if bias.size else 0
    arguments = (x, weights, first, KINDS[kind], y, plan.numbers(), plan.offsets(channels), scratch)
    work.team.run(narrow.convolve[lanes_for(y.shape[2])], (0,) * filters, *arguments)


def _narrow_weight_gradient(dy: Array, x: Array, window: Window, d_weight: Array, work: Workspace) -> None:
    channels, filters, threads = x.shape[3], dy.shape[3], work.team.threads
    sum_count, lanes = _sum_count(d_weight.size, math.prod(dy.shape[:3])), lanes_for(dy.shape[2])
    plan = _narrow_plan(window, x, dy.shape[1:3], filters, sum_count)
    offsets = plan.offsets(channels, tile_taps(filters))  # (D,)
    sums = work.buffer("weights", (sum_count, offsets.size, filters, WIDE), x.dtype)  # (S, D, K, WIDE)
    scratch_size = plan.scratch(channels, filters) + offsets.size * filters * WIDE
    scratch = work.buffer("scratch", (threads, scratch_size), x.dtype)  # (T, size)
    work.team.run(narrow.weight_gradient[lanes], (0,) * filters, x, dy, plan.numbers(), offsets, scratch, sums)
    work.team.for_size(sums.size).run(narrow.sum_weight_gradient[NARROW], sums, d_weight)
