"""Direct convolution with few filters, at stride 1: the lanes of a vector are pixels of a row.

`direct.py` has filters in the lanes, most of which are idle where there are fewer than 8. Here a row of the input is
taken apart into planes, one for each channel, with its padding. A register tile (`tiles.py`) then sums over the taps, a
vector of pixels times a weight of each filter, in the order of `direct.py`: with the same bits. The kernels are
compiled for the number of filters K.

A block of work is a band of output rows of one image. N images, H by W pixels, C channels in; OH by OW pixels, K < 8
channels out; D = KH * KW * C taps; P elements in a row of a plane; T threads; S portions of a sum, see team.py.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cnn.backends.cpu.direct import clear
from cnn.backends.cpu.gemm import round_up
from cnn.backends.cpu.simd import (
    advance,
    copy,
    full_like,
    inner,
    int64,
    load,
    load_scalar,
    load_up_to,
    pointer,
    store,
    store_scalar,
    store_up_to,
)
from cnn.backends.cpu.team import kernel
from cnn.backends.cpu.tiles import (
    GROUP,
    add_outer,
    add_tap,
    first_sums,
    load_channels,
    load_outer,
    load_pixels,
    max_tile_pixels,
    outer_taps,
    prefetch,
    store_tile,
    store_vectors,
    tile_pixels,
)
from cnn.backends.cpu.vector_math import NONE, activation
from cnn.backends.cpu.widths import LANES, WIDE

MAX_SUM = 512  # pixels in a lane's sum of a weight gradient: the rounding error grows with its length
_LINE = 16  # numbers in a cache line; at double precision, half of them are fetched
_round_up = round_up[WIDE].py_func


class Plan(NamedTuple):
    """The numbers that the kernels need besides the arrays' shapes."""

    size: tuple[int, int]  # of the kernels
    padding: tuple[int, int]  # above and on the left; may be negative
    rows: int  # output rows of a block
    group: int  # of which so many are summed over together in a weight gradient
    plane: int  # P

    def numbers(self) -> tuple[int, ...]:
        """All of them, as the kernels take them."""
        return (*self.size, *self.padding, self.rows, self.group, self.plane)

    def offsets(self, channels: int, multiple: int = 1) -> np.ndarray:
        """The offset of each tap in the rows of planes, the last repeated to a multiple: (D,) or more."""
        return _offsets(self.size, channels, self.plane, multiple)

    def scratch(self, channels: int, filters: int) -> int:
        """The elements that a thread needs: planes of the input, rows of the output, and a row's last pixels."""
        planes = ((self.rows + self.size[0] - 1) * channels + self.group * filters) * self.plane
        return planes + WIDE * max(channels, filters) + 3 * WIDE


@lru_cache(64)
def _offsets(size: tuple[int, int], channels: int, plane: int, multiple: int) -> np.ndarray:
    down, across, channel = np.ogrid[: size[0], : size[1], :channels]
    offsets = ((down * channels + channel) * plane + across).reshape(-1)  # (D,)
    return np.pad(offsets, (0, -offsets.size % multiple), "edge")


def row_size(columns: int, kw: int, filters: int) -> int:
    """P for rows of `columns` output pixels, whose tiles read beyond the last: an odd number of cache lines."""
    read = max(columns + WIDE, _round_up(columns, max_tile_pixels(filters, WIDE))) + kw - 1
    return _round_up(read + WIDE, 2 * WIDE) - WIDE


@inner
def _store_some(block, channels, dst, plane):  # type: ignore[no-untyped-def]
    """The first of 4 vectors, as many as there are channels, to planes `plane` apart."""
    store(dst, 0, block[0])
    if channels > 1:
        store(dst, plane, block[1])
    if channels > 2:
        store(dst, 2 * plane, block[2])
    if channels > 3:
        store(dst, 3 * plane, block[3])


@inner
def _fill_row(filters, src, left, count, channels, dst, plane, last):  # type: ignore[no-untyped-def]
    """dst (C, P) = the planes of `count` pixels (count, C), and LANES zeros behind each.

    As many channels as filters are faster. left: the elements of src's array from src on, more than which are not read;
    last (LANES * C + GROUP,): for its last pixels.
    """
    for j in range(0, count, LANES):
        start = advance(src, j * channels)
        if left - j * channels < LANES * channels + GROUP:
            clear(last, LANES * channels + GROUP)
            copy(start, last, min(LANES, count - j) * channels)
            start = last
        if channels == len(filters):
            store_vectors(load_pixels(filters, start), advance(dst, j), plane)
        else:
            for c in range(0, channels, GROUP):
                block = load_channels(advance(start, c), channels)
                _store_some(block, channels - c, advance(dst, c * plane + j), plane)
    for c in range(channels):
        store(dst, c * plane + count, full_like(dst, 0))


@inner
def _fill_input_row(filters, x, left, sizes, i, j0, columns, dst, plane, last):  # type: ignore[no-untyped-def]
    """dst (C, P) = the planes of `columns` pixels of row i of an image (sizes: H, W, C) from j0, zero outside it.

    Beyond the pixels, where dst has been zero, or filled as it is now.
    """
    height, width, channels = sizes
    before = min(max(0, -j0), columns)
    inside = max(0, min(columns, width - j0) - before)
    if i < 0 or i >= height or inside == 0:
        clear(dst, channels * plane)
    else:
        at = (i * width + j0 + before) * channels
        _fill_row(filters, advance(x, at), left - at, inside, channels, advance(dst, before), plane, last)


@inner
def _prefetch(start, count):  # type: ignore[no-untyped-def]
    """Begin to fetch start[:count], which may be anywhere, while other work is done."""
    for i in range(0, count, _LINE):
        prefetch(start, i)


@inner
def _activate(y, count, kind):  # type: ignore[no-untyped-def]
    """y (count,) = activation(y)."""
    for i in range(0, count, LANES):
        store_up_to(y, i, activation(kind, load_up_to(y, i, count - i)), count - i)


@kernel
def convolve(t, threads, filters, x, weights, bias, kind, y, numbers, offsets, scratch):  # type: ignore[no-untyped-def]
    """Slice t of y (N, OH, OW, K) = activation(x (N, H, W, C) convolved with weights (D * K,) + bias (K,)).

    filters: a tuple of K numbers; numbers, offsets and scratch (T, size): see `Plan`.
    """
    images, height, width, channels = x.shape
    out_h, out_w = y.shape[1:3]
    count = len(filters)
    kh, kw, top, left_padding, band, _, plane = numbers
    j0, columns, image_size = -left_padding, out_w + kw - 1, height * width * channels
    bands, depth = (out_h + band - 1) // band, offsets.size
    local, taps = pointer(scratch, t * scratch.shape[1]), pointer(offsets, int64(0))
    line = advance(local, (band + kh - 1) * channels * plane)  # (OW, K)
    last, tile = advance(line, count * plane + WIDE), tile_pixels(filters, local)
    first, w = pointer(bias, int64(0)), pointer(weights, int64(0))
    sizes = height, width, channels
    clear(local, (band + kh - 1) * channels * plane)
    for index in range(images * bands * t // threads, images * bands * (t + 1) // threads):
        image, row = index // bands, index % bands * band
        src, left = pointer(x, image * image_size), x.size - image * image_size
        ready = 0  # rows of the input
        for i in range(min(band, out_h - row)):
            while ready < i + kh:
                planes = advance(local, ready * channels * plane)
                _fill_input_row(filters, src, left, sizes, row + ready - top, j0, columns, planes, plane, last)
                ready += 1
            window = advance(local, i * channels * plane)
            dst = pointer(y, ((image * out_h + row + i) * out_w) * count)
            coming = advance(src, (row + ready - top) * width * channels)  # the input's next row
            for j in range(0, out_w, tile):
                _prefetch(advance(coming, j * channels), tile * channels)
                _prefetch(advance(dst, (out_w + j) * count), tile * count)
                sums, start = first_sums(filters, first), advance(window, j)
                for d in range(depth):
                    sums = add_tap(sums, filters, advance(start, load_scalar(taps, d)), advance(w, d * count))
                if j + tile < out_w:
                    store_tile(sums, filters, advance(dst, j * count))
                else:  # the last of a row exceeds it
                    store_tile(sums, filters, line)
                    copy(line, advance(dst, j * count), (out_w - j) * count)
            if kind != NONE:
                _activate(dst, out_w * count, kind)


@inner
def _move_sums(part, total, count):  # type: ignore[no-untyped-def]
    """Add part (count,) to total, and begin it again."""
    for e in range(0, count, LANES):
        store(total, e, load(total, e) + load(part, e))
        store(part, e, full_like(part, 0))


@kernel
def weight_gradient(t, threads, filters, x, dy, numbers, offsets, scratch, sums):  # type: ignore[no-untyped-def]
    """sums (S, D, K, WIDE) = windows times dy, sums[s] over portion s of the blocks, each lane over its own pixels.

    D: rounded up to whole tiles of taps, as are the offsets. The other arguments are those of `convolve`.
    """
    images, height, width, channels = x.shape
    out_h, out_w = dy.shape[1:3]
    count, portions = len(filters), sums.shape[0]
    kh, kw, top, left_padding, band, group, plane = numbers
    j0, columns, image_size = -left_padding, out_w + kw - 1, height * width * channels
    bands, depth, together = (out_h + band - 1) // band, offsets.size, outer_taps(filters)
    blocks, row_sums = images * bands, count * WIDE
    local, taps = pointer(scratch, t * scratch.shape[1]), pointer(offsets, int64(0))
    dy_planes = advance(local, (band + kh - 1) * channels * plane)
    last = advance(dy_planes, group * count * plane + WIDE)
    part = advance(last, WIDE * max(channels, count) + 2 * WIDE)
    sizes, whole = (height, width, channels), round_up(out_w, WIDE)
    x_share, dy_share = width * channels // depth + 1, out_w * count // depth + 1  # of the next row, to be fetched
    clear(local, ((band + kh - 1) * channels + group * count) * plane)
    for s in range(portions * t // threads, portions * (t + 1) // threads):
        total = pointer(sums, s * depth * row_sums)
        clear(total, depth * row_sums)
        clear(part, depth * row_sums)
        length = 0  # of the sums in `part`
        for index in range(blocks * s // portions, blocks * (s + 1) // portions):
            image, row = index // bands, index % bands * band
            src, left = pointer(x, image * image_size), x.size - image * image_size
            ready, rows = 0, min(band, out_h - row)  # rows of the input, and of dy
            length += rows * (whole // WIDE)
            if length > MAX_SUM:
                _move_sums(part, total, depth * row_sums)
                length = rows * (whole // WIDE)
            for i in range(0, rows, group):
                stop = min(i + group, rows)
                while ready < stop + kh - 1:
                    planes = advance(local, ready * channels * plane)
                    _fill_input_row(filters, src, left, sizes, row + ready - top, j0, columns, planes, plane, last)
                    ready += 1
                for r in range(i, stop):
                    dy_at = (image * out_h + row + r) * out_w * count
                    planes = advance(dy_planes, (r - i) * count * plane)
                    _fill_row(filters, pointer(dy, dy_at), dy.size - dy_at, out_w, count, planes, plane, last)
                window = advance(local, i * channels * plane)
                coming = advance(src, (row + ready - top) * width * channels)  # the input's next row
                dy_coming = pointer(dy, (image * out_h + row + stop) * out_w * count)
                for d in range(0, depth, together):
                    _prefetch(advance(coming, d * x_share), together * x_share)
                    _prefetch(advance(dy_coming, d * dy_share), together * dy_share)
                    for lane in range(0, WIDE, LANES):
                        at = advance(part, d * row_sums + lane)
                        tile = load_outer(filters, at, WIDE)
                        for r in range(stop - i):
                            x_row, dy_row = advance(window, r * channels * plane), advance(dy_planes, r * count * plane)
                            for j in range(lane, whole, WIDE):
                                tile = add_outer(
                                    tile, filters, advance(x_row, j), advance(taps, d), advance(dy_row, j), plane
                                )
                        store_vectors(tile, at, WIDE)
        _move_sums(part, total, depth * row_sums)


@kernel
def sum_weight_gradient(t, threads, sums, d_weight):  # type: ignore[no-untyped-def]
    """Slice t of d_weight (KH, KW, C, K) = sums (S, D, K, WIDE): of each lane, then of the lanes. Overwrites sums."""
    dst, portions, size = pointer(d_weight, int64(0)), sums.shape[0], sums.size // sums.shape[0]
    for e in range(d_weight.size * t // threads, d_weight.size * (t + 1) // threads):
        lanes = pointer(sums, e * WIDE)
        for lane in range(0, WIDE, LANES):
            total = load(lanes, lane)
            for s in range(1, portions):
                total = total + load(lanes, s * size + lane)
            store(lanes, lane, total)
        half = WIDE // 2  # by halves: in one order at any width of vectors
        while half > 0:
            for i in range(half):
                store_scalar(lanes, i, load_scalar(lanes, i) + load_scalar(lanes, i + half))
            half //= 2
        store_scalar(dst, e, load_scalar(lanes, 0))
