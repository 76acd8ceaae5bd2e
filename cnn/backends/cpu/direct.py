"""Convolution of any size and stride without a matrix of windows: register blocks read the picture itself.

With channels last, a window's row is KW * C numbers side by side, so that a block of six output pixels by sixteen
filters sums over KH such runs, straight from a band of the picture that was copied once with its padding.

The derivative by the input is the same kernel again. At stride s, every s-th pixel of dx (a *phase*) sees the same
taps, so that each phase is a stride-1 convolution of dy with its own part of the turned kernels (`phases`).

A *unit* of work is a band of output rows of one picture, or several small pictures whole. N pictures, H by W pixels,
C channels in; OH by OW pixels, K channels out; K8: K rounded up to whole lanes.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from cnn.backend import Window
from cnn.backends.cpu.gemm import (
    COLUMNS,
    ROWS,
    narrow_block,
    narrow_outer_block,
    wide_block,
    wide_outer_block,
)
from cnn.backends.cpu.simd import LANES, like, load, load_first, pointer, shift, store, store_first


class Slide(NamedTuple):
    """How windows of `size` slide over pictures, and where each result goes in the output."""

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
    """How the work is cut: `rows` output rows of a picture at a time, or `pictures` whole ones."""

    pictures: int
    rows: int


def forward_slide(window: Window, out_h: int, out_w: int) -> Slide:
    """The window as it is, over x."""
    return Slide(window.size, window.stride, (window.top, window.left), (out_h, out_w), (0, 0), (1, 1), (0, 0), (1, 1))


def phases(window: Window, height: int, width: int) -> list[Slide]:
    """The adjoint of `window` over pictures of (height, width), as slides over dy that fill dx between them."""
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
    """The numbers of a unit's pictures with their padding, and a little that is read in vain."""
    (kh, kw), (down, right) = slide.size, slide.stride
    lines, columns = (units.rows - 1) * down + kh, (slide.results[1] - 1) * right + kw
    return units.pictures * lines * columns * channels + 2 * LANES


@njit
def _slide_of(g):  # type: ignore[no-untyped-def]
    """The inverse of `Slide.vector`."""
    slide = Slide(
        (g[0], g[1]), (g[2], g[3]), (g[4], g[5]), (g[6], g[7]), (g[8], g[9]), (g[10], g[11]), (g[12], g[13]),
        (g[14], g[15]),
    )  # fmt: skip
    return slide, Units(g[16], g[17])


@njit
def _round_up(number, multiple):  # type: ignore[no-untyped-def]
    return (number + multiple - 1) // multiple * multiple


@njit
def _copy(source, to, count):  # type: ignore[no-untyped-def]
    for i in range(0, count - LANES + 1, LANES):
        store(to, i, load(source, i))
    whole = count // LANES * LANES
    if whole < count:
        store_first(to, whole, load_first(source, whole, count - whole), count - whole)


@njit
def _clear(to, count):  # type: ignore[no-untyped-def]
    zero = like(to, 0)
    for i in range(0, count - LANES + 1, LANES):
        store(to, i, zero)
    whole = count // LANES * LANES
    if whole < count:
        store_first(to, whole, zero, count - whole)


@njit
def _fill_band(x, height, width, channels, line, column, lines, columns, to):  # type: ignore[no-untyped-def]
    """`lines` by `columns` pixels of a picture from (line, column) on, zero outside it, to `to`."""
    before = min(max(0, -column), columns)
    inside = max(0, min(columns, width - column) - before)
    for i in range(lines):
        row = shift(to, i * columns * channels)
        if 0 <= line + i < height:
            _clear(row, before * channels)
            _copy(
                shift(x, ((line + i) * width + column + before) * channels), shift(row, before * channels),
                inside * channels,
            )  # fmt: skip
            after = before + inside
            _clear(shift(row, after * channels), (columns - after) * channels)
        else:
            _clear(row, columns * channels)


@njit(nogil=True, cache=True)
def pack_weights(t, threads, weight, slide_vector, turned, packed):  # type: ignore[no-untyped-def]
    """Share t of the slide's taps of kernels (KH, KW, C, K) as packed columns of a matrix: (taps * C * K8,).

    Turned, they take dy to dx: (taps * K * C8,).
    """
    slide, _ = _slide_of(slide_vector)
    channels, filters = (weight.shape[3], weight.shape[2]) if turned else (weight.shape[2], weight.shape[3])
    columns = _round_up(filters, LANES)
    down, across = slide.size
    depth = down * across * channels
    groups = columns // LANES
    for group in range(groups * t // threads, groups * (t + 1) // threads):
        first = group * LANES
        block = first // COLUMNS * COLUMNS
        block_width = min(COLUMNS, columns - block)
        count = min(LANES, filters - first)
        for i in range(down):
            a = slide.taps_first[0] + i * slide.taps_step[0]
            for j in range(across):
                b = slide.taps_first[1] + j * slide.taps_step[1]
                for c in range(channels):
                    at = block * depth + ((i * across + j) * channels + c) * block_width + first - block
                    for lane in range(LANES):
                        value = weight.dtype.type(0)
                        if lane < count:
                            value = weight[a, b, first + lane, c] if turned else weight[a, b, c, first + lane]
                        packed[at + lane] = value


@njit
def _products(band, line_step, pixel_step, picture_step, run, kh, packed, columns, grid, y, y_steps, filters):  # type: ignore[no-untyped-def]
    """y at a grid of places (pictures, rows, pixels) = their windows in `band` times the packed columns."""
    pictures, rows, pixels = grid
    total, depth = pictures * rows * pixels, kh * run
    down_step, right_step = pixel_step
    for k in range(0, columns, COLUMNS):
        panel, count = shift(packed, k * depth), min(COLUMNS, filters - k)
        g, i, j, done = 0, 0, 0, 0
        here, there = band, shift(y, k)
        while done < total:
            a0, c0 = here, there
            a1, c1, a2, c2, a3, c3, a4, c4, a5, c5 = a0, c0, a0, c0, a0, c0, a0, c0, a0, c0
            # The places of six pixels; after the last one, that one again.
            for r in range(1, ROWS + 1):
                done += 1
                if done < total:
                    j += 1
                    if j == pixels:
                        j, i = 0, i + 1
                        if i == rows:
                            i, g = 0, g + 1
                    here = shift(band, g * picture_step + i * down_step * line_step + j * right_step)
                    there = shift(y, k + g * y_steps[0] + i * y_steps[1] + j * y_steps[2])
                if r == 1:
                    a1, c1 = here, there
                elif r == 2:
                    a2, c2 = here, there
                elif r == 3:
                    a3, c3 = here, there
                elif r == 4:
                    a4, c4 = here, there
                elif r == 5:
                    a5, c5 = here, there
            if columns - k > LANES:
                wide_block(a0, a1, a2, a3, a4, a5, line_step, kh, run, panel, c0, c1, c2, c3, c4, c5, count)
            else:
                narrow_block(a0, a1, a2, a3, a4, a5, line_step, kh, run, panel, c0, c1, c2, c3, c4, c5, count)


@njit
def _unit_places(unit, bands, units, pictures, results):  # type: ignore[no-untyped-def]
    """The first picture, the number of pictures, the first row and the number of rows of a unit."""
    first, row = unit // bands * units.pictures, unit % bands * units.rows
    return first, min(units.pictures, pictures - first), row, min(units.rows, results - row)


@njit(nogil=True, cache=True)
def convolve(t, threads, x, packed, bias, y, slide_vector, bands):  # type: ignore[no-untyped-def]
    """Share t of the slide's results over x (N, H, W, C) into y (N, OH, OW, K); bands (T, size) is scratch."""
    slide, units = _slide_of(slide_vector)
    pictures, height, width, channels = x.shape
    out_h, out_w, filters = y.shape[1:]
    (kh, kw), (down, right) = slide.size, slide.stride
    results, across = slide.results
    columns = _round_up(filters, LANES)
    bands_each = (results + units.rows - 1) // units.rows
    total = (pictures + units.pictures - 1) // units.pictures * bands_each
    band_columns = (across - 1) * right + kw
    band, source, to = pointer(bands, t * bands.shape[1]), pointer(x, 0), pointer(y, 0)
    for unit in range(total * t // threads, total * (t + 1) // threads):
        first, count, row, rows = _unit_places(unit, bands_each, units, pictures, results)
        lines = (rows - 1) * down + kh
        line, column = row * down - slide.padding[0], -slide.padding[1]
        if line >= 0 and line + lines <= height and column >= 0 and column + band_columns <= width:
            here = shift(source, ((first * height + line) * width + column) * channels)
            line_step, picture_step = width * channels, height * width * channels
        else:
            here, line_step = band, band_columns * channels
            picture_step = lines * line_step
            for g in range(count):
                _fill_band(
                    shift(source, (first + g) * height * width * channels), height, width, channels, line, column,
                    lines, band_columns, shift(band, g * picture_step),
                )  # fmt: skip
        start = shift(
            to,
            ((first * out_h + row * slide.to_step[0] + slide.to_first[0]) * out_w + slide.to_first[1]) * filters,
        )
        steps = (out_h * out_w * filters, slide.to_step[0] * out_w * filters, slide.to_step[1] * filters)
        _products(
            here, line_step, (down, right * channels), picture_step, kw * channels, kh, pointer(packed, 0),
            columns, (count, rows, across), start, steps, filters,
        )  # fmt: skip
        if bias.size > 0:
            for g in range(count):
                for i in range(rows):
                    for j in range(across):
                        _add_bias(shift(start, g * steps[0] + i * steps[1] + j * steps[2]), pointer(bias, 0), filters)


@njit
def _add_bias(y, bias, filters):  # type: ignore[no-untyped-def]
    for k in range(0, filters, LANES):
        count = min(LANES, filters - k)
        store_first(y, k, load_first(y, k, count) + load_first(bias, k, count), count)


@njit(nogil=True, cache=True)
def weight_gradient(t, threads, x, dy, slide_vector, bands, sums):  # type: ignore[no-untyped-def]
    """sums (parts, KH * R6 * K8) become each part's sum of windows times dy; R6: KW * C rounded up to sixes.

    bands (T, size) is scratch. Threads beyond the parts share them, each for its own filters.
    """
    filter_parts = threads // sums.shape[0]
    slide, units = _slide_of(slide_vector)
    pictures, height, width, channels = x.shape
    filters = dy.shape[3]
    (kh, kw), (down, right) = slide.size, slide.stride
    results, across = slide.results
    unit_parts = sums.shape[0]
    columns, run = _round_up(filters, LANES), kw * channels
    run_rows = _round_up(run, ROWS)
    bands_each = (results + units.rows - 1) // units.rows
    total = (pictures + units.pictures - 1) // units.pictures * bands_each
    line_step = ((across - 1) * right + kw) * channels
    blocks = (columns + COLUMNS - 1) // COLUMNS
    stretch, share = t // filter_parts, t % filter_parts
    from_k = blocks * share // filter_parts * COLUMNS
    to_k = min(columns, blocks * (share + 1) // filter_parts * COLUMNS)
    band, sum_here = pointer(bands, t * bands.shape[1]), pointer(sums, stretch * sums.shape[1])
    for line in range(kh * run_rows):
        _clear(shift(sum_here, line * columns + from_k), to_k - from_k)
    for unit in range(total * stretch // unit_parts, total * (stretch + 1) // unit_parts):
        first, count, row, rows = _unit_places(unit, bands_each, units, pictures, results)
        lines = (rows - 1) * down + kh
        picture_step = lines * line_step
        for g in range(count):
            _fill_band(
                pointer(x, (first + g) * height * width * channels), height, width, channels,
                row * down - slide.padding[0], -slide.padding[1], lines, (across - 1) * right + kw,
                shift(band, g * picture_step),
            )  # fmt: skip
        dy_here = pointer(dy, (first * results + row) * across * filters)
        dy_steps = (results * across * filters, across * filters, filters)
        if columns > filters:  # whole lanes are read, so that the last pixel's would end outside the array
            padded = shift(band, count * picture_step + 2 * LANES)
            for g in range(count):
                for p in range(rows * across):
                    target = shift(padded, (g * rows * across + p) * columns)
                    for k in range(0, columns, LANES):
                        source = shift(dy_here, g * dy_steps[0] + p * filters)
                        store(target, k, load_first(source, k, min(LANES, filters - k)))
            dy_here, dy_steps = padded, (rows * across * columns, across * columns, columns)
        x_steps = (picture_step, down * line_step, right * channels)
        for k in range(from_k, to_k, COLUMNS):
            for a in range(kh):
                for r in range(0, run, ROWS):
                    window = shift(band, a * line_step + r)
                    to = shift(sum_here, (a * run_rows + r) * columns + k)
                    counts = (count, rows, across)
                    if columns - k > LANES:
                        wide_outer_block(window, x_steps, shift(dy_here, k), dy_steps, counts, to, columns)
                    else:
                        narrow_outer_block(window, x_steps, shift(dy_here, k), dy_steps, counts, to, columns)


@njit(cache=True)
def add_weight_gradient(sums, d_weight):  # type: ignore[no-untyped-def]
    """d_weight (KH, KW, C, K) += sums (parts, KH * R6 * K8), added in the order of the parts."""
    kh, kw, channels, filters = d_weight.shape
    columns, run_rows = _round_up(filters, LANES), _round_up(kw * channels, ROWS)
    for a in range(kh):
        for r in range(kw * channels):
            to = pointer(d_weight, (a * kw * channels + r) * filters)
            for k in range(0, filters, LANES):
                count = min(LANES, filters - k)
                value = load_first(to, k, count)
                for part in range(sums.shape[0]):
                    value = value + load(pointer(sums, part * sums.shape[1]), (a * run_rows + r) * columns + k)
                store_first(to, k, value, count)
