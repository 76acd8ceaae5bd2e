"""Picture -> fingerprint: its lowest frequencies, in a form in which copies of it are easily compared.

A fingerprint holds two grey versions of the picture, stretched to a square: its luma, which a greyscale copy keeps,
and its lightness (greatest + least channel), which a rotation of the hues or an exchange of channels keeps. Of each
it holds COUNT x COUNT coefficients of a cosine transform. Mirroring the picture flips the signs of every other row or
column of them, turning it also transposes them, inverting it flips them all: nothing is lost, so the comparison can
undo it. Brightness and contrast are divided out.

Equal pictures have equal fingerprints on any machine: all sums are of whole numbers and exact, whatever their order.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi

import numpy as np
import numpy.typing as npt

COUNT = 16  # frequencies each way
PLANES = 2  # luma, lightness
COEFFICIENTS = PLANES * COUNT * COUNT

# Behind the coefficients: the mean red, green and blue, and of each plane the contrast in half levels of grey.
MEAN = slice(COEFFICIENTS, COEFFICIENTS + 3)
CONTRAST = slice(COEFFICIENTS + 3, COEFFICIENTS + 3 + PLANES)
FINGERPRINT_BYTES = COEFFICIENTS + 3 + PLANES

# Length of a plane's vector of coefficients. A single one may be half of it; what is more is cut off.
LENGTH = 254.0

# Pictures have less of each frequency the higher it is, about 1 / frequency: unweighted, two would be alike
# as soon as their lowest few are. A product of a weight for the row and one for the column, so that a weighted
# picture can be cropped by weighted matrices, one from each side.
WEIGHT = np.sqrt(1.0 + np.arange(COUNT))  # (16,)

# In levels of grey: what has less contrast is taken for one flat colour; its coefficients are left zero.
FLAT = 1.0

AMPLITUDE = 127  # of the cosines, in whole numbers
LUMA = np.array([77.0, 150.0, 29.0]) / 256  # (3,)
EXACT_WIDTH = 2**24 // (510 * AMPLITUDE)  # widest row whose sums are exact in float32

Cosines = npt.NDArray[np.float64]


def fingerprint(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The fingerprint (FINGERPRINT_BYTES,) of an upright RGB picture (h, w, 3) of any size, without padding."""
    height, width = picture.shape[:2]
    across, down, scale, leak = _tables(height, width)
    channels = np.ascontiguousarray(picture.transpose(2, 0, 1))  # (3, h, w)
    rows = np.empty((4, height, COUNT))  # (4, h, 16) of red, green, blue, 2 x lightness
    # One at a time: in the cache, and too little for a BLAS to start threads for.
    for index, channel in enumerate(channels):
        rows[index] = channel.astype(across.dtype) @ across
    rows[3] = np.add(channels.max(0), channels.min(0), dtype=across.dtype) @ across
    sums = down @ rows  # (4, 16, 16)
    means = sums[:, 0, 0] / (AMPLITUDE * AMPLITUDE * height * width)  # (4,)
    grey = np.stack([LUMA[0] * sums[0] + LUMA[1] * sums[1] + LUMA[2] * sums[2], sums[3] * 0.5])  # (2, 16, 16)
    grey -= grey[:, :1, :1] * leak
    levels = np.rint(grey * scale[:, None]).astype(np.int64)  # (2, 2, 16, 16): weighted or not, plane, u, v
    weighted, plain = np.sqrt((levels * levels).sum((2, 3)).astype(np.float64))  # (2,), (2,)
    contrast = plain / _UNIT  # (2,) in levels of grey
    factors = np.where(contrast < FLAT, 0.0, LENGTH / np.maximum(weighted, 1.0))  # (2,)
    result = np.empty(FINGERPRINT_BYTES, np.uint8)
    coefficients = np.rint(levels[0] * factors[:, None, None]).clip(-127, 127).astype(np.int8)  # (2, 16, 16)
    result[:COEFFICIENTS] = coefficients.reshape(-1).view(np.uint8)
    result[MEAN] = np.rint(means[:3])
    result[CONTRAST] = np.rint(2 * contrast)
    return result


_UNIT = 4096.0  # levels of grey are counted in such fractions: whole numbers, whose squares add up exactly


@lru_cache(maxsize=1024)
def _tables(height: int, width: int) -> tuple[npt.NDArray[np.floating], Cosines, Cosines, Cosines]:
    """What a size needs: cosines (w, 16) and (16, h), factors (2, 16, 16), a flat picture's coefficients (16, 16).

    The cosines are rounded, so a flat picture has, for a mean of 1, those coefficients and not only the first.
    """
    across, down = _cosines(width), _cosines(height)  # (16, w), (16, h)
    area = float(AMPLITUDE * AMPLITUDE * height * width)
    leak = np.outer(down.sum(1), across.sum(1)) / area  # (16, 16)
    root = np.where(np.arange(COUNT) > 0, np.sqrt(2.0), 1.0)  # (16,) so that the squares add up to the variance
    weight = WEIGHT * root  # (16,)
    scale = np.stack([np.outer(weight, weight), np.outer(root, root)]) * (_UNIT / area)  # (2, 16, 16)
    exact = np.float32 if width <= EXACT_WIDTH else np.float64
    return np.ascontiguousarray(across.T, dtype=exact), down, scale, leak


@lru_cache(maxsize=1024)
def _cosines(size: int) -> Cosines:
    """Whole-numbered cosines (16, size) at the middles of the pixels; zero where the pixels are too few for one."""
    table = np.zeros((COUNT, size))  # (16, size)
    for frequency in range(min(COUNT, size)):
        table[frequency] = [round(AMPLITUDE * cos(pi * frequency * (x + 0.5) / size)) for x in range(size)]
    return table
