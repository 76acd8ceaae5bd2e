"""Image kernels: crop, flip, shift, normalise and recolour uint8 images in one pass; blend images in another.

N images, H by W pixels, C channels; OH by OW out.
"""

import numpy as np

from cnn.backends.base import Array
from cnn.backends.cpu.memory import empty
from cnn.backends.cpu.simd import (
    advance,
    copy,
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
from cnn.backends.cpu.widths import NARROW
from cnn.backends.reference import ReferenceBackend


def resample(
    images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array, colours: Array | None,
    team: Team,
) -> Array:
    """See `ReferenceBackend.resample`."""
    count, _, width, channels = images.shape
    if width * channels < NARROW:
        return ReferenceBackend().resample(images, ys, xs, holes, mean, std, colours)
    out = empty((count, ys.shape[1], xs.shape[1], channels), mean.dtype)  # (N, OH, OW, C)
    images = np.ascontiguousarray(images).reshape(count, -1, width * channels)  # (N, H, W * C)
    padded = np.zeros((2, channels + NARROW), mean.dtype)  # (2, C + NARROW)
    padded[:, :channels] = mean, 1 / std
    team = team.for_size(out.size)
    # Two rows of pixels for each thread. Elements beside a row are read too and multiplied by 0, so must be finite.
    rows = np.zeros((team.threads, 2, (max(width, xs.shape[1]) + 1) * channels + NARROW), mean.dtype)
    matrices = _colour_vectors(colours, mean)  # (N or 0, 2C, C * NARROW)
    team.run(_resample[NARROW], images, *_floor(ys, mean), *_floor(xs, mean), *padded, matrices, rows, out)
    for image, hole in zip(out, () if holes is None else holes, strict=False):
        top, bottom, left, right = hole
        image[top:bottom, left:right] = 0
    return out


def blend(x: Array, partners: Array, weights: Array, boxes: Array, team: Team) -> Array:
    """See `ReferenceBackend.blend`."""
    out = empty(x.shape, x.dtype)  # (N, H, W, C)
    team.for_size(x.size).run(_blend[NARROW], x, partners, weights, boxes, out)
    return out


def _floor(positions: Array, mean: Array) -> tuple[Array, Array]:
    """The pixel at or before each position, and the weight of the next one for linear interpolation."""
    first = positions.astype(np.int64)  # shape of positions
    return first, (positions - first).astype(mean.dtype)


def _colour_vectors(colours: Array | None, mean: Array) -> Array:
    """Colour matrices (N, C, C + 1) as `_apply_colours` takes them: (N, 2C, C * NARROW), N = 0 without colours."""
    channels = len(mean)
    if colours is None:
        return np.zeros((0, 2 * channels, channels * NARROW), mean.dtype)
    own = np.arange(channels * NARROW) % channels  # (C * NARROW,): the channel of each lane
    vectors = np.zeros((len(colours), 2 * channels, len(own)), mean.dtype)  # (N, 2C, C * NARROW)
    vectors[:, 0] = colours[:, own, channels]
    for offset in range(1, 2 * channels):
        other = own + offset - channels  # (C * NARROW,): the channel at that distance from the lane's own
        inside = (other >= 0) & (other < channels)  # (C * NARROW,): in the same pixel
        vectors[:, offset, inside] = colours[:, own[inside], other[inside]]
    return vectors


@inner
def _apply_colours(row, k, colours, channels):  # type: ignore[no-untyped-def]
    """Vector k of a row of pixels, each pixel multiplied by its image's colour matrix.

    A lane's pixel extends up to C - 1 elements before and after it; elements of other pixels there get factor zero.
    `colours` are the constants, then the factors at each such distance, for one period of the lanes' channels.
    """
    period = channels * NARROW
    phase = k % period
    value = load(colours, phase)
    for offset in range(1, 2 * channels):
        value = fma(load(row, k + offset - channels), load(colours, offset * period + phase), value)
    return value


@kernel
def _resample(t, threads, images, y_first, y_weight, x_first, x_weight, mean, factor, colours, rows, out):  # type: ignore[no-untyped-def]
    """Slice t of the images of out (N, OH, OW, C): bilinear interpolation of images (N, H, W * C), rows, then pixels.

    y_first and y_weight (N, OH), x_first and x_weight (N, OW): see `_floor`; mean and factor (C + NARROW,); colours (N
    or 0, 2C, C * NARROW): see `_colour_vectors`; rows (T, 2, size) is scratch, zero beside its pixels. Vectors extend
    into the next pixel, which is written after it.
    """
    count, height, length = images.shape
    columns, channels = out.shape[2:]
    src, dst = pointer(rows, 2 * t * rows.shape[2]), pointer(rows, (2 * t + 1) * rows.shape[2])
    for n in range(count * t // threads, count * (t + 1) // threads):
        for i in range(out.shape[1]):
            y0 = y_first[n, i]
            y1, down = min(y0 + 1, height - 1), full_like(src, y_weight[n, i])
            upper, lower = pointer(images, (n * height + y0) * length), pointer(images, (n * height + y1) * length)
            for each in range(0, length, NARROW):
                k = min(each, length - NARROW)  # the last vector overlaps the one before
                above = load_uint(upper, k, down)
                store(src, k, fma(down, load_uint(lower, k, down) - above, above))
            for c in range(channels):  # the last pixel is its own right neighbour
                store_scalar(src, length + c, load_scalar(src, length - channels + c))
            for j in range(columns):
                pixel, across = advance(src, x_first[n, j] * channels), full_like(src, x_weight[n, j])
                for c in range(0, channels, NARROW):
                    left, right = load(pixel, c), load(pixel, channels + c)
                    value = fma(across, right - left, left) - load(pointer(mean, 0), c)
                    store(dst, j * channels + c, value * load(pointer(factor, 0), c))
            out_row = pointer(out, (n * out.shape[1] + i) * columns * channels)
            if len(colours) > 0:
                matrix = pointer(colours, n * colours.shape[1] * colours.shape[2])
                full = columns * channels // NARROW * NARROW
                for k in range(0, full, NARROW):
                    store(out_row, k, _apply_colours(dst, k, matrix, channels))
                store_masked(out_row, full, _apply_colours(dst, full, matrix, channels), columns * channels - full)
            else:
                copy(dst, out_row, columns * channels)


@kernel
def _blend(t, threads, x, partners, weights, boxes, out):  # type: ignore[no-untyped-def]
    """Slice t of the images of out: x (N, H, W, C) blended within boxes (N, 4), copied outside."""
    count, height, columns, channels = x.shape
    length = columns * channels
    for n in range(count * t // threads, count * (t + 1) // threads):
        top, bottom, left, right = boxes[n, 0], boxes[n, 1], boxes[n, 2] * channels, boxes[n, 3] * channels
        for i in range(height):
            own, row = pointer(x, (n * height + i) * length), pointer(out, (n * height + i) * length)
            if i < top or i >= bottom:
                copy(own, row, length)
                continue
            other, weight = pointer(x, (partners[n] * height + i) * length), full_like(own, weights[n])
            copy(own, row, left)
            for k in range(left, right, NARROW):
                theirs = load_up_to(other, k, right - k)
                mixed = fma(weight, load_up_to(own, k, right - k) - theirs, theirs)
                store_up_to(row, k, mixed, right - k)
            copy(advance(own, right), advance(row, right), length - right)
