"""Convert Pillow's image modes to RGB: transparency, palettes, and grey of more than 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Padding and transparent pixels are both white, so that a logo cut out on transparency has no visible seam.
# Repeating the edge pixels would draw stripes, which no photograph has.
WHITE = 255  # of each channel

# PNG gives its transparent grey in the file's own bit depth, while Pillow scales the pixels to 8 bits.
GREY_FACTORS = {"1": 255, "L;2": 85, "L;4": 17}


def to_rgb(image: Image.Image, grey_factor: int) -> Image.Image:
    """Convert an image of any mode, loaded, to RGB, with transparent pixels composited on white.

    `grey_factor` is what the function of that name returned before the image was loaded. Raises ValueError for grey of
    which no pixel is finite.
    """
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;"):
        return _deep_grey_to_rgb(image)
    if mode in ("1", "L") and isinstance(image.info.get("transparency"), int):
        grey = np.array(image.convert("L"))  # (H, W)
        grey[grey == image.info["transparency"] * grey_factor] = WHITE
        return Image.fromarray(grey).convert("RGB")
    if mode == "RGB" and isinstance(image.info.get("transparency"), tuple):
        colour = image.info["transparency"]
        if max(colour) > 255:  # in 16 bits, while Pillow has reduced each pixel to its high byte
            image.info["transparency"] = tuple(value >> 8 for value in colour)
    if mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or float, to 8 bits (Pillow's own conversion clips at 255).

    16-bit values span 0..65535. Modes I and F do not define white; their range is the first usual one that contains all
    values (I: 0..65535; F: 0..1, then 0..255), or else from the minimum to the maximum. If these two are equal, the
    image is black.
    """
    grey = np.array(image, dtype=np.float64)  # (H, W)
    finite = np.isfinite(grey)
    if not finite.any():
        raise ValueError("no pixel has a finite value")
    low, high = float(grey[finite].min()), float(grey[finite].max())
    usual = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    black, white = next(((0.0, top) for top in usual if low >= 0 and high <= top), (low, high))
    grey = np.where(finite, (grey - black) * (255.0 / (white - black or 1.0)), 0.0)
    eight = np.rint(grey).clip(0, 255).astype(np.uint8)  # (H, W)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[np.array(image) == transparent] = WHITE
    return Image.fromarray(eight).convert("RGB")


def grey_factor(image: Image.Image) -> int:
    """Return the factor from grey values in the file to those of the loaded image: 1, except for PNGs of few bits."""
    tiles = getattr(image, "tile", [])
    raw_mode = tiles[0][3] if image.format == "PNG" and tiles else None
    return GREY_FACTORS.get(raw_mode, 1) if isinstance(raw_mode, str) else 1
