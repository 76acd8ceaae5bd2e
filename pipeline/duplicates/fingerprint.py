"""Image -> fingerprint: its lowest frequencies, in a form in which copies of it are easily compared.

A fingerprint holds two grey versions of the image, stretched to a square: its luma, which a greyscale copy keeps,
and its lightness (greatest + least channel), which a rotation of the hues or an exchange of channels keeps. Of each
it holds COUNT x COUNT coefficients of a cosine transform. Mirroring the image flips the signs of every other row or
column of them, turning it also transposes them, inverting it flips them all: nothing is lost, so the comparison can
undo it. Brightness and contrast are divided out.

Equal images have equal fingerprints on any machine: all sums are of whole numbers and exact, whatever their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import cos, pi

import numpy as np
import numpy.typing as npt

from pipeline.images.pixel_sums import project_greys

COUNT = 16  # frequencies each way
PLANES = 2  # luma, lightness
COEFFICIENTS = PLANES * COUNT * COUNT

# Behind the coefficients: the mean red, green and blue, and of each plane the contrast in half levels of grey.
MEAN = slice(COEFFICIENTS, COEFFICIENTS + 3)
CONTRAST = slice(COEFFICIENTS + 3, COEFFICIENTS + 3 + PLANES)
FINGERPRINT_BYTES = COEFFICIENTS + 3 + PLANES
PROJECTION = COEFFICIENTS + 3

# Length of a plane's vector of coefficients. A single one may be half of it; what is more is cut off.
LENGTH = 254.0

# Images have less of each frequency the higher it is, about 1 / frequency: unweighted, two would be alike
# as soon as their lowest few are. A product of a weight for the row and one for the column, so that a weighted
# image can be cropped by weighted matrices, one from each side.
WEIGHT = np.sqrt(1.0 + np.arange(COUNT))  # (16,)

# In levels of grey: what has less contrast is taken for one flat colour; its coefficients are left zero.
FLAT = 1.0

AMPLITUDE = 127  # of the cosines, in whole numbers
BLOCKS = 48  # of pixels, across the shorter side at least: more would change the 16 frequencies little

Cosines = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]  # top, left, bottom, right


def fingerprint(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The fingerprint (FINGERPRINT_BYTES,) of an upright RGB image (h, w, 3) of any size, without padding."""
    return fingerprints(image[None], {0: (0, 0, *image.shape[:2])})[0]


def fingerprints(frames: npt.NDArray[np.uint8], boxes: Mapping[int, Box]) -> npt.NDArray[np.uint8]:
    """Fingerprints (len(boxes), FINGERPRINT_BYTES) of the images within some of the frames (n, H, W, 3).

    boxes says which frames, and for each where in it the image is; the result has the same order. All at once: one
    call for each box that occurs, in which the interpreter's lock is free.
    """
    projections = np.empty((len(frames), PROJECTION))  # (n, PROJECTION)
    rows_of: dict[Box, list[int]] = {}
    for row, box in boxes.items():
        rows_of.setdefault(box, []).append(row)
    for (top, left, bottom, right), rows in rows_of.items():
        tables = _tables(bottom - top, right - left)
        project_greys(frames[:, top:bottom, left:right], np.array(rows, np.int64), *tables, projections)
    return _quantised(projections[list(boxes)])


def _quantised(projections: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Projections (n, PROJECTION) -> fingerprints (n, FINGERPRINT_BYTES). A projection is the coefficients of both
    planes, in levels of grey, and the mean red, green and blue.
    """
    grey = projections[:, :COEFFICIENTS].reshape(-1, PLANES, COUNT, COUNT)  # (n, 2, 16, 16)
    levels = np.rint(grey * _WEIGHTED).astype(np.int64)  # (n, 2, 16, 16)
    weighted = np.sqrt((levels * levels).sum((2, 3)).astype(np.float64))  # (n, 2)
    plain = np.rint(grey * _PLAIN).astype(np.int64)  # (n, 2, 16, 16)
    contrast = np.sqrt((plain * plain).sum((2, 3)).astype(np.float64)) / _UNIT  # (n, 2) in levels of grey
    factors = np.where(contrast < FLAT, 0.0, LENGTH / np.maximum(weighted, 1.0))  # (n, 2)
    result = np.empty((len(projections), FINGERPRINT_BYTES), np.uint8)
    coefficients = np.rint(levels * factors[:, :, None, None]).clip(-127, 127).astype(np.int8)  # (n, 2, 16, 16)
    result[:, :COEFFICIENTS] = coefficients.reshape(-1, COEFFICIENTS).view(np.uint8)
    result[:, MEAN] = np.rint(projections[:, COEFFICIENTS:])
    result[:, CONTRAST] = np.rint(2 * contrast)
    return result


_UNIT = 4096.0  # levels of grey are counted in such fractions: whole numbers, whose squares add up exactly
_ROOT = np.where(np.arange(COUNT) > 0, np.sqrt(2.0), 1.0)  # (16,) so that the squares add up to the variance
_PLAIN = np.outer(_ROOT, _ROOT) * _UNIT  # (16, 16)
_WEIGHTED = np.outer(_ROOT * WEIGHT, _ROOT * WEIGHT) * _UNIT  # (16, 16)


@lru_cache(maxsize=1024)
def _tables(height: int, width: int) -> tuple[int, npt.NDArray[np.floating], Cosines, Cosines, float]:
    """What a size needs: how many rows and columns to add up to one, cosines (16, rows) and (16, columns) for these,
    a flat image's coefficients (16, 16) for a first one of 1, and the factor from sums to levels of grey.

    The cosines are rounded, so a flat image has those coefficients and not only the first.
    """
    block = min(max(1, min(height, width) // BLOCKS), 128)  # the sums of larger ones would not fit 32 bits
    down, across = _cosines(height, block), _cosines(width, block)  # (16, rows), (16, columns)
    # The pixels of each block row and column: the last one may have fewer.
    pixels_down, pixels_across = _pixels(height, block), _pixels(width, block)  # (rows,), (columns,)
    total = float(AMPLITUDE * AMPLITUDE * height * width)
    leak = np.outer(down @ pixels_down, across @ pixels_across) / total  # (16, 16)
    exact = np.float32 if down.shape[1] * AMPLITUDE * 510 * block**2 < 2**24 else np.float64
    return block, down.astype(exact), across, leak, 1.0 / total


@lru_cache(maxsize=1024)
def _cosines(size: int, block: int) -> Cosines:
    """Whole-numbered cosines (16, blocks) at the blocks' middles; zero where there are too few for one."""
    starts = np.arange(0, size, block)  # (blocks,)
    middles = (starts + np.minimum(starts + block, size)) / 2  # (blocks,)
    table = np.zeros((COUNT, len(starts)))  # (16, blocks)
    for frequency in range(min(COUNT, len(starts))):
        table[frequency] = [round(AMPLITUDE * cos(pi * frequency * float(middle) / size)) for middle in middles]
    return table


def _pixels(size: int, block: int) -> npt.NDArray[np.float64]:
    """How many pixels each block has, (blocks,)."""
    starts = np.arange(0, size, block)  # (blocks,)
    return (np.minimum(starts + block, size) - starts).astype(np.float64)
