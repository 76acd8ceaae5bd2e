"""Convolution of any size and stride without a matrix of windows: register blocks read the image itself.

With channels last, a window's row is KW * C numbers side by side, so that a block of six output pixels by sixteen
filters sums over KH such runs, straight from a band of the image that was copied once with its padding.

The derivative by the input is the same kernel again. At stride s, every s-th pixel of dx (a *phase*) sees the same
taps, so that each phase is a stride-1 convolution of dy with its own part of the turned kernels (`phases`).

A *unit* of work is a band of output rows of one image, or several small images whole. N images, H by W pixels,
C channels in; OH by OW pixels, K channels out; K8: K rounded up to whole lanes.
"""

from typing import NamedTuple

import numpy as np

from cnn.backends.base import Window
from cnn.backends.cpu.gemm import MR, NR, block, outer_product_sum
from cnn.backends.cpu.simd import (
    LANES,
    advance,
    full_like,
    inner,
    int64,
    load,
    load_masked,
    load_scalar,
    pointer,
    round_up,
    store,
    store_masked,
    store_scalar,
)
from cnn.backends.cpu.team import kernel


class Slide(NamedTuple):
    """How windows of `size` slide over images, and where each result goes in the output."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # above and on the left; may be negative
    results: tuple[int, int]  # how many, down and across
    to_first: tuple[int, int]  # the output pixel of the first result
    to_step: tuple[int, int]  # and how many pixels the next one is further on
    taps_first: tuple[int, int]  # which of the kernel's taps is the window's first
    taps_step: tuple[int, int]


    def vector(self, units: "Units") -> np.ndarray:
        """As the kernels take it: (18,)."""
        return np.array([number for pair in self for number in pair] + list(units), np.int64)


class Units(NamedTuple):
    """How the work is cut: `rows` output rows of an image at a time, or `images` whole ones."""

    images: int
    rows: int


def forward_slide(window: Window, out_h: int, out_w: int) -> Slide:
    """The window as it is, over x."""
    return Slide(window.size, window.stride, (window.top, window.left), (out_h, out_w), (0, 0), (1, 1), (0, 0), (1, 1))


def phases(window: Window, height: int, width: int) -> list[Slide]:
    """The adjoint of `window` over images of (height, width), as slides over dy that fill dx between them."""
    found = []
    for row in range(min(window.stride[0], height)):
        for column in range(min(window.stride[1], width)):
            size, padding, taps_first = [], [], []
            for axis, place, before in ((0, row, window.top), (1, column, window.left)):
                kernel, stride = window.size[axis], window.stride[axis]
                first = (place + before) % stride  # the first tap that sees this phase
                count = max(0, -(-(kernel - first) // stride))
                size.append(count)
                padding.append(count - 1 - (place + before - first) // stride)
                taps_first.append(first + stride * (count - 1))
            if min(size) > 0:
                results = (-(-(height - row) // window.stride[0]), -(-(width - column) // window.stride[1]))
                found.append(
                    Slide(
                        (size[0], size[1]), (1, 1), (padding[0], padding[1]), results, (row, column), window.stride,
                        (taps_first[0], taps_first[1]), (-window.stride[0], -window.stride[1]),
                    )
                )  # fmt: skip
    return found


def band_size(slide: Slide, units: Units, channels: int) -> int:
    """The numbers of a unit's images with their padding, and a little that is read in vain."""
    (kh, kw), (down, right) = slide.size, slide.stride
    lines, columns = (units.rows - 1) * down + kh, (slide.results[1] - 1) * right + kw
    return units.images * lines * columns * channels + 2 * LANES


def unit_results(slide: Slide, units: Units) -> int:
    """The most results of a unit."""
    return units.images * units.rows * slide.results[1]


@inner
def _slide_of(g):  # type: ignore[no-untyped-def]
    """The inverse of `Slide.vector`."""
    slide = Slide(
        (g[0], g[1]), (g[2], g[3]), (g[4], g[5]), (g[6], g[7]), (g[8], g[9]), (g[10], g[11]), (g[12], g[13]),
        (g[14], g[15]),
    )  # fmt: skip
    return slide, Units(g[16], g[17])


@inner
def _copy(src, dst, count):  # type: ignore[no-untyped-def]
    full = count // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, i, load(src, i))
    if full < count:
        store_masked(dst, full, load_masked(src, full, count - full), count - full)


@inner
def _clear(dst, count):  # type: ignore[no-untyped-def]
    zero, full = full_like(dst, 0), count // LANES * LANES
    for i in range(0, full, LANES):
        store(dst, i, zero)
    if full < count:
        store_masked(dst, full, zero, count - full)


@inner
def _fill_band(x, height, width, channels, line, column, lines, columns, dst):  # type: ignore[no-untyped-def]
    """`lines` by `columns` pixels of an image from (line, column) on, zero outside it, to `to`."""
    before = min(max(0, -column), columns)
    inside = max(0, min(columns, width - column) - before)
    for i in range(lines):
        row = advance(dst, i * columns * channels)
        if 0 <= line + i < height:
            _clear(row, before * channels)
            _copy(
                advance(x, ((line + i) * width + column + before) * channels), advance(row, before * channels),
                inside * channels,
            )  # fmt: skip
            after = before + inside
            _clear(advance(row, after * channels), (columns - after) * channels)
        else:
            _clear(row, columns * channels)


@kernel
def pack_weights(t, threads, weight, slide_vector, adjoint, packed):  # type: ignore[no-untyped-def]
    """Share t of the slide's taps of kernels (KH, KW, C, K) as packed columns of a matrix: (taps * C * K8,).

    Turned, they take dy to dx: (taps * K * C8,).
    """
    slide, _ = _slide_of(slide_vector)
    channels, filters = (weight.shape[3], weight.shape[2]) if adjoint else (weight.shape[2], weight.shape[3])
    columns, src, dst = round_up(filters, LANES), pointer(weight, int64(0)), pointer(packed, int64(0))
    down, across = slide.size
    depth, groups = down * across * channels, columns // LANES
    c_step, k_step = (1, channels) if adjoint else (filters, 1)  # in memory, K being the last axis of `weight`
    for group in range(groups * t // threads, groups * (t + 1) // threads):
        first = group * LANES
        start = first // NR * NR
        width, count = min(NR, columns - start), min(LANES, filters - first)
        for tap in range(down * across):
            a = slide.taps_first[0] + tap // across * slide.taps_step[0]
            b = slide.taps_first[1] + tap % across * slide.taps_step[1]
            kernel = advance(src, (a * weight.shape[1] + b) * channels * filters + first * k_step)
            for c in range(channels):
                at = start * depth + (tap * channels + c) * width + first - start
                store(dst, at, full_like(dst, 0))
                for lane in range(count):
                    store_scalar(dst, at + lane, load_scalar(kernel, c * c_step + lane * k_step))


@inner
def _list_places(counts, x_steps, x_at, y_steps, y_at):  # type: ignore[no-untyped-def]
    """Where each result of a grid (images, rows, pixels) reads and writes; the last ones repeated to fill a block."""
    done = 0
    for g in range(counts[0]):
        for i in range(counts[1]):
            for j in range(counts[2]):
                store_scalar(x_at, done, g * x_steps[0] + i * x_steps[1] + j * x_steps[2])
                store_scalar(y_at, done, g * y_steps[0] + i * y_steps[1] + j * y_steps[2])
                done += 1
    for more in range(done, done + MR):
        store_scalar(x_at, more, load_scalar(x_at, done - 1))
        store_scalar(y_at, more, load_scalar(y_at, done - 1))


@inner
def _products(x, x_at, line_step, kh, run, packed, columns, y, y_at, total, filters, dense, bias, relu):  # type: ignore[no-untyped-def]
    """y at `total` places = the windows at as many places of x, times the packed columns, with bias and ReLU.

    Where places are `dense`, each right behind the one before, whole lanes are written as long as they end inside:
    what goes over the end of one is overwritten by the next. Writing a part of the lanes takes as long as ten
    multiply-adds on some processors.
    """
    for k in range(0, columns, NR):
        panel, column, start = advance(packed, k * kh * run), advance(y, k), advance(bias, k)
        for q in range(0, total, MR):
            count = min(NR, filters - k)
            if dense and columns <= NR and (q + MR - 1) * filters + columns <= total * filters:
                count = columns
            block(
                advance(x, load_scalar(x_at, q)), advance(x, load_scalar(x_at, q + 1)), advance(x, load_scalar(x_at, q + 2)),
                advance(x, load_scalar(x_at, q + 3)), advance(x, load_scalar(x_at, q + 4)), advance(x, load_scalar(x_at, q + 5)),
                line_step, kh, run, panel,
                advance(column, load_scalar(y_at, q)), advance(column, load_scalar(y_at, q + 1)),
                advance(column, load_scalar(y_at, q + 2)), advance(column, load_scalar(y_at, q + 3)),
                advance(column, load_scalar(y_at, q + 4)), advance(column, load_scalar(y_at, q + 5)), count, start,
                int64(0), relu,
            )  # fmt: skip


@inner
def _unit_places(unit, bands, units, images, results):  # type: ignore[no-untyped-def]
    """The first image, the number of images, the first row and the number of rows of a unit."""
    first, row = unit // bands * units.images, unit % bands * units.rows
    return first, min(units.images, images - first), row, min(units.rows, results - row)


@inner
def _place_of_unit(x, sizes, first, count, line, column, lines, columns, within, band):  # type: ignore[no-untyped-def]
    """Where a unit's images begin, and how far apart their lines and the images lie.

    `lines` by `columns` pixels from (line, column) on, of `count` images of x (sizes: H, W, C): in x itself where
    none is padding and `within` allows it, else copied to `band` with their padding.
    """
    height, width, channels = sizes
    inside = line >= 0 and line + lines <= height and column >= 0 and column + columns <= width
    if inside and within:
        here = advance(x, ((first * height + line) * width + column) * channels)
        return here, width * channels, height * width * channels
    line_step = columns * channels
    for g in range(count):
        image, dst = advance(x, (first + g) * height * width * channels), advance(band, g * lines * line_step)
        _fill_band(image, height, width, channels, line, column, lines, columns, dst)
    return band, line_step, lines * line_step


@kernel
def convolve(t, threads, x, packed, bias, relu, y, slide_vector, bands, places):  # type: ignore[no-untyped-def]
    """Share t of the slide's results over x (N, H, W, C), with bias and ReLU, into y (N, OH, OW, K).

    bias (K16,), K rounded up to sixteens; bands (T, size) and places (T, 2, unit results + 6) are scratch.
    """
    slide, units = _slide_of(slide_vector)
    images, height, width, channels = x.shape
    out_h, out_w, filters = y.shape[1:]
    (kh, kw), (down, right) = slide.size, slide.stride
    results, across = slide.results
    bands_each = (results + units.rows - 1) // units.rows
    total = (images + units.images - 1) // units.images * bands_each
    band_columns = (across - 1) * right + kw
    src, dst, band = pointer(x, int64(0)), pointer(y, int64(0)), pointer(bands, t * bands.shape[1])
    x_at, y_at = pointer(places, 2 * t * places.shape[2]), pointer(places, (2 * t + 1) * places.shape[2])
    y_steps = (out_h * out_w * filters, slide.to_step[0] * out_w * filters, slide.to_step[1] * filters)
    dense = results == out_h and across == out_w
    for unit in range(total * t // threads, total * (t + 1) // threads):
        first, count, row, rows = _unit_places(unit, bands_each, units, images, results)
        lines = (rows - 1) * down + kh
        line, column = row * down - slide.padding[0], -slide.padding[1]
        here, line_step, image_step = _place_of_unit(
            src, (height, width, channels), first, count, line, column, lines, band_columns, kh > 0, band
        )
        _list_places(
            (count, rows, across), (image_step, down * line_step, right * channels), x_at, y_steps, y_at
        )
        line, column = row * slide.to_step[0] + slide.to_first[0], slide.to_first[1]
        there = advance(dst, ((first * out_h + line) * out_w + column) * filters)
        _products(
            here, x_at, line_step, kh, kw * channels, pointer(packed, int64(0)), round_up(filters, LANES), there, y_at,
            count * rows * across, filters, dense, pointer(bias, int64(0)), relu,
        )  # fmt: skip


@kernel
def weight_gradient(t, threads, x, dy, slide_vector, bands, sums):  # type: ignore[no-untyped-def]
    """sums (parts, KH * R6 * K8) become each part's sum of windows times dy; R6: KW * C rounded up to sixes.

    bands (T, size) is scratch. Threads beyond the parts share them, each for its own filters.
    """
    filter_parts = threads // sums.shape[0]
    slide, units = _slide_of(slide_vector)
    images, height, width, channels = x.shape
    filters = dy.shape[3]
    (kh, kw), (down, right) = slide.size, slide.stride
    results, across = slide.results
    unit_parts = sums.shape[0]
    columns, run = round_up(filters, LANES), kw * channels
    run_rows = round_up(run, MR)
    bands_each = (results + units.rows - 1) // units.rows
    total = (images + units.images - 1) // units.images * bands_each
    blocks = (columns + NR - 1) // NR
    stretch, share = t // filter_parts, t % filter_parts
    from_k = blocks * share // filter_parts * NR
    to_k = min(columns, blocks * (share + 1) // filter_parts * NR)
    src, band, sum_here = (
        pointer(x, int64(0)), pointer(bands, t * bands.shape[1]), pointer(sums, stretch * sums.shape[1])
    )  # fmt: skip
    for line in range(kh * run_rows):
        _clear(advance(sum_here, line * columns + from_k), to_k - from_k)
    for unit in range(total * stretch // unit_parts, total * (stretch + 1) // unit_parts):
        first, count, row, rows = _unit_places(unit, bands_each, units, images, results)
        lines = (rows - 1) * down + kh
        line, column, columns_read = row * down - slide.padding[0], -slide.padding[1], (across - 1) * right + kw
        # Blocks read up to 5 numbers of x, and 7 of dy, more than there are: not where the array ends.
        end = (((first + count - 1) * height + line + lines - 1) * width + column + columns_read) * channels
        within, sizes = end + MR <= x.size, (height, width, channels)
        here, line_step, image_step = _place_of_unit(
            src, sizes, first, count, line, column, lines, columns_read, within, band
        )
        end = (first + count - 1) * results + row + rows  # in lines of dy
        near_end = dy.size - end * across * filters < LANES
        dy_here = pointer(dy, (first * results + row) * across * filters)
        dy_steps = (results * across * filters, across * filters, filters)
        if near_end and columns > filters:
            padded = advance(band, count * lines * columns_read * channels + 2 * LANES)
            for g in range(count):
                for p in range(rows * across):
                    target = advance(padded, (g * rows * across + p) * columns)
                    for k in range(0, columns, LANES):
                        pixel = advance(dy_here, g * dy_steps[0] + p * filters)
                        store(target, k, load_masked(pixel, k, min(LANES, filters - k)))
            dy_here, dy_steps = padded, (rows * across * columns, across * columns, columns)
        x_steps = (image_step, down * line_step, right * channels)
        grid, dy_here = (count, rows, across), advance(dy_here, from_k)
        for a in range(kh):
            window, dst = advance(here, a * line_step), advance(sum_here, a * run_rows * columns + from_k)
            outer_product_sum(window, x_steps, run, dy_here, dy_steps, to_k - from_k, grid, dst, columns)


@kernel
def sum_weight_gradient(t, threads, sums, d_weight):  # type: ignore[no-untyped-def]
    """Share t of d_weight (KH, KW, C, K) = sums (parts, KH * R6 * K8), added in the order of the parts."""
    kh, kw, channels, filters = d_weight.shape
    columns, run_rows = round_up(filters, LANES), round_up(kw * channels, MR)
    run = kw * channels
    for row in range(kh * run * t // threads, kh * run * (t + 1) // threads):
        a, r = row // run, row % run
        dst = pointer(d_weight, row * filters)
        for k in range(0, filters, LANES):
            count = min(LANES, filters - k)
            value = full_like(dst, 0)
            for part in range(sums.shape[0]):
                value = value + load(pointer(sums, part * sums.shape[1]), (a * run_rows + r) * columns + k)
            store_masked(dst, k, value, count)
