"""Numba kernels over every pixel of a build: colour statistics, and the projections that fingerprints are made of.

Each is one call, which releases the GIL. In NumPy each would be a dozen short calls, between which threads wait for the
GIL: two threads were slower than one. All sums are of integers and exact in any order.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from logpose.common.kernels import cached_njit

_Float = TypeVar("_Float", np.float32, np.float64)


@cached_njit(nogil=True, error_model="numpy")
def add_colours(image: npt.NDArray[np.uint8], sums: npt.NDArray[np.uint64], squares: npt.NDArray[np.uint64]) -> None:
    """Add each channel's values in an image (H, W, 3) to `sums` (3,), and their squares to `squares` (3,)."""
    height, width, _ = image.shape
    rows = image.reshape(height, 3 * width)  # (H, 3W)
    column = np.zeros(3 * width, np.uint32)  # (3W,) over at most 2**16 rows, so that they fit
    column_squares = np.zeros(3 * width, np.uint32)  # (3W,)
    for y in range(height):
        row = rows[y]
        for x in range(3 * width):
            value = np.uint32(row[x])
            column[x] += value
            column_squares[x] += value * value
        if y % 2**16 == 2**16 - 1 or y == height - 1:
            for x in range(3 * width):
                sums[x % 3] += np.uint64(column[x])
                squares[x % 3] += np.uint64(column_squares[x])
                column[x] = column_squares[x] = np.uint32(0)


# All sums are exact, so their order does not matter.
@cached_njit(error_model="numpy", fastmath={"reassoc", "contract"})
def _sum_greys(
    image: npt.NDArray[np.uint8],
    block: int,
    cosines_y: npt.NDArray[_Float],
    cosines_x: npt.NDArray[np.float64],
    out: npt.NDArray[np.float64],
    colours: npt.NDArray[np.uint64],
) -> None:
    """Write the sums for `project_greys`: out (2, F, F) of both grey planes, colours (3,) of red, green and blue."""
    height, width, _ = image.shape
    frequencies, rows = cosines_y.shape
    columns = cosines_x.shape[1]
    channels = np.empty((3, columns), np.uint32)  # (3, blocks across)
    greys = np.empty((4, 2 * columns), cosines_y.dtype)  # (block rows at a time, 2 x blocks across)
    sums = np.zeros((frequencies, 2 * columns), cosines_y.dtype)  # (F, 2 x blocks across)
    colours[:] = 0
    for top in range(0, rows, 4):
        for row in range(4):
            if top + row >= rows:
                greys[row] = 0
                continue
            channels[:] = 0
            for y in range((top + row) * block, min((top + row + 1) * block, height)):
                for first in range(block):  # within a block: too few iterations for a fast inner loop
                    for column in range((width - first + block - 1) // block):
                        x = column * block + first
                        channels[0, column] += np.uint32(image[y, x, 0])
                        channels[1, column] += np.uint32(image[y, x, 1])
                        channels[2, column] += np.uint32(image[y, x, 2])
            for x in range(columns):
                red, green, blue = channels[0, x], channels[1, x], channels[2, x]
                luma = np.uint32(77) * red + np.uint32(150) * green + np.uint32(29) * blue + np.uint32(128)
                greys[row, x] = np.float32(np.int32(luma >> np.uint32(8)))
                greys[row, columns + x] = np.float32(np.int32(max(red, green, blue) + min(red, green, blue)))
                colours[0] += np.uint64(red)
                colours[1] += np.uint64(green)
                colours[2] += np.uint64(blue)
        for frequency in range(frequencies):
            # Rows beyond the last are zero, so any factor will do.
            factor0, factor1 = cosines_y[frequency, top], cosines_y[frequency, min(top + 1, rows - 1)]
            factor2 = cosines_y[frequency, min(top + 2, rows - 1)]
            factor3 = cosines_y[frequency, min(top + 3, rows - 1)]
            for x in range(2 * columns):
                total = factor0 * greys[0, x] + factor1 * greys[1, x] + factor2 * greys[2, x] + factor3 * greys[3, x]
                sums[frequency, x] += total
    for plane in range(2):
        for frequency in range(frequencies):
            for other in range(frequencies):
                product = 0.0
                for x in range(columns):
                    product += np.float64(sums[frequency, plane * columns + x]) * cosines_x[other, x]
                out[plane, frequency, other] = product


# No fastmath here: the last steps round, so their order matters.
@cached_njit(nogil=True, error_model="numpy")
def project_greys(
    images: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    block: int,
    cosines_y: npt.NDArray[_Float],
    cosines_x: npt.NDArray[np.float64],
    leakage: npt.NDArray[np.float64],
    unit: float,
    out: npt.NDArray[np.float64],
) -> None:
    """Project two grey planes of some images on cosines.

    images     (n, h, w, 3)
    rows       (r,) indices of the images to project
    block      side of the blocks that are first summed up, in pixels; the last ones may be smaller
    cosines_y  (F, blocks down)
    cosines_x  (F, blocks across)
    leakage    (F, F) coefficients of a flat image with a mean of 1, which rounded cosines leave: subtracted
    unit       factor from sums to levels of grey
    out        (n, 2 F F + 3): the coefficients of the luma, rounded for each block; those of the lightness, the mean of
               the largest and smallest of red, green and blue; then the means of these three

    Exact, except for the last steps, as long as the sums of products with `cosines_y` fit its precision.
    """
    _, height, width, _ = images.shape
    frequencies = len(cosines_y)
    sums = np.empty((2, frequencies, frequencies))  # (2, F, F)
    colours = np.empty(3, np.uint64)  # (3,)
    for row in rows:
        _sum_greys(images[row], block, cosines_y, cosines_x, sums, colours)
        position = 0
        for plane in range(2):
            factor = unit if plane == 0 else 0.5 * unit
            first = sums[plane, 0, 0]
            for u in range(frequencies):
                for v in range(frequencies):
                    out[row, position] = (sums[plane, u, v] - first * leakage[u, v]) * factor
                    position += 1
        for channel in range(3):
            out[row, position + channel] = np.float64(colours[channel]) / np.float64(height * width)
