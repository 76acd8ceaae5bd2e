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
    """Add the values and their squares of a picture (H, W, 3), a channel, to sums (3,) and squares (3,)."""
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


@njit(nogil=True, cache=True, error_model="numpy")
def to_greys(picture: npt.NDArray[np.uint8], greys: npt.NDArray[_Float], colours: npt.NDArray[np.uint64]) -> None:
    """Two kinds of grey of a picture (h, w, 3): greys (2, h, w) of its luma, rounded, and of twice its lightness, which
    is the greatest plus the least of red, green and blue. The sums of these three go to colours (3,).
    """
    height, width, _ = picture.shape
    colours[:] = 0
    for y in range(height):
        # Not numbers of 64 bits, which processors handle fewer of at a time; 2**24 pixels of a row would fit.
        red_sum, green_sum, blue_sum = np.uint32(0), np.uint32(0), np.uint32(0)
        for x in range(width):
            red, green, blue = np.uint32(picture[y, x, 0]), np.uint32(picture[y, x, 1]), np.uint32(picture[y, x, 2])
            red_sum += red
            green_sum += green
            blue_sum += blue
            luma = np.uint32(77) * red + np.uint32(150) * green + np.uint32(29) * blue + np.uint32(128)
            greys[0, y, x] = np.float32(np.int32(luma >> np.uint32(8)))
            greys[1, y, x] = np.float32(np.int32(max(red, green, blue) + min(red, green, blue)))
        colours[0] += np.uint64(red_sum)
        colours[1] += np.uint64(green_sum)
        colours[2] += np.uint64(blue_sum)
