"""Direct convolution of any size and stride, without im2col: the micro-kernel reads the image itself.

With channels last, a window's row is KW * C contiguous elements, so that a tile of MR output pixels by NR filters sums
over KH such runs, read in place or from a padded copy of the input.

The gradient w.r.t. the input uses the same kernel. At stride s, every s-th pixel of dx (a *phase*) sees the same taps,
so that each phase is a stride-1 convolution of dy with its own subset of the rotated kernels (`phases`).

A *block* of work is a band of output rows of one image, or several small images. N images, H by W pixels, C channels
in; OH by OW pixels, K channels out; KV: K rounded up to whole vectors; T threads.
"""

from typing import NamedTuple

import numpy as np

from cnn.backends.base import Window
from cnn.backends.cpu.gemm import MR, NR, micro_kernel, outer_product_sum, portion_columns, portion_range, round_up
from cnn.backends.cpu.simd import (
    advance,
    copy,
    full_like,
    inner,
    int64,
    load,
    load_masked,
    load_scalar,
    pointer,
    store,
    store_masked,
    store_scalar,
)
from cnn.backends.cpu.team import kernel
from cnn.backends.cpu.widths import LANES, WIDE


class Geometry(NamedTuple):
    """A convolution's windows over the input, its pixels in the output, and its taps in the kernels; (down, across)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # above and on the left; may be negative
    out_size: tuple[int, int]  # pixels that are computed
    out_offset: tuple[int, int]  # the first one's position in the output
    out_stride: tuple[int, int]
    first_tap: tuple[int, int]  # the kernels' tap that is the window's first
    tap_stride: tuple[int, int]

    def to_array(self, block: "Block") -> np.ndarray:
        """The arguments of the kernels: (18,)."""
        return np.array([number for pair in self for number in pair] + list(block), np.int64)


class Block(NamedTuple):
    """The size of a block of work: `rows` output rows of one image, or all rows of `images` images."""

    images: int
    rows: int


def forward_geometry(window: Window, out_h: int, out_w: int) -> Geometry:
    """The forward convolution."""
    padding = (window.top, window.left)
    return Geometry(window.size, window.stride, padding, (out_h, out_w), (0, 0), (1, 1), (0, 0), (1, 1))


def phases(window: Window, height: int, width: int) -> list[Geometry]:
    """The adjoint of `window` on images (height, width): convolutions of dy that each compute one phase of dx."""
    found = []
    for row in range(min(window.stride[0], height)):
        for column in range(min(window.stride[1], width)):
            size, padding, first_tap = [], [], []
            for axis, position, before in ((0, row, window.top), (1, column, window.left)):
                kernel, stride = window.size[axis], window.stride[axis]
                first = (position + before) % stride  # the first tap that sees this phase
                count = max(0, -(-(kernel - first) // stride))
                size.append(count)
                padding.append(count - 1 - (position + before - first) // stride)
                first_tap.append(first + stride * (count - 1))
            if min(size) > 0:
                out_size = (-(-(height - row) // window.stride[0]), -(-(width - column) // window.stride[1]))
                found.append(
                    Geometry(
                        (size[0], size[1]), (1, 1), (padding[0], padding[1]), out_size, (row, column), window.stride,
                        (first_tap[0], first_tap[1]), (-window.stride[0], -window.stride[1]),
                    )
                )  # fmt: skip
    return found


def padded_size(geometry: Geometry, block: Block, channels: int) -> int:
    """The elements of a block's input with its padding, and two vectors that are read beyond it."""
    (kh, kw), (down, right) = geometry.size, geometry.stride
    rows, columns = (block.rows - 1) * down + kh, (geometry.out_size[1] - 1) * right + kw
    return round_up[WIDE].py_func(block.images * rows * columns * channels, WIDE) + 2 * WIDE


def block_outputs(geometry: Geometry, block: Block) -> int:
    """The maximal number of output pixels of a block."""
    return block.images * block.rows * geometry.out_size[1]


@inner
def _from_array(g):  # type: ignore[no-untyped-def]
    """The inverse of `Geometry.to_array`."""
    geometry = Geometry(
        (g[0], g[1]), (g[2], g[3]), (g[4], g[5]), (g[6], g[7]), (g[8], g[9]), (g[10], g[11]), (g[12], g[13]),
        (g[14], g[15]),
    )  # fmt: skip
    return geometry, Block(g[16], g[17])


@inner
def clear(dst, count):  # type: ignore[no-untyped-def]
    """dst[:count] = 0."""
    zero, full = full_like(dst, 0), count // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, i, zero)
    if full < count:
        store_masked(dst, full, zero, count - full)


@inner
def _copy_padded(x, height, width, channels, i0, j0, rows, columns, dst):  # type: ignore[no-untyped-def]
    """dst (rows, columns, channels) = the pixels of an image from (i0, j0), zero outside it."""
    before = min(max(0, -j0), columns)
    inside = max(0, min(columns, width - j0) - before)
    for i in range(rows):
        row = advance(dst, i * columns * channels)
        if 0 <= i0 + i < height:
            clear(row, before * channels)
            src = advance(x, ((i0 + i) * width + j0 + before) * channels)
            copy(src, advance(row, before * channels), inside * channels)
            after = before + inside
            clear(advance(row, after * channels), (columns - after) * channels)
        else:
            clear(row, columns * channels)


@kernel
def pack_weights(t, threads, weight, geometry_array, adjoint, packed):  # type: ignore[no-untyped-def]
    """Slice t of packed (taps * C * KV,): the geometry's taps of kernels (KH, KW, C, K) in panels, see `gemm.py`.

    For the adjoint the kernels map dy to dx: (taps * K * CV,).
    """
    geometry, _ = _from_array(geometry_array)
    channels, filters = (weight.shape[3], weight.shape[2]) if adjoint else (weight.shape[2], weight.shape[3])
    columns, src, dst = round_up(filters, LANES), pointer(weight, int64(0)), pointer(packed, int64(0))
    down, across = geometry.size
    depth, vectors = down * across * channels, columns // LANES
    c_stride, k_stride = (1, channels) if adjoint else (filters, 1)  # in memory, K being the last axis of `weight`
    for v in range(vectors * t // threads, vectors * (t + 1) // threads):
        first = v * LANES
        panel = first // NR * NR
        width, count = min(NR, columns - panel), min(LANES, filters - first)
        for tap in range(down * across):
            a = geometry.first_tap[0] + tap // across * geometry.tap_stride[0]
            b = geometry.first_tap[1] + tap % across * geometry.tap_stride[1]
            kernel = advance(src, (a * weight.shape[1] + b) * channels * filters + first * k_stride)
            for c in range(channels):
                at = panel * depth + (tap * channels + c) * width + first - panel
                store(dst, at, full_like(dst, 0))
                for lane in range(count):
                    store_scalar(dst, at + lane, load_scalar(kernel, c * c_stride + lane * k_stride))


@inner
def _list_offsets(counts, x_strides, x_at, y_strides, y_at):  # type: ignore[no-untyped-def]
    """The offsets in x and y of each pixel of a grid (images, rows, columns); the last repeated to fill a tile."""
    done = 0
    for g in range(counts[0]):
        for i in range(counts[1]):
            for j in range(counts[2]):
                store_scalar(x_at, done, g * x_strides[0] + i * x_strides[1] + j * x_strides[2])
                store_scalar(y_at, done, g * y_strides[0] + i * y_strides[1] + j * y_strides[2])
                done += 1
    for more in range(done, done + MR):
        store_scalar(x_at, more, load_scalar(x_at, done - 1))
        store_scalar(y_at, more, load_scalar(y_at, done - 1))


@inner
def _row_pointers(start, offsets, first):  # type: ignore[no-untyped-def]
    """Pointers to the MR pixels at offsets[first], offsets[first + 1], ..."""
    return (
        advance(start, load_scalar(offsets, first)), advance(start, load_scalar(offsets, first + 1)),
        advance(start, load_scalar(offsets, first + 2)), advance(start, load_scalar(offsets, first + 3)),
        advance(start, load_scalar(offsets, first + 4)), advance(start, load_scalar(offsets, first + 5)),
    )  # fmt: skip


@inner
def _multiply(x, x_at, row_step, kh, run, packed, columns, y, y_at, total, filters, contiguous, bias, relu):  # type: ignore[no-untyped-def]
    """`total` pixels of y = the windows of x times the packed kernels, with bias and ReLU.

    If the pixels are `contiguous`, whole vectors are written where that stays inside the block: what exceeds one pixel
    is overwritten by the next. On some processors a masked store costs as much as ten FMAs.
    """
    for k in range(0, columns, NR):
        panel, y_column, init = advance(packed, k * kh * run), advance(y, k), advance(bias, k)
        for q in range(0, total, MR):
            count = min(NR, filters - k)
            if contiguous and columns <= NR and (q + MR - 1) * filters + columns <= total * filters:
                count = columns
            a0, a1, a2, a3, a4, a5 = _row_pointers(x, x_at, q)
            c0, c1, c2, c3, c4, c5 = _row_pointers(y_column, y_at, q)
            micro_kernel(
                a0, a1, a2, a3, a4, a5, row_step, kh, run, panel, c0, c1, c2, c3, c4, c5, count, init, int64(0), relu
            )


@inner
def _block_bounds(index, bands, block, images, rows):  # type: ignore[no-untyped-def]
    """Block `index` of a convolution with `bands` blocks an image: (first image, images, first row, rows)."""
    image, row = index // bands * block.images, index % bands * block.rows
    return image, min(block.images, images - image), row, min(block.rows, rows - row)


@inner
def _block_input(x, sizes, image, count, i0, j0, rows, columns, in_place, scratch):  # type: ignore[no-untyped-def]
    """Pointer to a block's input: `rows` by `columns` pixels from (i0, j0), of `count` images; its row and image step.

    x (sizes: H, W, C) itself if none is padding and `in_place` allows it, else a padded copy in `scratch`.
    """
    height, width, channels = sizes
    inside = i0 >= 0 and i0 + rows <= height and j0 >= 0 and j0 + columns <= width
    if inside and in_place:
        corner = advance(x, ((image * height + i0) * width + j0) * channels)
        return corner, width * channels, height * width * channels
    row_step = columns * channels
    for g in range(count):
        src, dst = advance(x, (image + g) * height * width * channels), advance(scratch, g * rows * row_step)
        _copy_padded(src, height, width, channels, i0, j0, rows, columns, dst)
    return scratch, row_step, rows * row_step


@kernel
def convolve(t, threads, x, packed, bias, relu, y, geometry_array, scratch, offsets):  # type: ignore[no-untyped-def]
    """Slice t of the geometry's pixels of y (N, OH, OW, K), from x (N, H, W, C), with bias and ReLU.

    bias (KN,), K rounded up to NR; scratch (T, size) and offsets (T, 2, block outputs + MR) are the threads' own.
    """
    geometry, block = _from_array(geometry_array)
    images, height, width, channels = x.shape
    out_h, out_w, filters = y.shape[1:]
    (kh, kw), (down, right) = geometry.size, geometry.stride
    out_rows, out_columns = geometry.out_size
    bands = (out_rows + block.rows - 1) // block.rows
    blocks = (images + block.images - 1) // block.images * bands
    in_columns = (out_columns - 1) * right + kw
    src, dst, local = pointer(x, int64(0)), pointer(y, int64(0)), pointer(scratch, t * scratch.shape[1])
    x_at, y_at = pointer(offsets, 2 * t * offsets.shape[2]), pointer(offsets, (2 * t + 1) * offsets.shape[2])
    y_strides = (out_h * out_w * filters, geometry.out_stride[0] * out_w * filters, geometry.out_stride[1] * filters)
    contiguous = out_rows == out_h and out_columns == out_w
    for index in range(blocks * t // threads, blocks * (t + 1) // threads):
        image, count, row, rows = _block_bounds(index, bands, block, images, out_rows)
        in_rows = (rows - 1) * down + kh
        i0, j0 = row * down - geometry.padding[0], -geometry.padding[1]
        start, row_step, image_step = _block_input(
            src, (height, width, channels), image, count, i0, j0, in_rows, in_columns, kh > 0, local
        )
        x_strides = (image_step, down * row_step, right * channels)
        _list_offsets((count, rows, out_columns), x_strides, x_at, y_strides, y_at)
        i, j = row * geometry.out_stride[0] + geometry.out_offset[0], geometry.out_offset[1]
        out = advance(dst, ((image * out_h + i) * out_w + j) * filters)
        _multiply(
            start, x_at, row_step, kh, kw * channels, pointer(packed, int64(0)), round_up(filters, LANES), out, y_at,
            count * rows * out_columns, filters, contiguous, pointer(bias, int64(0)), relu,
        )  # fmt: skip


@kernel
def weight_gradient(t, threads, x, dy, geometry_array, scratch, sums):  # type: ignore[no-untyped-def]
    """sums (S, KH * R6 * KV) = windows times dy, sums[s] over portion s of the blocks; R6: KW * C rounded up to MR.

    Thread t computes a run of the portions, of the first and the last perhaps only some filters. scratch (T, size) is
    the threads' own.
    """
    geometry, block = _from_array(geometry_array)
    images, height, width, channels = x.shape
    filters = dy.shape[3]
    (kh, kw), (down, right) = geometry.size, geometry.stride
    out_rows, out_columns = geometry.out_size
    columns, run = round_up(filters, LANES), kw * channels
    run_rows = round_up(run, MR)
    bands = (out_rows + block.rows - 1) // block.rows
    blocks = (images + block.images - 1) // block.images * bands
    portions = sums.shape[0]
    src, local = pointer(x, int64(0)), pointer(scratch, t * scratch.shape[1])
    first_s, stop_s = portion_range(t, threads, portions, columns)
    for s in range(first_s, stop_s):
        first_k, stop_k = portion_columns(t, threads, portions, columns, s)
        total = pointer(sums, s * sums.shape[1])
        for row in range(kh * run_rows):
            clear(advance(total, row * columns + first_k), stop_k - first_k)
        for index in range(blocks * s // portions, blocks * (s + 1) // portions):
            image, count, row, rows = _block_bounds(index, bands, block, images, out_rows)
            in_rows, in_columns = (rows - 1) * down + kh, (out_columns - 1) * right + kw
            i0, j0 = row * down - geometry.padding[0], -geometry.padding[1]
            # The micro-kernel reads up to 5 elements beyond the input, and LANES - 1 beyond dy: not in place at an
            # array's end.
            end = (((image + count - 1) * height + i0 + in_rows - 1) * width + j0 + in_columns) * channels
            in_place, sizes = end + MR <= x.size, (height, width, channels)
            start, row_step, image_step = _block_input(
                src, sizes, image, count, i0, j0, in_rows, in_columns, in_place, local
            )
            end = (image + count - 1) * out_rows + row + rows  # in rows of dy
            near_end = dy.size - end * out_columns * filters < LANES
            dy_start = pointer(dy, (image * out_rows + row) * out_columns * filters)
            dy_strides = (out_rows * out_columns * filters, out_columns * filters, filters)
            if near_end and columns > filters:
                padded = advance(local, count * in_rows * in_columns * channels + 2 * WIDE)
                for g in range(count):
                    for p in range(rows * out_columns):
                        target = advance(padded, (g * rows * out_columns + p) * columns)
                        for k in range(0, columns, LANES):
                            pixel = advance(dy_start, g * dy_strides[0] + p * filters)
                            store(target, k, load_masked(pixel, k, min(LANES, filters - k)))
                dy_start, dy_strides = padded, (rows * out_columns * columns, out_columns * columns, columns)
            x_strides = (image_step, down * row_step, right * channels)
            grid, dy_start = (count, rows, out_columns), advance(dy_start, first_k)
            for a in range(kh):
                window, dst = advance(start, a * row_step), advance(total, a * run_rows * columns + first_k)
                outer_product_sum(window, x_strides, run, dy_start, dy_strides, stop_k - first_k, grid, dst, columns)


@kernel
def sum_weight_gradient(t, threads, sums, d_weight):  # type: ignore[no-untyped-def]
    """Slice t of d_weight (KH, KW, C, K) = sums (S, KH * R6 * KV), added up in order."""
    kh, kw, channels, filters = d_weight.shape
    columns, run_rows = round_up(filters, LANES), round_up(kw * channels, MR)
    run = kw * channels
    for row in range(kh * run * t // threads, kh * run * (t + 1) // threads):
        a, r = row // run, row % run
        dst = pointer(d_weight, row * filters)
        for k in range(0, filters, LANES):
            count = min(LANES, filters - k)
            value = full_like(dst, 0)
            for s in range(sums.shape[0]):
                value = value + load(pointer(sums, s * sums.shape[1]), (a * run_rows + r) * columns + k)
            store_masked(dst, k, value, count)
