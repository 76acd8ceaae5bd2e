"""Perceptual fingerprint: the lowest frequencies of an image's discrete cosine transform (DCT).

A fingerprint holds two grey versions of the image, stretched to a square: its luma, which conversion to greyscale
preserves, and its lightness (max + min of the channels), which hue rotations and channel permutations preserve. Of each
it holds FREQUENCIES x FREQUENCIES DCT coefficients. Mirroring the image flips the signs of every other row or column of
them, a rotation by 90 degrees also transposes them, inversion flips them all: nothing is lost, so matching can undo
each. Brightness and contrast are divided out.

Equal images have equal fingerprints on any machine: all sums are of integers and exact in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import cos, pi

import numpy as np
import numpy.typing as npt

FREQUENCIES = 16  # along each axis
PLANES = 2  # luma, lightness
COEFFICIENTS = PLANES * FREQUENCIES * FREQUENCIES

# After the coefficients: the mean red, green and blue, and the contrast of each plane in half levels of grey.
MEAN = slice(COEFFICIENTS, COEFFICIENTS + 3)
CONTRAST = slice(COEFFICIENTS + 3, COEFFICIENTS + 3 + PLANES)
FINGERPRINT_BYTES = COEFFICIENTS + 3 + PLANES
PROJECTION_SIZE = COEFFICIENTS + 3

# Euclidean norm of a plane's vector of coefficients. One coefficient can hold half of it; more is clipped.
NORM = 254.0

# In natural images the amplitude falls off as about 1 / frequency: unweighted, the correlation of two images would
# depend on the lowest few. Separable, so that a weighted matrix from each side can crop weighted coefficients.
WEIGHT = np.sqrt(1.0 + np.arange(FREQUENCIES))  # (16,)

# In levels of grey: an image with less contrast counts as flat, and its coefficients are zero.
MIN_CONTRAST = 1.0

AMPLITUDE = 127  # of the integer cosines
MIN_BLOCKS = 48  # of pixels, along the shorter side: more would change the 16 frequencies little

Cosines = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]  # top, left, bottom, right


def fingerprint(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Compute the fingerprint (FINGERPRINT_BYTES,) of an upright RGB image (h, w, 3) of any size, without padding."""
    return fingerprints(image[None], {0: (0, 0, *image.shape[:2])})[0]


def fingerprints(frames: npt.NDArray[np.uint8], boxes: Mapping[int, Box]) -> npt.NDArray[np.uint8]:
    """Compute the fingerprints (len(boxes), FINGERPRINT_BYTES) of images within some of the frames (n, H, W, 3).

    boxes  frame index -> the image's box within that frame; the result has the same order

    Makes one call for each distinct box, which releases the GIL.
    """
    from pipeline.images.pixel_sums import project_greys  # imports Numba, for which the start of a build need not wait

    projections = np.empty((len(frames), PROJECTION_SIZE))  # (n, PROJECTION_SIZE)
    rows_of: dict[Box, list[int]] = {}
    for row, box in boxes.items():
        rows_of.setdefault(box, []).append(row)
    for (top, left, bottom, right), rows in rows_of.items():
        tables = _tables(bottom - top, right - left)
        project_greys(frames[:, top:bottom, left:right], np.array(rows, np.int64), *tables, projections)
    return _quantise(projections[list(boxes)])


def _quantise(projections: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Quantise projections (n, PROJECTION_SIZE) to fingerprints (n, FINGERPRINT_BYTES).

    A projection is the coefficients of both planes, in levels of grey, and the mean red, green and blue.
    """
    grey = projections[:, :COEFFICIENTS].reshape(-1, PLANES, FREQUENCIES, FREQUENCIES)  # (n, 2, 16, 16)
    weighted = np.rint(grey * _WEIGHTED_SCALE).astype(np.int64)  # (n, 2, 16, 16)
    norms = np.sqrt((weighted * weighted).sum((2, 3)).astype(np.float64))  # (n, 2)
    levels = np.rint(grey * _SCALE).astype(np.int64)  # (n, 2, 16, 16)
    contrast = np.sqrt((levels * levels).sum((2, 3)).astype(np.float64)) / _FIXED_POINT  # (n, 2) in levels of grey
    factors = np.where(contrast < MIN_CONTRAST, 0.0, NORM / np.maximum(norms, 1.0))  # (n, 2)
    result = np.empty((len(projections), FINGERPRINT_BYTES), np.uint8)
    coefficients = np.rint(weighted * factors[:, :, None, None]).clip(-127, 127).astype(np.int8)  # (n, 2, 16, 16)
    result[:, :COEFFICIENTS] = coefficients.reshape(-1, COEFFICIENTS).view(np.uint8)
    result[:, MEAN] = np.rint(projections[:, COEFFICIENTS:])
    result[:, CONTRAST] = np.rint(2 * contrast)
    return result


_FIXED_POINT = 4096.0  # units in a level of grey: sums of squared integers are exact
_ORTHONORMAL = np.where(np.arange(FREQUENCIES) > 0, np.sqrt(2.0), 1.0)  # (16,) so that squares add up to the variance
_SCALE = np.outer(_ORTHONORMAL, _ORTHONORMAL) * _FIXED_POINT  # (16, 16)
_WEIGHTED_SCALE = np.outer(_ORTHONORMAL * WEIGHT, _ORTHONORMAL * WEIGHT) * _FIXED_POINT  # (16, 16)


@lru_cache(maxsize=1024)
def _tables(height: int, width: int) -> tuple[int, npt.NDArray[np.floating], Cosines, Cosines, float]:
    """The arguments `block`, `cosines_y`, `cosines_x`, `leakage` and `unit` of `project_greys` for an image size."""
    block = min(max(1, min(height, width) // MIN_BLOCKS), 128)  # the sums of larger ones would not fit 32 bits
    cosines_y, cosines_x = _cosines(height, block), _cosines(width, block)  # (16, rows), (16, columns)
    pixels_y, pixels_x = _block_sizes(height, block), _block_sizes(width, block)  # (rows,), (columns,)
    total = float(AMPLITUDE * AMPLITUDE * height * width)
    leakage = np.outer(cosines_y @ pixels_y, cosines_x @ pixels_x) / total  # (16, 16)
    exact = np.float32 if cosines_y.shape[1] * AMPLITUDE * 510 * block**2 < 2**24 else np.float64
    return block, cosines_y.astype(exact), cosines_x, leakage, 1.0 / total


@lru_cache(maxsize=1024)
def _cosines(size: int, block: int) -> Cosines:
    """Integer cosines (16, blocks) at the centres of the blocks; zero for frequencies beyond the number of blocks."""
    starts = np.arange(0, size, block)  # (blocks,)
    centres = starts + _block_sizes(size, block) / 2  # (blocks,)
    table = np.zeros((FREQUENCIES, len(starts)))  # (16, blocks)
    for frequency in range(min(FREQUENCIES, len(starts))):
        table[frequency] = [round(AMPLITUDE * cos(pi * frequency * float(centre) / size)) for centre in centres]
    return table


def _block_sizes(size: int, block: int) -> npt.NDArray[np.float64]:
    """Pixels in each block, (blocks,): the last one may have fewer."""
    starts = np.arange(0, size, block)  # (blocks,)
    return (np.minimum(starts + block, size) - starts).astype(np.float64)
