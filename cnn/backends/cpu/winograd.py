"""Winograd convolution, 3x3 at stride 1, in cache blocks of tiles.

A thread takes `block` tiles through all three stages before the next block: transform the input patches (V), multiply
them by the transformed kernels (M), transform to outputs; so the P = 36 (or 16) matrices of a block stay in cache.
`transforms.py` has the mathematics, `gemm.py` the micro-kernels.

N images, H by W pixels, C channels in; OH by OW pixels, K channels out; m by m outputs and n by n points a tile,
n = m + 2; P = n * n; B tiles a block; CV, KV: channels rounded up to whole vectors; T threads.
"""

import numpy as np

from cnn.backends.cpu.gemm import (
    MR,
    NR,
    column_range,
    gemm,
    outer_product_sum,
    portion_columns,
    portion_range,
    round_up,
)
from cnn.backends.cpu.simd import (
    advance,
    full_like,
    inner,
    int64,
    load,
    load_masked,
    load_scalar,
    maximum,
    pointer,
    select_greater,
    store,
    store_masked,
    store_scalar,
    store_up_to,
)
from cnn.backends.cpu.team import kernel
from cnn.backends.cpu.transforms import INPUT, OUTPUT, OUTPUT_ADJOINT, WEIGHT, WEIGHT_ADJOINT, transform_2d
from cnn.backends.cpu.widths import LANES, ByLanes

_CHANNEL_BLOCK = 16  # channels whose kernels are transformed at a time
WEIGHT_SCRATCH = ByLanes(lambda lanes: 72 * lanes + _CHANNEL_BLOCK * 9 * NR[lanes])  # to transform kernels, per thread


@inner
def plane_size(rows, columns):  # type: ignore[no-untyped-def]
    """The distance between the P matrices (rows, columns): one cache line more than a multiple of 4 KiB.

    At a multiple, a tile's P values would compete for the same cache sets.
    """
    return (rows * columns + 1023) // 1024 * 1024 + 16


@inner
def header_size(channels, filters):  # type: ignore[no-untyped-def]
    """The elements before a thread's matrices: a half-transformed tile, and a patch of all channels."""
    return 36 * LANES + 36 * ((max(channels, filters) + LANES - 1) // LANES * LANES)  # called from Python too


@inner
def _copy_patch(src, height, width, channels, i0, j0, size, patch, patch_row):  # type: ignore[no-untyped-def]
    """patch (size, size, patch_row) = the pixels of an image from (i0, j0), zero outside it and beyond its channels."""
    zero = full_like(src, 0)
    full = channels // LANES * LANES
    for i in range(size):
        for j in range(size):
            dst = advance(patch, (i * size + j) * patch_row)
            if 0 <= i0 + i < height and 0 <= j0 + j < width:
                pixel = advance(src, ((i0 + i) * width + j0 + j) * channels)
                for channel in range(0, full, LANES):
                    store(dst, channel, load(pixel, channel))
                if full < channels:
                    store(dst, full, load_masked(pixel, full, channels - full))
            else:
                for channel in range(0, patch_row, LANES):
                    store(dst, channel, zero)


@inner
def _transform_inputs(kind, m, src, sizes, top, left, first, stop, first_channel, stop_channel, dst, row, scratch):  # type: ignore[no-untyped-def]
    """Transform channels [first_channel, stop_channel) of tiles [first, stop) to rows of matrices (P, B, row).

    src: images of `sizes` (H, W, C, tiles down, tiles across), padded by `top` and `left`. INPUT reads n by n patches,
    OUTPUT_ADJOINT m by m ones.
    """
    height, width, channels, down, across = sizes
    n = m + 2
    size = n if kind == INPUT else m
    plane = plane_size(round_up(stop - first, MR), row)
    patch, patch_row = advance(scratch, 36 * LANES), round_up(channels, LANES)
    for tile in range(first, stop):
        n_image, rest = tile // (down * across), tile % (down * across)
        i, j = rest // across * m - top, rest % across * m - left
        image = advance(src, n_image * height * width * channels)
        inside = i >= 0 and j >= 0 and i + size <= height and j + size <= width
        if inside and patch_row == channels:
            corner = advance(image, (i * width + j) * channels)
            row_step, step = width * channels, channels
        else:
            _copy_patch(image, height, width, channels, i, j, size, patch, patch_row)
            corner, row_step, step = patch, size * patch_row, patch_row
        for channel in range(first_channel, stop_channel, LANES):
            out = advance(dst, (tile - first) * row + channel - first_channel)
            transform_2d(kind, m, advance(corner, channel), row_step, step, out, n * plane, plane, scratch)


@inner
def _transform_outputs(m, src, row, rows, sizes, first, stop, y, pool, bias, relu, scratch):  # type: ignore[no-untyped-def]
    """Transform M (P, rows, row) to the outputs y of tiles [first, stop), with bias (K,) or (0,) and ReLU.

    sizes: OH, OW, K, tiles down, tiles across. With `pool` 2, y is their 2x2 maxima, and OH and OW are even.
    """
    height, width, channels, down, across = sizes
    plane, lane, n = plane_size(rows, row), int64(LANES), m + 2
    patch, bias_src = advance(scratch, 36 * LANES), pointer(bias, int64(0))
    linear = bias.size == 0 and not relu and pool == 1
    y_width = width // pool
    for tile in range(first, stop):
        n_image, rest = tile // (down * across), tile % (down * across)
        i0, j0 = rest // across * m, rest % across * m
        tile_h, tile_w = min(m, height - i0), min(m, width - j0)
        corner = advance(y, ((n_image * height + i0) // pool * y_width + j0 // pool) * channels)
        for channel in range(0, channels, LANES):
            matrix, count = advance(src, (tile - first) * row + channel), min(LANES, channels - channel)
            if linear and tile_h == m and tile_w == m and count == LANES:
                dst, dst_row_step = advance(corner, channel), width * channels
                transform_2d(int64(OUTPUT), m, matrix, n * plane, plane, dst, dst_row_step, channels, scratch)
                continue
            transform_2d(int64(OUTPUT), m, matrix, n * plane, plane, patch, m * lane, lane, scratch)
            offset, lower_bound = full_like(y, 0), full_like(y, 0 if relu else -np.inf)
            if bias.size > 0:
                offset = load_masked(bias_src, channel, count)
            for i in range(tile_h // pool):
                for j in range(tile_w // pool):
                    at = advance(patch, pool * (i * m + j) * lane)
                    value = load(at, 0)
                    if pool == 2:
                        lower = _largest(load(at, m * lane), load(at, (m + 1) * lane))
                        value = _largest(_largest(value, load(at, lane)), lower)
                    value = maximum(value + offset, lower_bound)
                    store_up_to(corner, (i * y_width + j) * channels + channel, value, count)


@inner
def _largest(a, b):  # type: ignore[no-untyped-def]
    """The larger of `a` and `b` in each lane; NaN where either is."""
    return select_greater(b, a, b, a)


@kernel
def transform_weights(t, threads, m, weight, adjoint, u, scratch):  # type: ignore[no-untyped-def]
    """Slice t of u, the transformed kernels: P matrices (C, KV) in packed panels, see `gemm.py`.

    weight: kernels (3, 3, C, K), or (3, 3, K, C) for the adjoint, which rotates them by 180 degrees. scratch (T, size).
    """
    channels, filters = (weight.shape[3], weight.shape[2]) if adjoint else (weight.shape[2], weight.shape[3])
    columns, lane, n = round_up(filters, LANES), int64(LANES), m + 2
    plane = plane_size(channels, columns)
    local = pointer(scratch, t * scratch.shape[1])
    packed, taps = advance(local, 36 * LANES), advance(local, 72 * LANES)
    src, dst = pointer(weight, int64(0)), pointer(u, int64(0))
    first_k, stop_k = column_range(t, threads, columns)
    for k in range(first_k, stop_k, NR):
        width = min(NR, columns - k)
        for first in range(0, channels, _CHANNEL_BLOCK):
            stop = min(first + _CHANNEL_BLOCK, channels)
            _copy_taps(src, channels, filters, k, min(width, filters - k), first, stop, adjoint, taps)
            for c in range(first, stop):
                for j in range(0, width, LANES):
                    patch = advance(taps, (c - first) * 9 * NR + j)
                    transform_2d(int64(WEIGHT), m, patch, 3 * int64(NR), int64(NR), packed, n * lane, lane, local)
                    for p in range(n * n):
                        store(dst, p * plane + k * channels + c * width + j, load(packed, p * LANES))


@inner
def _copy_taps(weight, channels, filters, k, count, first, stop, adjoint, taps):  # type: ignore[no-untyped-def]
    """taps (stop - first, 9, NR) = the kernels from channels [first, stop) to filters [k, k + count).

    The adjoint's kernels are (3, 3, filters, channels) in memory, read along their rows.
    """
    if adjoint:
        for tap in range(9):
            for i in range(count):
                row = advance(weight, ((8 - tap) * filters + k + i) * channels)
                for c in range(first, stop):
                    store_scalar(taps, ((c - first) * 9 + tap) * NR + i, load_scalar(row, c))
    else:
        for c in range(first, stop):
            for tap in range(9):
                row = advance(weight, (tap * channels + c) * filters + k)
                dst = advance(taps, ((c - first) * 9 + tap) * NR)
                store(dst, 0, load_masked(row, 0, min(LANES, count)))
                if count > LANES:
                    store(dst, LANES, load_masked(row, LANES, count - LANES))


@kernel
def forward(t, threads, m, x, u, bias, relu, y, pool, top, left, block, scratch):  # type: ignore[no-untyped-def]
    """Slice t of y (N, OH, OW, K) = x (N, H, W, C) convolved with the transformed kernels u, + bias, then ReLU.

    With `pool` 2, y is the 2x2 maxima of that; an odd last row or column is in none. bias (K,) or (0,); blocks of
    `block` tiles; scratch (T, size) is the threads' own.
    """
    images, height, width, channels = x.shape
    out_h, out_w, filters = pool * y.shape[1], pool * y.shape[2], y.shape[3]
    down, across = (out_h + m - 1) // m, (out_w + m - 1) // m
    tiles, points = images * down * across, (m + 2) * (m + 2)
    columns, v_row = round_up(filters, LANES), round_up(channels, LANES)
    local = pointer(scratch, t * scratch.shape[1])
    v = advance(local, header_size(channels, filters))
    products = advance(v, points * plane_size(block, v_row))
    zeros = advance(products, points * plane_size(block, columns))
    src, dst = pointer(x, int64(0)), pointer(y, int64(0))
    for j in range(0, NR, LANES):
        store(zeros, j, full_like(zeros, 0))
    last = tiles * (t + 1) // threads
    for first in range(tiles * t // threads, last, block):
        stop = min(first + block, last)
        rows = round_up(stop - first, MR)
        sizes = (height, width, channels, down, across)
        _transform_inputs(int64(INPUT), m, src, sizes, top, left, first, stop, int64(0), channels, v, v_row, local)
        for p in range(points):
            a, c = advance(v, p * plane_size(rows, v_row)), advance(products, p * plane_size(rows, columns))
            gemm(a, v_row, pointer(u, p * plane_size(channels, columns)), rows, channels, columns, c, zeros)
        sizes = (out_h, out_w, filters, down, across)
        _transform_outputs(m, products, columns, rows, sizes, first, stop, dst, pool, bias, relu, local)


@kernel
def weight_gradient(t, threads, m, x, dy, top, left, block, sums, scratch):  # type: ignore[no-untyped-def]
    """sums (S, P matrices C6, KV) = (B^T x B) (A dy A^T), sums[s] over portion s of the tiles; C6: C rounded up to MR.

    Thread t computes a run of the portions, of the first and the last perhaps only some filters. scratch (T, size) is
    the threads' own.
    """
    images, height, width, channels = x.shape
    out_h, out_w, filters = dy.shape[1:]
    down, across = (out_h + m - 1) // m, (out_w + m - 1) // m
    tiles, points = images * down * across, (m + 2) * (m + 2)
    columns, v_row, c_rows = round_up(filters, LANES), round_up(channels, LANES), round_up(channels, MR)
    portions = sums.shape[0]
    local = pointer(scratch, t * scratch.shape[1])
    v = advance(local, header_size(channels, filters))
    d = advance(v, points * plane_size(block, v_row))
    zero, none = full_like(local, 0), int64(0)
    first_s, stop_s = portion_range(t, threads, portions, columns)
    for s in range(first_s, stop_s):
        first_k, stop_k = portion_columns(t, threads, portions, columns, s)
        row = stop_k - first_k
        total = pointer(sums, s * sums.shape[1])
        for p in range(points):
            for c in range(c_rows):
                for k in range(first_k, stop_k, LANES):
                    store(total, p * plane_size(c_rows, columns) + c * columns + k, zero)
        last = tiles * (s + 1) // portions
        for first in range(tiles * s // portions, last, block):
            stop = min(first + block, last)
            rows = round_up(stop - first, MR)
            sizes = (height, width, channels, down, across)
            _transform_inputs(
                int64(INPUT), m, pointer(x, none), sizes, top, left, first, stop, none, channels, v, v_row, local
            )
            sizes = (out_h, out_w, filters, down, across)
            _transform_inputs(
                int64(OUTPUT_ADJOINT), m, pointer(dy, none), sizes, none, none, first, stop, first_k, stop_k, d, row,
                local,
            )  # fmt: skip
            for p in range(points):
                a, b = advance(v, p * plane_size(rows, v_row)), advance(d, p * plane_size(rows, row))
                c = advance(total, p * plane_size(c_rows, columns) + first_k)
                grid, a_strides, b_strides = (int64(1), int64(1), stop - first), (none, none, v_row), (none, none, row)
                outer_product_sum(a, a_strides, channels, b, b_strides, row, grid, c, columns)


@kernel
def sum_weight_gradient(t, threads, m, sums, d_weight, scratch):  # type: ignore[no-untyped-def]
    """Slice t of d_weight (3, 3, C, K) = G^T (sums (S, ...) added up) G; scratch (T, size)."""
    lane, n = int64(LANES), m + 2
    channels, filters = d_weight.shape[2:]
    columns, c_rows = round_up(filters, LANES), round_up(channels, MR)
    local = pointer(scratch, t * scratch.shape[1])
    packed, patch = advance(local, 36 * LANES), advance(local, 72 * LANES)
    dst = pointer(d_weight, int64(0))
    for c in range(channels * t // threads, channels * (t + 1) // threads):
        for k in range(0, filters, LANES):
            for p in range(n * n):
                at = p * plane_size(c_rows, columns) + c * columns + k
                total = load(pointer(sums, at), int64(0))
                for s in range(1, sums.shape[0]):
                    total = total + load(pointer(sums, s * sums.shape[1] + at), int64(0))
                store(packed, p * LANES, total)
            transform_2d(int64(WEIGHT_ADJOINT), m, packed, n * lane, lane, patch, 3 * lane, lane, local)
            count = min(LANES, filters - k)
            for tap in range(9):
                at = (tap * channels + c) * filters + k
                store_masked(dst, at, load(patch, tap * LANES), count)
