"""Convert Pillow's image modes to RGB: transparency, palettes, and grey of more than 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.images.depth import BAND_PIXELS, is_deep, to_eight_bits
from pipeline.images.options import Depth

# Padding and transparent pixels are both white, so that a logo cut out on transparency has no visible seam.
# Repeating the edge pixels would draw stripes, which no photograph has.
WHITE = 255  # of each channel

# PNG gives its transparent grey in the file's own bit depth, while Pillow scales the pixels to 8 bits.
GREY_FACTORS = {"1": 255, "L;2": 85, "L;4": 17}


def to_rgb(image: Image.Image, grey_factor: int, depth: Depth | None = None) -> Image.Image:
    """Convert an image of any mode, loaded, to RGB, or to L where it is grey; transparent pixels become white.

    `grey_factor` is what the function of that name returned before the image was loaded; `depth` gives the values of
    black and white of deep grey (see `pipeline.images.depth`). Raises ValueError for grey of which no pixel is finite.
    """
    mode, transparent = image.mode, image.info.get("transparency")
    if is_deep(image):
        return to_eight_bits(image, depth, transparent if isinstance(transparent, int) else None)
    if mode in ("1", "L") and isinstance(transparent, int):
        grey = np.array(image.convert("L"))  # (H, W)
        grey[grey == transparent * grey_factor] = WHITE
        return Image.fromarray(grey)
    if mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # In 16 bits, while Pillow has reduced each pixel to its high byte.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if image.has_transparency_data:
        return _on_white(image)
    return image if mode in ("RGB", "L") else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Composite on white, a band at a time: Pillow takes four images in memory to do so at once."""
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return _band_on_white(image)
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        result.paste(_band_on_white(image.crop(box)), box)
    return result


def _band_on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")


def grey_factor(image: Image.Image) -> int:
    """Return the factor from grey values in the file to those of the loaded image: 1, except for PNGs of few bits."""
    tiles = getattr(image, "tile", [])
    raw_mode = tiles[0][3] if image.format == "PNG" and tiles else None
    return GREY_FACTORS.get(raw_mode, 1) if isinstance(raw_mode, str) else 1
