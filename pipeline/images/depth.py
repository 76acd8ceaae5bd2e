"""Values of more than 8 bits: which become black and white. Here for grey; `deep_colour.py` is for colour.

Files do not say it: 16 bits may hold 12, a thermal camera's values fill a small part of the range, and floating-point
values have none. One pair of values (black, white), the depth, holds for a whole dataset: if each image were stretched
to its own, equal values would become different greys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.images.options import Depth

INTEGER_BITS = (8, 10, 12, 14, 16)  # of usual cameras and scanners
FLOAT_RANGES = ((0.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
MIN_FILLED = 0.25  # of a usual range; values that fill less, such as a thermal camera's, are stretched

# Tags of a TIFF: bits of a value, whether 0 is white (0) or black (1), and unsigned (1), signed (2) or float (3).
_BITS, _PHOTOMETRIC, _SAMPLES = 258, 262, 339

BAND_PIXELS = 2**20  # converted at a time, so that float64 values take little memory


class ValueRange(NamedTuple):
    """The lowest and highest finite value of an image, and whether its values are whole numbers."""

    low: float
    high: float
    is_integer: bool
    pixels: int


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def value_range(image: Image.Image) -> ValueRange | None:
    """The range of an image's values, or None if no value is finite."""
    low, high = math.inf, -math.inf
    for top in _bands(image):
        values = _band(image, top)  # (h, W)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return ValueRange(low, high, image.mode != "F", image.width * image.height) if low <= high else None


def choose_depth(ranges: Iterable[ValueRange]) -> Depth | None:
    """Choose the depth for images with these ranges of values: None if there are none.

    The first usual range that contains all values, if they fill a quarter of it; or else from the lowest to the
    highest value.
    """
    ranges = list(ranges)
    if not ranges:
        return None
    low, high = min(each.low for each in ranges), max(each.high for each in ranges)
    is_integer = all(each.is_integer for each in ranges)
    usual = [(0.0, 2.0**bits - 1) for bits in INTEGER_BITS] if is_integer else FLOAT_RANGES
    fitting = next((each for each in usual if each[0] <= low and high <= each[1]), None)
    if fitting and (high - low >= MIN_FILLED * (fitting[1] - fitting[0]) or low == high):
        return fitting
    return (low, high) if low < high else (min(0.0, low), max(1.0, high))


def to_eight_bits(image: Image.Image, depth: Depth | None, transparent: int | None) -> Image.Image:
    """Convert deep grey to mode L. Values beyond black and white become these; what is not finite becomes black.

    With a depth, a TIFF that says that its lowest value is white comes out as it should: it used to be inverted.

    `transparent` is a value that becomes white. Without a depth, as in datasets and models that have none, it is chosen
    for each image alone: 16-bit values span 0..65535. Others have the first usual range that contains all values (I:
    0..65535; F: 0..1, then 0..255), or else from the minimum to the maximum.
    Raises ValueError where no pixel is finite.
    """
    black, white = depth or _own_depth(image)
    eight = np.empty((image.height, image.width), np.uint8)  # (H, W)
    any_finite = False
    for top in _bands(image):
        values = _band(image, top)  # (h, W)
        finite = np.isfinite(values)
        any_finite |= bool(finite.any())
        grey = np.where(finite, (values - black) * (255.0 / (white - black or 1.0)), 0.0)  # (h, W)
        grey = np.rint(grey).clip(0, 255)
        if depth and _tiff_tag(image, _PHOTOMETRIC) == 0:
            grey[finite] = 255 - grey[finite]
        if transparent is not None:
            grey[values == transparent] = 255
        eight[top : top + len(values)] = grey
    if not any_finite:
        raise ValueError("no pixel has a finite value")
    return Image.fromarray(eight)


def _own_depth(image: Image.Image) -> Depth:
    if image.mode.startswith("I;"):
        return 0.0, 65535.0
    found = value_range(image)
    if found is None:
        raise ValueError("no pixel has a finite value")
    usual = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    return next(((0.0, top) for top in usual if found.low >= 0 and found.high <= top), (found.low, found.high))


def _bands(image: Image.Image) -> range:
    """The first row of each band."""
    return range(0, image.height, max(1, BAND_PIXELS // image.width))


def _band(image: Image.Image, top: int) -> npt.NDArray[np.float64]:
    """The values of the band that begins at this row, float64 (h, W)."""
    bottom = min(image.height, top + max(1, BAND_PIXELS // image.width))
    values = np.array(image.crop((0, top, image.width, bottom)))  # (h, W)
    if image.mode == "I" and _tiff_tag(image, _BITS) == (32,) and _tiff_tag(image, _SAMPLES) in (None, (1,)):
        values = values.view(np.uint32)  # which Pillow takes for int32
    return values.astype(np.float64)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """A tag of a TIFF; None where it is missing, and for other formats."""
    return getattr(image, "tag_v2", {}).get(tag)
