"""Colour of 16 bits a channel, of which Pillow keeps the high bytes: the low ones are decoded in a second pass.

The depth of the dataset then says which values become black and white, as for grey: see `pipeline.images.depth`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.images.depth import BAND_PIXELS, ValueRange
from pipeline.images.opening import open_image
from pipeline.images.options import Depth

# How the pixels lie in the file -> how Pillow would have to be told that they do, to keep the low bytes.
_OTHER = "B" if sys.byteorder == "little" else "L"  # than the byte order of this machine
_LOW = {
    f"{mode};16{order}": f"{mode};16{swapped}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, swapped in (("B", "L"), ("L", "B"), ("N", _OTHER))
} | {"LA;16B": "RGBA"}  # of which red and green are the two bytes of grey


class DeepColour:
    """The 16-bit values of an image, a band of rows at a time. `image` is the one that Pillow decodes."""

    def __init__(self, file: IO[bytes], image: Image.Image, raw_mode: str, max_pixels: int) -> None:
        self._image, self._is_grey = image, raw_mode == "LA;16B"
        file.seek(0)
        low: Any = open_image(file, max_pixels)
        for number, (codec, extents, offset, args) in enumerate(low.tile):
            swapped = _LOW[raw_mode] if isinstance(args, str) else (_LOW[raw_mode], *args[1:])
            low.tile[number] = type(low.tile[number])(codec, extents, offset, swapped)
        low.load()
        self._low: Image.Image = low
        image.load()

    def _bands(self) -> Iterator[tuple[tuple[int, int, int, int], npt.NDArray[Any]]]:
        """The box of each band, and its values, uint16 (h, W, 3)."""
        width, height = self._image.size
        rows = max(1, BAND_PIXELS // width)
        for top in range(0, height, rows):
            box = (0, top, width, min(height, top + rows))
            low = np.array(self._low.crop(box), np.uint16)  # (h, W, 3 or 4)
            if self._is_grey:
                yield box, np.repeat(low[..., :1] << 8 | low[..., 1:2], 3, axis=2)
            else:
                yield box, np.array(self._image.crop(box), np.uint16)[..., :3] << 8 | low[..., :3]

    def range(self) -> ValueRange:
        """The range of the values."""
        low, high = math.inf, -math.inf
        for _, values in self._bands():
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        return ValueRange(low, high, True, self._image.width * self._image.height)

    def apply(self, depth: Depth) -> None:
        """Replace the colours of the image by those that the depth gives; what is transparent stays so."""
        for box, values in self._bands():
            bands = [Image.fromarray(_eight_bits(channel, depth)) for channel in values.transpose(2, 0, 1)]
            if self._image.mode == "RGBA":
                bands.append(self._image.crop(box).getchannel("A"))
            self._image.paste(Image.merge(self._image.mode, bands), box)
        transparent = self._image.info.get("transparency")
        if isinstance(transparent, tuple):
            self._image.info["transparency"] = tuple(_eight_bits(np.array(transparent), depth).tolist())
        self._low = Image.new("L", (1, 1))  # so that the memory is free for what follows


def open_deep_colour(file: IO[bytes] | Image.Image, image: Image.Image, max_pixels: int) -> DeepColour | None:
    """The 16-bit values of an image that is opened from this file, and not loaded; None if it has none."""
    tiles: list[Any] = getattr(image, "tile", [])
    args = tiles[0].args if tiles else None
    raw_mode = args[0] if isinstance(args, tuple) and args else args
    if isinstance(file, Image.Image) or raw_mode not in _LOW or image.mode not in ("RGB", "RGBA"):
        return None
    return DeepColour(file, image, raw_mode, max_pixels)


def _eight_bits(values: npt.NDArray[Any], depth: Depth) -> npt.NDArray[np.uint8]:
    black, white = depth
    return np.rint((values.astype(np.float64) - black) * (255.0 / (white - black))).clip(0, 255).astype(np.uint8)
