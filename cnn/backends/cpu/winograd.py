"""3x3 convolution at stride 1 by Winograd's transforms, in blocks of tiles that stay in cache.

A thread takes `block` tiles through all three stages before it goes to the next: their patches transformed (V),
multiplied by the transformed kernels point by point (M), and transformed to outputs. The tables of 36 (or 16)
matrices never leave the cache. `transforms.py` has the mathematics, `gemm.py` the inner loops.

N images, H by W pixels, C channels in, OH by OW pixels, K channels out; m by m outputs and n by n points a tile,
n = m + 2; P = n * n; B tiles a block; C8, K8: channels rounded up to whole lanes; T threads.
"""

import numpy as np

from cnn.backends.cpu.gemm import MR, NR, gemm, outer_product_sum
from cnn.backends.cpu.simd import (
    LANES,
    advance,
    full_like,
    inner,
    int64,
    load,
    load_masked,
    load_scalar,
    maximum,
    pointer,
    round_up,
    store,
    store_masked,
    store_scalar,
    store_up_to,
)
from cnn.backends.cpu.team import kernel
from cnn.backends.cpu.transforms import INPUT, OUTPUT, OUTPUT_ADJOINT, WEIGHT, WEIGHT_ADJOINT, twice

_CHUNK = 16  # channels whose kernels are transformed at a time
WEIGHT_SCRATCH = 72 * LANES + _CHUNK * 9 * NR  # numbers that a thread needs to transform kernels


@inner
def plane_size(rows, columns):  # type: ignore[no-untyped-def]
    """How far apart the P matrices (rows, columns) lie: one cache line off a multiple of 4 KiB.

    A tile's P values would else share the few places that a cache has for one address modulo 4 KiB.
    """
    return (rows * columns + 1023) // 1024 * 1024 + 16


@inner
def header_size(channels, filters):  # type: ignore[no-untyped-def]
    """The numbers in front of a thread's matrices: one tile half transformed, and a patch of all channels."""
    return 36 * LANES + 36 * ((max(channels, filters) + LANES - 1) // LANES * LANES)


@inner
def _fetch(src, height, width, channels, line, column, size, patch, row):  # type: ignore[no-untyped-def]
    """size by size pixels of an image from (line, column) on, zero outside it: patch (size, size, row)."""
    zero = full_like(src, 0)
    full = channels // LANES * LANES
    for i in range(size):
        for j in range(size):
            dst = advance(patch, (i * size + j) * row)
            if 0 <= line + i < height and 0 <= column + j < width:
                pixel = advance(src, ((line + i) * width + column + j) * channels)
                for channel in range(0, full, LANES):
                    store(dst, channel, load(pixel, channel))
                if full < channels:
                    store(dst, full, load_masked(pixel, full, channels - full))
            else:
                for channel in range(0, row, LANES):
                    store(dst, channel, zero)


@inner
def _tiles_in(kind, m, src, sizes, top, left, first, stop, from_channel, to_channel, dst, row, scratch):  # type: ignore[no-untyped-def]
    """Transform the patches of tiles first..stop of images `source` (sizes: H, W, C, tiles down, tiles across).

    INPUT reads n by n patches (top and left: the padding), OUTPUT_ADJOINT m by m ones.
    Row t of the matrices (P, B, row) becomes tile first + t's channels from_channel..to_channel.
    """
    height, width, channels, down, across = sizes
    n = m + 2
    size = n if kind == INPUT else m
    plane = plane_size(round_up(stop - first, MR), row)
    patch, patch_row = advance(scratch, 36 * LANES), round_up(channels, LANES)
    for tile in range(first, stop):
        image, rest = tile // (down * across), tile % (down * across)
        line, column = rest // across * m - top, rest % across * m - left
        here = advance(src, image * height * width * channels)
        inside = line >= 0 and column >= 0 and line + size <= height and column + size <= width
        if inside and patch_row == channels:
            here = advance(here, (line * width + column) * channels)
            row_step, step = width * channels, channels
        else:
            _fetch(here, height, width, channels, line, column, size, patch, patch_row)
            here, row_step, step = patch, size * patch_row, patch_row
        for channel in range(from_channel, to_channel, LANES):
            target = advance(dst, (tile - first) * row + channel - from_channel)
            twice(kind, m, advance(here, channel), row_step, step, target, n * plane, plane, scratch)


@inner
def _tiles_out(m, src, row, rows, sizes, first, stop, y, bias, relu, scratch):  # type: ignore[no-untyped-def]
    """The outputs of tiles first..stop from M (P, rows, row) into y (sizes: OH, OW, K, tiles down, across).

    bias (K,) or (0,) is added and, if `relu`, nothing below zero let through on the way.
    """
    height, width, channels, down, across = sizes
    plane, lane, n = plane_size(rows, row), int64(LANES), m + 2
    patch, offsets = advance(scratch, 36 * LANES), pointer(bias, int64(0))
    plain = bias.size == 0 and not relu
    for tile in range(first, stop):
        image, rest = tile // (down * across), tile % (down * across)
        line, column = rest // across * m, rest % across * m
        lines, columns = min(m, height - line), min(m, width - column)
        base = advance(y, ((image * height + line) * width + column) * channels)
        for channel in range(0, channels, LANES):
            matrix, count = advance(src, (tile - first) * row + channel), min(LANES, channels - channel)
            if plain and lines == m and columns == m and count == LANES:
                to_row_step, to_step = width * channels, channels
                twice(int64(OUTPUT), m, matrix, n * plane, plane, advance(base, channel), to_row_step, to_step, scratch)
                continue
            twice(int64(OUTPUT), m, matrix, n * plane, plane, patch, m * lane, lane, scratch)
            offset, least = full_like(y, 0), full_like(y, 0 if relu else -np.inf)
            if bias.size > 0:
                offset = load_masked(offsets, channel, count)
            for i in range(lines):
                for j in range(columns):
                    value = maximum(load(patch, (i * m + j) * LANES) + offset, least)
                    store_up_to(base, (i * width + j) * channels + channel, value, count)


@kernel
def transform_weights(t, threads, m, weight, adjoint, u, scratch):  # type: ignore[no-untyped-def]
    """Share t of kernels (3, 3, C, K) as P matrices (C, K8) of packed columns, see `gemm.py`.

    Turned, they are those of the adjoint: kernels (3, 3, K, C) with both axes reversed. scratch (T, size).
    """
    channels, filters = (weight.shape[3], weight.shape[2]) if adjoint else (weight.shape[2], weight.shape[3])
    columns, lane, n = round_up(filters, LANES), int64(LANES), m + 2
    plane = plane_size(channels, columns)
    local = pointer(scratch, t * scratch.shape[1])
    packed, taps = advance(local, 36 * LANES), advance(local, 72 * LANES)
    src, dst = pointer(weight, int64(0)), pointer(u, int64(0))
    blocks = (columns + NR - 1) // NR
    for k in range(blocks * t // threads * NR, blocks * (t + 1) // threads * NR, NR):
        width = min(NR, columns - k)
        for first in range(0, channels, _CHUNK):
            stop = min(first + _CHUNK, channels)
            _take_taps(src, channels, filters, k, min(width, filters - k), first, stop, adjoint, taps)
            for c in range(first, stop):
                for j in range(0, width, LANES):
                    patch = advance(taps, (c - first) * 9 * NR + j)
                    twice(int64(WEIGHT), m, patch, 3 * int64(NR), int64(NR), packed, n * lane, lane, local)
                    for p in range(n * n):
                        store(dst, p * plane + k * channels + c * width + j, load(packed, p * LANES))


@inner
def _take_taps(weight, channels, filters, k, count, first, stop, adjoint, taps):  # type: ignore[no-untyped-def]
    """taps (stop - first, 9, 16): what channels first..stop give to the filters k.. (count of them).

    Turned, the kernels lie in memory as (3, 3, filters, channels) and are read along their lines.
    """
    if adjoint:
        for tap in range(9):
            for i in range(count):
                line = advance(weight, ((8 - tap) * filters + k + i) * channels)
                for c in range(first, stop):
                    store_scalar(taps, ((c - first) * 9 + tap) * NR + i, load_scalar(line, c))
    else:
        for c in range(first, stop):
            for tap in range(9):
                line = advance(weight, (tap * channels + c) * filters + k)
                dst = advance(taps, ((c - first) * 9 + tap) * NR)
                store(dst, 0, load_masked(line, 0, min(LANES, count)))
                if count > LANES:
                    store(dst, LANES, load_masked(line, LANES, count - LANES))


@kernel
def forward(t, threads, m, x, u, bias, relu, y, top, left, block, scratch):  # type: ignore[no-untyped-def]
    """Share t of y (N, OH, OW, K) = x (N, H, W, C) convolved with the transformed kernels u, + bias, then ReLU.

    bias (K,) or (0,); blocks of `block` tiles; scratch (T, size) is the threads' own.
    """
    images, height, width, channels = x.shape
    out_h, out_w, filters = y.shape[1:]
    down, across = (out_h + m - 1) // m, (out_w + m - 1) // m
    tiles, points = images * down * across, (m + 2) * (m + 2)
    columns, v_row = round_up(filters, LANES), round_up(channels, LANES)
    local = pointer(scratch, t * scratch.shape[1])
    v = advance(local, header_size(channels, filters))
    products = advance(v, points * plane_size(block, v_row))
    src, dst, zeros = pointer(x, int64(0)), pointer(y, int64(0)), advance(products, points * plane_size(block, columns))
    for j in range(0, NR, LANES):
        store(zeros, j, full_like(zeros, 0))
    last = tiles * (t + 1) // threads
    for first in range(tiles * t // threads, last, block):
        stop = min(first + block, last)
        rows = round_up(stop - first, MR)
        sizes = (height, width, channels, down, across)
        _tiles_in(int64(INPUT), m, src, sizes, top, left, first, stop, int64(0), channels, v, v_row, local)
        for p in range(points):
            a, c = advance(v, p * plane_size(rows, v_row)), advance(products, p * plane_size(rows, columns))
            gemm(a, v_row, pointer(u, p * plane_size(channels, columns)), rows, channels, columns, c, zeros)
        sizes = (out_h, out_w, filters, down, across)
        _tiles_out(m, products, columns, rows, sizes, first, stop, dst, bias, relu, local)


@kernel
def weight_gradient(t, threads, m, x, dy, top, left, block, sums, scratch):  # type: ignore[no-untyped-def]
    """sums (parts, P matrices C6, K8) become the sum over each part's tiles of (B^T x B) (A dy A^T); C6: C up to sixes.

    scratch (T, size) is the threads' own. Threads beyond the parts share them, each for its own filters.
    """
    images, height, width, channels = x.shape
    out_h, out_w, filters = dy.shape[1:]
    down, across = (out_h + m - 1) // m, (out_w + m - 1) // m
    tiles, points = images * down * across, (m + 2) * (m + 2)
    columns, v_row, c_rows = round_up(filters, LANES), round_up(channels, LANES), round_up(channels, MR)
    parts, filter_parts = sums.shape[0], threads // sums.shape[0]
    part, share = t // filter_parts, t % filter_parts
    blocks = (columns + NR - 1) // NR
    from_k = blocks * share // filter_parts * NR
    to_k = min(columns, blocks * (share + 1) // filter_parts * NR)
    row = to_k - from_k
    local = pointer(scratch, t * scratch.shape[1])
    v = advance(local, header_size(channels, filters))
    d = advance(v, points * plane_size(block, v_row))
    total = pointer(sums, part * sums.shape[1])
    zero = full_like(total, 0)
    for p in range(points):
        for line in range(c_rows):
            for k in range(from_k, to_k, LANES):
                store(total, p * plane_size(c_rows, columns) + line * columns + k, zero)
    last = tiles * (part + 1) // parts
    for first in range(tiles * part // parts, last, block):
        stop = min(first + block, last)
        rows, none = round_up(stop - first, MR), int64(0)
        sizes = (height, width, channels, down, across)
        _tiles_in(
            int64(INPUT), m, pointer(x, none), sizes, top, left, first, stop, none, channels, v, v_row, local
        )
        sizes = (out_h, out_w, filters, down, across)
        _tiles_in(
            int64(OUTPUT_ADJOINT), m, pointer(dy, none), sizes, none, none, first, stop, from_k, to_k, d, row, local
        )
        for p in range(points):
            a, b = advance(v, p * plane_size(rows, v_row)), advance(d, p * plane_size(rows, row))
            c = advance(total, p * plane_size(c_rows, columns) + from_k)
            grid, a_steps, b_steps = (int64(1), int64(1), stop - first), (none, none, v_row), (none, none, row)
            outer_product_sum(a, a_steps, channels, b, b_steps, row, grid, c, columns)


@kernel
def sum_weight_gradient(t, threads, m, sums, d_weight, scratch):  # type: ignore[no-untyped-def]
    """Share t of d_weight (3, 3, C, K) = G^T (the sum of `sums` over its parts) G; scratch (T, size)."""
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
                for part in range(1, sums.shape[0]):
                    total = total + load(pointer(sums, part * sums.shape[1] + at), int64(0))
                store(packed, p * LANES, total)
            twice(int64(WEIGHT_ADJOINT), m, packed, n * lane, lane, patch, 3 * lane, lane, local)
            count = min(LANES, filters - k)
            for tap in range(9):
                at = (tap * channels + c) * filters + k
                store_masked(dst, at, load(patch, tap * LANES), count)
