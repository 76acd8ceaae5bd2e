"""Crop, flip, shift and normalise uint8 pictures in one pass. N pictures, H by W pixels, C channels; OH by OW out."""

import numpy as np

from cnn.backend import Array
from cnn.backends.cpu.simd import (
    LANES,
    fma,
    like,
    load,
    load_whole,
    number_at,
    pointer,
    put_number,
    shift,
    store,
    store_first,
)
from cnn.backends.cpu.team import Team, kernel
from cnn.backends.reference import ReferenceBackend


def resample(
    images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, deviation: Array, team: Team
) -> Array:
    """See `ReferenceBackend.resample`."""
    count, _, width, channels = images.shape
    if width * channels < LANES:
        return ReferenceBackend().resample(images, ys, xs, holes, mean, deviation)
    out = np.empty((count, ys.shape[1], xs.shape[1], channels), mean.dtype)  # (N, OH, OW, C)
    images = np.ascontiguousarray(images).reshape(count, -1, width * channels)  # (N, H, W * C)
    padded = np.zeros((2, channels + LANES), mean.dtype)  # (2, C and more)
    padded[:, :channels] = mean, 1 / deviation
    team = team.worth(out.size)
    lines = np.empty((team.threads, 2, (max(width, xs.shape[1]) + 1) * channels + LANES), mean.dtype)
    team.run(_resample, images, *_split(ys, mean), *_split(xs, mean), *padded, lines, out)
    for picture, hole in zip(out, () if holes is None else holes, strict=False):
        top, bottom, left, right = hole
        picture[top:bottom, left:right] = 0
    return out


def _split(positions: Array, mean: Array) -> tuple[Array, Array]:
    """The pixel at or before each position, and how far it is towards the next."""
    first = positions.astype(np.int64)  # shape of positions
    return first, (positions - first).astype(mean.dtype)


@kernel
def _resample(t, threads, images, y_first, downs, x_first, acrosses, mean, factor, lines, out):  # type: ignore[no-untyped-def]
    """Each output line is blended from two of the picture's, then each of its pixels from two of that line's.

    images (N, H, W * C); y_first and downs (N, OH), x_first and acrosses (N, OW): the upper or left of the two, and the
    other's weight; mean and factor (C and more,); lines (T, 2, more than a line) is scratch; out is written. A pixel's
    lanes reach into the next one's, which comes after it.
    """
    pictures, height, length = images.shape
    columns, channels = out.shape[2:]
    source, to = pointer(lines, 2 * t * lines.shape[2]), pointer(lines, (2 * t + 1) * lines.shape[2])
    for n in range(pictures * t // threads, pictures * (t + 1) // threads):
        for i in range(out.shape[1]):
            y0 = y_first[n, i]
            y1, down = min(y0 + 1, height - 1), like(source, downs[n, i])
            upper, lower = pointer(images, (n * height + y0) * length), pointer(images, (n * height + y1) * length)
            for each in range(0, length, LANES):
                k = min(each, length - LANES)  # the last lanes overlap those before
                above = load_whole(upper, k, down)
                store(source, k, fma(down, load_whole(lower, k, down) - above, above))
            for c in range(channels):  # the last pixel's neighbour is itself
                put_number(source, length + c, number_at(source, length - channels + c))
            for j in range(columns):
                first, across = shift(source, x_first[n, j] * channels), like(source, acrosses[n, j])
                for c in range(0, channels, LANES):
                    left, right = load(first, c), load(first, channels + c)
                    value = fma(across, right - left, left) - load(pointer(mean, 0), c)
                    store(to, j * channels + c, value * load(pointer(factor, 0), c))
            line = pointer(out, (n * out.shape[1] + i) * columns * channels)
            full = columns * channels // LANES * LANES
            for k in range(0, full, LANES):
                store(line, k, load(to, k))
            store_first(line, full, load(to, full), columns * channels - full)
