"""What passes over every pixel of a build, in Numba: one call each, without the interpreter's lock.

In NumPy each of these is a dozen short calls, between which two threads wait for each other's lock; together
they were slower on two threads than on one. All sums are of whole numbers and exact, whatever their order.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

_Float = TypeVar("_Float", np.float32, np.float64)


@njit(nogil=True, cache=True, error_model="numpy")
def add_colours(image: npt.NDArray[np.uint8], sums: npt.NDArray[np.uint64], squares: npt.NDArray[np.uint64]) -> None:
    """Add the values and their squares of an image (H, W, 3), a channel, to sums (3,) and squares (3,)."""
    height, width, _ = image.shape
    rows = image.reshape(height, 3 * width)  # (H, 3W)
    column = np.zeros(3 * width, np.uint32)  # (3W,) of 2**16 rows at most, so that they fit
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


# Sums may be taken in any order, since all are exact.
@njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _sum_greys(
    image: npt.NDArray[np.uint8],
    block: int,
    down: npt.NDArray[_Float],
    across: npt.NDArray[np.float64],
    out: npt.NDArray[np.float64],
    colours: npt.NDArray[np.uint64],
) -> None:
    """The sums that `project_greys` needs: out (2, F, F) of two kinds of grey, colours (3,) of red, green and blue."""
    height, width, _ = image.shape
    frequencies, rows = down.shape
    columns = across.shape[1]
    channels = np.empty((3, columns), np.uint32)  # (3, blocks across)
    greys = np.empty((4, 2 * columns), down.dtype)  # (block rows at a time, 2 x blocks across)
    sums = np.zeros((frequencies, 2 * columns), down.dtype)  # (F, 2 x blocks across)
    colours[:] = 0
    for top in range(0, rows, 4):
        for row in range(4):
            if top + row >= rows:
                greys[row] = 0
                continue
            channels[:] = 0
            for y in range((top + row) * block, min((top + row + 1) * block, height)):
                for first in range(block):  # of each block's columns: a short loop inside would cost more
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
            # Rows that are not there are zero, whatever they are multiplied with.
            factor0, factor1 = down[frequency, top], down[frequency, min(top + 1, rows - 1)]
            factor2, factor3 = down[frequency, min(top + 2, rows - 1)], down[frequency, min(top + 3, rows - 1)]
            for x in range(2 * columns):
                here = factor0 * greys[0, x] + factor1 * greys[1, x] + factor2 * greys[2, x] + factor3 * greys[3, x]
                sums[frequency, x] += here
    for plane in range(2):
        for frequency in range(frequencies):
            for other in range(frequencies):
                total = 0.0
                for x in range(columns):
                    total += np.float64(sums[frequency, plane * columns + x]) * across[other, x]
                out[plane, frequency, other] = total


# Here the order does count: no fast mathematics.
@njit(nogil=True, cache=True, error_model="numpy")
def project_greys(
    images: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    block: int,
    down: npt.NDArray[_Float],
    across: npt.NDArray[np.float64],
    leak: npt.NDArray[np.float64],
    unit: float,
    out: npt.NDArray[np.float64],
) -> None:
    """Project two kinds of grey of some images on cosines.

    images  (n, h, w, 3), of which those at rows (r,) are meant
    block     so many rows and columns are added up to one; what is left over at the end to a smaller one
    down      (F, blocks down), across (F, blocks across)
    leak      (F, F) what an image that is flat, with a first sum of 1, has of each: taken off
    unit      what sums are multiplied with
    out       (n, 2 F F + 3): the sums of the luma of each block, rounded, and of its lightness, which is the mean of
              the greatest and the least of red, green and blue; then the means of these three

    Exact, but for the last steps, as long as sums of products with `down` fit its precision.
    """
    _, height, width, _ = images.shape
    frequencies = len(down)
    sums = np.empty((2, frequencies, frequencies))  # (2, F, F)
    colours = np.empty(3, np.uint64)  # (3,)
    for row in rows:
        _sum_greys(images[row], block, down, across, sums, colours)
        place = 0
        for plane in range(2):
            factor = unit if plane == 0 else 0.5 * unit
            first = sums[plane, 0, 0]
            for u in range(frequencies):
                for v in range(frequencies):
                    out[row, place] = (sums[plane, u, v] - first * leak[u, v]) * factor
                    place += 1
        for channel in range(3):
            out[row, place + channel] = np.float64(colours[channel]) / np.float64(height * width)
