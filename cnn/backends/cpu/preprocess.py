"""Crop, flip, shift, normalise and recolour uint8 images in one pass; mix images with one another in another.

N images, H by W pixels, C channels; OH by OW out.
"""

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.simd import (
    LANES,
    advance,
    fma,
    full_like,
    inner,
    load,
    load_scalar,
    load_uint,
    load_up_to,
    pointer,
    store,
    store_masked,
    store_scalar,
    store_up_to,
)
from cnn.backends.cpu.team import Team, kernel
from cnn.backends.reference import ReferenceBackend


def resample(
    images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array, colours: Array | None,
    team: Team,
) -> Array:
    """See `ReferenceBackend.resample`."""
    count, _, width, channels = images.shape
    if width * channels < LANES:
        return ReferenceBackend().resample(images, ys, xs, holes, mean, std, colours)
    out = np.empty((count, ys.shape[1], xs.shape[1], channels), mean.dtype)  # (N, OH, OW, C)
    images = np.ascontiguousarray(images).reshape(count, -1, width * channels)  # (N, H, W * C)
    padded = np.zeros((2, channels + LANES), mean.dtype)  # (2, C and more)
    padded[:, :channels] = mean, 1 / std
    team = team.for_size(out.size)
    lines = np.zeros((team.threads, 2, (max(width, xs.shape[1]) + 1) * channels + LANES), mean.dtype)
    team.run(_resample, images, *_split(ys, mean), *_split(xs, mean), *padded, _in_lanes(colours, mean), lines, out)
    for image, hole in zip(out, () if holes is None else holes, strict=False):
        top, bottom, left, right = hole
        image[top:bottom, left:right] = 0
    return out


def _in_lanes(colours: Array | None, mean: Array) -> Array:
    """Matrices (N, C, C + 1) as `_recoloured` wants them: (N, 2C, C * LANES), for no image where there are none."""
    channels = len(mean)
    if colours is None:
        return np.zeros((0, 2 * channels, channels * LANES), mean.dtype)
    own = np.arange(channels * LANES) % channels  # (C * LANES,): which channel a lane holds
    numbers = np.zeros((len(colours), 2 * channels, len(own)), mean.dtype)  # (N, 2C, C * LANES)
    numbers[:, 0] = colours[:, own, channels]
    for offset in range(1, 2 * channels):
        other = own + offset - channels  # (C * LANES,): the channel that lies so far from the lane's own
        inside = (other >= 0) & (other < channels)  # (C * LANES,): in the same pixel
        numbers[:, offset, inside] = colours[:, own[inside], other[inside]]
    return numbers


def blend(x: Array, partners: Array, shares: Array, boxes: Array, team: Team) -> Array:
    """See `ReferenceBackend.blend`."""
    out = np.empty_like(x)  # (N, H, W, C)
    team.for_size(x.size).run(_blend, x, partners, shares, boxes, out)
    return out


def _split(positions: Array, mean: Array) -> tuple[Array, Array]:
    """The pixel at or before each position, and how far it is towards the next."""
    first = positions.astype(np.int64)  # shape of positions
    return first, (positions - first).astype(mean.dtype)


@inner
def _recoloured(line, k, colours, channels):  # type: ignore[no-untyped-def]
    """Lanes k, k + 1, ... of a line of pixels, each pixel times the matrix.

    A lane's own pixel lies up to C - 1 numbers before and after it; what lies there of other pixels counts with zero.
    `colours` are the constants, then the factors of each such place, for one turn of the lanes through the channels.
    """
    turn = channels * LANES
    phase = k % turn
    value = load(colours, phase)
    for offset in range(1, 2 * channels):
        value = fma(load(line, k + offset - channels), load(colours, offset * turn + phase), value)
    return value


@kernel
def _resample(t, threads, images, y_first, downs, x_first, acrosses, mean, factor, colours, lines, out):  # type: ignore[no-untyped-def]
    """Each output line is blended from two of the image's, then each of its pixels from two of that line's.

    images (N, H, W * C); y_first and downs (N, OH), x_first and acrosses (N, OW): the upper or left of the two, and the
    other's weight; mean and factor (C and more,); colours (N or none, 2C, C * LANES): see `_in_lanes`; lines (T, 2, a
    line and more) is scratch, of finite numbers, since those beside a line are multiplied by zero; out is written. A
    pixel's lanes reach into the next one's, which comes after it.
    """
    count, height, length = images.shape
    columns, channels = out.shape[2:]
    src, dst = pointer(lines, 2 * t * lines.shape[2]), pointer(lines, (2 * t + 1) * lines.shape[2])
    for n in range(count * t // threads, count * (t + 1) // threads):
        for i in range(out.shape[1]):
            y0 = y_first[n, i]
            y1, down = min(y0 + 1, height - 1), full_like(src, downs[n, i])
            upper, lower = pointer(images, (n * height + y0) * length), pointer(images, (n * height + y1) * length)
            for each in range(0, length, LANES):
                k = min(each, length - LANES)  # the last lanes overlap those before
                above = load_uint(upper, k, down)
                store(src, k, fma(down, load_uint(lower, k, down) - above, above))
            for c in range(channels):  # the last pixel's neighbour is itself
                store_scalar(src, length + c, load_scalar(src, length - channels + c))
            for j in range(columns):
                first, across = advance(src, x_first[n, j] * channels), full_like(src, acrosses[n, j])
                for c in range(0, channels, LANES):
                    left, right = load(first, c), load(first, channels + c)
                    value = fma(across, right - left, left) - load(pointer(mean, 0), c)
                    store(dst, j * channels + c, value * load(pointer(factor, 0), c))
            line = pointer(out, (n * out.shape[1] + i) * columns * channels)
            full = columns * channels // LANES * LANES
            if len(colours) > 0:
                colour = pointer(colours, n * colours.shape[1] * colours.shape[2])
                for k in range(0, full, LANES):
                    store(line, k, _recoloured(dst, k, colour, channels))
                store_masked(line, full, _recoloured(dst, full, colour, channels), columns * channels - full)
            else:
                for k in range(0, full, LANES):
                    store(line, k, load(dst, k))
                store_masked(line, full, load(dst, full), columns * channels - full)


@inner
def _copy(src, first, last, dst):  # type: ignore[no-untyped-def]
    for k in range(first, last, LANES):
        store_up_to(dst, k, load_up_to(src, k, last - k), last - k)


@kernel
def _blend(t, threads, x, partners, shares, boxes, out):  # type: ignore[no-untyped-def]
    """x and out (N, H, W, C), boxes (N, 4). Line by line, so that what lies outside of a box is copied meanwhile."""
    count, height, columns, channels = x.shape
    length = columns * channels
    for n in range(count * t // threads, count * (t + 1) // threads):
        top, bottom, left, right = boxes[n, 0], boxes[n, 1], boxes[n, 2] * channels, boxes[n, 3] * channels
        for i in range(height):
            own, line = pointer(x, (n * height + i) * length), pointer(out, (n * height + i) * length)
            if i < top or i >= bottom:
                _copy(own, 0, length, line)
                continue
            other, share = pointer(x, (partners[n] * height + i) * length), full_like(own, shares[n])
            _copy(own, 0, left, line)
            for k in range(left, right, LANES):
                theirs = load_up_to(other, k, right - k)
                mixed = fma(share, load_up_to(own, k, right - k) - theirs, theirs)
                store_up_to(line, k, mixed, right - k)
            _copy(own, right, length, line)
