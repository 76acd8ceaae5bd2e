"""3x3 convolution at stride 1 by Winograd's transforms, in blocks of tiles that stay in cache.

A thread takes `block` tiles through all three stages before it goes to the next: their patches transformed (V),
multiplied by the transformed kernels point by point (M), and transformed to outputs. The tables of 36 (or 16)
matrices never leave the cache. `transforms.py` has the mathematics, `gemm.py` the inner loops.

N pictures, H by W pixels, C channels in, OH by OW pixels, K channels out; m by m outputs and n by n = (m + 2)^2
points a tile; P = n * n; B tiles a block; C8, K8: channels rounded up to whole lanes.
"""

from numba import njit

from cnn.backends.cpu import transforms
from cnn.backends.cpu.gemm import (
    COLUMNS,
    ROWS,
    narrow_block,
    narrow_outer_block,
    wide_block,
    wide_outer_block,
)
from cnn.backends.cpu.simd import LANES, like, load, load_first, pointer, shift, store, store_first


@njit
def round_up(number, multiple):  # type: ignore[no-untyped-def]
    return (number + multiple - 1) // multiple * multiple


@njit
def plane_size(rows, columns):  # type: ignore[no-untyped-def]
    """How far apart the P matrices (rows, columns) lie: one cache line off a multiple of 4 KiB.

    A tile's P values would else share the few places that a cache has for one address modulo 4 KiB.
    """
    return (rows * columns + 1023) // 1024 * 1024 + 16


@njit
def header_size(channels, filters):  # type: ignore[no-untyped-def]
    """The numbers in front of a thread's matrices: one tile half transformed, and a patch of all channels."""
    return 36 * LANES + 36 * ((max(channels, filters) + LANES - 1) // LANES * LANES)


@njit
def _twice_input(m, source, row_step, step, to, plane, scratch):  # type: ignore[no-untyped-def]
    """B^T x B of one patch: to[(i * n + j) * plane]."""
    n = m + 2
    for j in range(n):
        if m == 4:
            transforms.input4(shift(source, j * step), row_step, shift(scratch, j * LANES), n * LANES)
        else:
            transforms.input2(shift(source, j * step), row_step, shift(scratch, j * LANES), n * LANES)
    for i in range(n):
        if m == 4:
            transforms.input4(shift(scratch, i * n * LANES), LANES, shift(to, i * n * plane), plane)
        else:
            transforms.input2(shift(scratch, i * n * LANES), LANES, shift(to, i * n * plane), plane)


@njit
def _twice_output(m, source, plane, to, scratch):  # type: ignore[no-untyped-def]
    """A^T M A of one tile: m * m lane values, packed."""
    n = m + 2
    for j in range(n):
        if m == 4:
            transforms.output4(shift(source, j * plane), n * plane, shift(scratch, j * LANES), n * LANES)
        else:
            transforms.output2(shift(source, j * plane), n * plane, shift(scratch, j * LANES), n * LANES)
    for i in range(m):
        if m == 4:
            transforms.output4(shift(scratch, i * n * LANES), LANES, shift(to, i * m * LANES), LANES)
        else:
            transforms.output2(shift(scratch, i * n * LANES), LANES, shift(to, i * m * LANES), LANES)


@njit
def _twice_output_adjoint(m, source, row_step, step, to, plane, scratch):  # type: ignore[no-untyped-def]
    """A dy A^T of one tile: to[(i * n + j) * plane]."""
    n = m + 2
    for j in range(m):
        if m == 4:
            transforms.output_adjoint4(shift(source, j * step), row_step, shift(scratch, j * LANES), m * LANES)
        else:
            transforms.output_adjoint2(shift(source, j * step), row_step, shift(scratch, j * LANES), m * LANES)
    for i in range(n):
        if m == 4:
            transforms.output_adjoint4(shift(scratch, i * m * LANES), LANES, shift(to, i * n * plane), plane)
        else:
            transforms.output_adjoint2(shift(scratch, i * m * LANES), LANES, shift(to, i * n * plane), plane)


@njit
def _fetch(source, height, width, channels, line, column, size, patch, row):  # type: ignore[no-untyped-def]
    """size by size pixels of a picture from (line, column) on, zero outside it: patch (size, size, row)."""
    zero = like(source, 0)
    whole = channels // LANES * LANES
    for i in range(size):
        for j in range(size):
            to = shift(patch, (i * size + j) * row)
            if 0 <= line + i < height and 0 <= column + j < width:
                pixel = shift(source, ((line + i) * width + column + j) * channels)
                for channel in range(0, whole, LANES):
                    store(to, channel, load(pixel, channel))
                if whole < channels:
                    store(to, whole, load_first(pixel, whole, channels - whole))
            else:
                for channel in range(0, row, LANES):
                    store(to, channel, zero)


@njit
def _tiles_in(m, forward, source, sizes, top, left, first, stop, from_channel, to_channel, to, row, scratch):  # type: ignore[no-untyped-def]
    """Transform the patches of tiles first..stop of pictures `source` (sizes: H, W, C, tiles down, tiles across).

    `forward` reads n by n patches (top and left: the padding) through B, else m by m ones through A.
    Row t of the matrices (P, B, row) becomes tile first + t's channels from_channel..to_channel.
    """
    height, width, channels, down, across = sizes
    size = m + 2 if forward else m
    plane = plane_size(round_up(stop - first, ROWS), row)
    patch, patch_row = shift(scratch, 36 * LANES), round_up(channels, LANES)
    for tile in range(first, stop):
        picture, rest = tile // (down * across), tile % (down * across)
        line, column = rest // across * m - top, rest % across * m - left
        here = shift(source, picture * height * width * channels)
        inside = line >= 0 and column >= 0 and line + size <= height and column + size <= width
        if inside and patch_row == channels:
            here = shift(here, (line * width + column) * channels)
            row_step, step = width * channels, channels
        else:
            _fetch(here, height, width, channels, line, column, size, patch, patch_row)
            here, row_step, step = patch, size * patch_row, patch_row
        for channel in range(from_channel, to_channel, LANES):
            target = shift(to, (tile - first) * row + channel - from_channel)
            if forward:
                _twice_input(m, shift(here, channel), row_step, step, target, plane, scratch)
            else:
                _twice_output_adjoint(m, shift(here, channel), row_step, step, target, plane, scratch)


@njit
def _multiply(points, rows, channels, v, v_row, u, u_columns, first_column, columns, product, row):  # type: ignore[no-untyped-def]
    """M (P, rows, row) = V (P, rows, v_row) @ the columns first_column.. of U (P, packed): rows a multiple of 6."""
    v_plane, plane = plane_size(rows, v_row), plane_size(rows, row)
    for p in range(points):
        a, c, b = shift(v, p * v_plane), shift(product, p * plane), shift(u, p * u_columns * channels)
        for j in range(0, columns, COLUMNS):
            panel = shift(b, (first_column + j) * channels)
            for t in range(0, rows, ROWS):
                at, to = shift(a, t * v_row), shift(c, t * row + j)
                if columns - j > LANES:
                    wide_block(
                        at, shift(at, v_row), shift(at, 2 * v_row), shift(at, 3 * v_row), shift(at, 4 * v_row),
                        shift(at, 5 * v_row), 0, 1, channels, panel,
                        to, shift(to, row), shift(to, 2 * row), shift(to, 3 * row), shift(to, 4 * row),
                        shift(to, 5 * row), COLUMNS,
                    )  # fmt: skip
                else:
                    narrow_block(
                        at, shift(at, v_row), shift(at, 2 * v_row), shift(at, 3 * v_row), shift(at, 4 * v_row),
                        shift(at, 5 * v_row), 0, 1, channels, panel,
                        to, shift(to, row), shift(to, 2 * row), shift(to, 3 * row), shift(to, 4 * row),
                        shift(to, 5 * row), LANES,
                    )  # fmt: skip


@njit
def _tiles_out(m, product, row, rows, sizes, first, stop, from_channel, to_channel, y, bias, has_bias, scratch):  # type: ignore[no-untyped-def]
    """The outputs of tiles first..stop from M (P, rows, row) into y (sizes: OH, OW, K, tiles down, across)."""
    height, width, channels, down, across = sizes
    plane = plane_size(rows, row)
    patch = shift(scratch, 36 * LANES)
    for tile in range(first, stop):
        picture, rest = tile // (down * across), tile % (down * across)
        line, column = rest // across * m, rest % across * m
        lines, columns = min(m, height - line), min(m, width - column)
        base = shift(y, ((picture * height + line) * width + column) * channels)
        for channel in range(from_channel, to_channel, LANES):
            _twice_output(m, shift(product, (tile - first) * row + channel - from_channel), plane, patch, scratch)
            count = min(LANES, channels - channel)
            offset = like(y, 0)
            if has_bias:
                offset = load_first(bias, channel, count)
            for i in range(lines):
                for j in range(columns):
                    value = load(patch, (i * m + j) * LANES) + offset
                    at = (i * width + j) * channels + channel
                    if count == LANES:
                        store(base, at, value)
                    else:
                        store_first(base, at, value, count)


@njit(nogil=True, cache=True)
def transform_weights(t, threads, m, weight, turned, u):  # type: ignore[no-untyped-def]
    """Share t of kernels (3, 3, C, K) as P matrices of packed columns (P, C * K8), see `gemm.py`.

    Turned, they are those of the adjoint: kernels (3, 3, K, C) with both axes reversed. The last 1024 * threads
    numbers of u are scratch.
    """
    points = (m + 2) * (m + 2)
    channels, filters = (weight.shape[3], weight.shape[2]) if turned else (weight.shape[2], weight.shape[3])
    columns = round_up(filters, LANES)
    plane = channels * columns
    scratch_array = u[u.size - (t + 1) * 1024 :]
    scratch, patch = pointer(scratch_array, 0), pointer(scratch_array, 36 * LANES)
    packed = pointer(scratch_array, 45 * LANES)
    source, to = pointer(weight, 0), pointer(u, 0)
    groups = columns // LANES
    for group in range(groups * t // threads, groups * (t + 1) // threads):
        k = group * LANES
        count = min(LANES, filters - k)
        # Blocks of 16 columns, the last one narrow where only 8 are left.
        block = k // COLUMNS * COLUMNS
        block_width = min(COLUMNS, columns - block)
        for c in range(channels):
            for tap in range(9):
                if turned:
                    for lane in range(count):
                        scratch_array[36 * LANES + tap * LANES + lane] = weight[2 - tap // 3, 2 - tap % 3, k + lane, c]
                else:
                    store(patch, tap * LANES, load_first(source, (tap * channels + c) * filters + k, count))
            _twice_weight(m, patch, packed, scratch)
            for p in range(points):
                at = p * plane + block * channels + c * block_width + k - block
                store(to, at, load(packed, p * LANES))


@njit
def _twice_weight(m, patch, packed, scratch):  # type: ignore[no-untyped-def]
    """G w G^T: 9 lane values to n * n."""
    n = m + 2
    for b in range(3):
        if m == 4:
            transforms.weight4(shift(patch, b * LANES), 3 * LANES, shift(scratch, b * LANES), 3 * LANES)
        else:
            transforms.weight2(shift(patch, b * LANES), 3 * LANES, shift(scratch, b * LANES), 3 * LANES)
    for i in range(n):
        if m == 4:
            transforms.weight4(shift(scratch, i * 3 * LANES), LANES, shift(packed, i * n * LANES), LANES)
        else:
            transforms.weight2(shift(scratch, i * 3 * LANES), LANES, shift(packed, i * n * LANES), LANES)


@njit(nogil=True, cache=True)
def forward(t, threads, m, x, u, bias, y, top, left, block, scratch):  # type: ignore[no-untyped-def]
    """Share t of y (N, OH, OW, K) = x (N, H, W, C) convolved with the transformed kernels u.

    Blocks of `block` tiles; scratch (T, size) is the threads' own.
    """
    n_pictures, height, width, channels = x.shape
    out_h, out_w, filters = y.shape[1:]
    down, across = (out_h + m - 1) // m, (out_w + m - 1) // m
    tiles, points = n_pictures * down * across, (m + 2) * (m + 2)
    columns = round_up(filters, LANES)
    v_row = round_up(channels, LANES)
    local = pointer(scratch, t * scratch.shape[1])
    v = shift(local, header_size(channels, filters))
    product = shift(v, points * plane_size(block, v_row))
    last = tiles * (t + 1) // threads
    for first in range(tiles * t // threads, last, block):
        stop = min(first + block, last)
        rows = round_up(stop - first, ROWS)
        _tiles_in(
            m, True, pointer(x, 0), (height, width, channels, down, across), top, left, first, stop,
            0, channels, v, v_row, local,
        )  # fmt: skip
        _multiply(points, rows, channels, v, v_row, pointer(u, 0), columns, 0, columns, product, columns)
        _tiles_out(
            m, product, columns, rows, (out_h, out_w, filters, down, across), first, stop, 0, columns,
            pointer(y, 0), pointer(bias, 0), bias.size > 0, local,
        )  # fmt: skip


@njit(nogil=True, cache=True)
def weight_gradient(t, threads, m, x, dy, top, left, block, sums, scratch):  # type: ignore[no-untyped-def]
    """sums (parts, P * C6 * K8) become the sum over each part's tiles of (B^T x B) (A dy A^T).

    scratch (T, size) is the threads' own. Threads beyond the parts share them, each for its own filters.
    """
    filter_parts = threads // sums.shape[0]
    n_pictures, height, width, channels = x.shape
    out_h, out_w, filters = dy.shape[1:]
    down, across = (out_h + m - 1) // m, (out_w + m - 1) // m
    tiles, points = n_pictures * down * across, (m + 2) * (m + 2)
    tile_parts = sums.shape[0]
    columns = round_up(filters, LANES)
    v_row, c_rows = round_up(channels, LANES), round_up(channels, ROWS)
    stretch, share = t // filter_parts, t % filter_parts
    blocks16 = (columns + COLUMNS - 1) // COLUMNS
    from_k = blocks16 * share // filter_parts * COLUMNS
    to_k = min(columns, blocks16 * (share + 1) // filter_parts * COLUMNS)
    row = to_k - from_k
    local = pointer(scratch, t * scratch.shape[1])
    v = shift(local, header_size(channels, filters))
    d = shift(v, points * plane_size(block, v_row))
    total = pointer(sums, stretch * sums.shape[1])
    zero = like(total, 0)
    for line in range(points * c_rows):
        for k in range(from_k, to_k, LANES):
            store(total, line * columns + k, zero)
    last = tiles * (stretch + 1) // tile_parts
    for first in range(tiles * stretch // tile_parts, last, block):
        stop = min(first + block, last)
        rows = round_up(stop - first, ROWS)
        _tiles_in(
            m, True, pointer(x, 0), (height, width, channels, down, across), top, left, first, stop,
            0, channels, v, v_row, local,
        )  # fmt: skip
        _tiles_in(
            m, False, pointer(dy, 0), (out_h, out_w, filters, down, across), 0, 0, first, stop,
            from_k, to_k, d, row, local,
        )  # fmt: skip
        v_plane, d_plane = plane_size(rows, v_row), plane_size(rows, row)
        for p in range(points):
            a, b, c = shift(v, p * v_plane), shift(d, p * d_plane), shift(total, p * c_rows * columns + from_k)
            for j in range(0, row, COLUMNS):
                for i in range(0, channels, ROWS):
                    to = shift(c, i * columns + j)
                    if row - j > LANES:
                        wide_outer_block(
                            shift(a, i), (0, 0, v_row), shift(b, j), (0, 0, row), (1, 1, stop - first), to, columns
                        )
                    else:
                        narrow_outer_block(
                            shift(a, i), (0, 0, v_row), shift(b, j), (0, 0, row), (1, 1, stop - first), to, columns
                        )


@njit(nogil=True, cache=True)
def add_weight_gradient(t, threads, m, sums, d_weight, scratch):  # type: ignore[no-untyped-def]
    """Share t of d_weight (3, 3, C, K) += G^T (the sum of `sums` over its parts) G; scratch (T, size)."""
    points, n = (m + 2) * (m + 2), m + 2
    channels, filters = d_weight.shape[2:]
    columns, c_rows = round_up(filters, LANES), round_up(channels, ROWS)
    plane = c_rows * columns
    local = pointer(scratch, t * scratch.shape[1])
    packed, patch = shift(local, 36 * LANES), shift(local, 72 * LANES)
    to = pointer(d_weight, 0)
    for c in range(channels * t // threads, channels * (t + 1) // threads):
        for k in range(0, filters, LANES):
            for p in range(points):
                total = load(pointer(sums, 0), p * plane + c * columns + k)
                for part in range(1, sums.shape[0]):
                    total = total + load(pointer(sums, part * sums.shape[1]), p * plane + c * columns + k)
                store(packed, p * LANES, total)
            for j in range(n):
                if m == 4:
                    transforms.weight_adjoint4(shift(packed, j * LANES), n * LANES, shift(local, j * LANES), n * LANES)
                else:
                    transforms.weight_adjoint2(shift(packed, j * LANES), n * LANES, shift(local, j * LANES), n * LANES)
            for i in range(3):
                if m == 4:
                    transforms.weight_adjoint4(shift(local, i * n * LANES), LANES, shift(patch, i * 3 * LANES), LANES)
                else:
                    transforms.weight_adjoint2(shift(local, i * n * LANES), LANES, shift(patch, i * 3 * LANES), LANES)
            count = min(LANES, filters - k)
            for tap in range(9):
                at = (tap * channels + c) * filters + k
                value = load(patch, tap * LANES) + load_first(to, at, count)
                store_first(to, at, value, count)
