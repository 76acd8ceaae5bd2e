"""Images as data URIs for the report: thumbnails, heatmap overlays and a confusion matrix."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.dataset.store import Split

MAX_SIDE = 128  # pixels of the longer side
_QUALITY = 85
_HEAT_COLOURS = np.array([(70, 50, 160), (200, 60, 110), (245, 130, 50), (255, 225, 90)], np.float64)  # (4, 3), 0 to 1
_MAX_OPACITY = 0.75  # of a heatmap over its image


def read_rows(split: Split, rows: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Read some rows of a split: row number -> image (H, W, 3). Raises DamageError."""
    numbers = sorted(set(rows))
    return dict(zip(numbers, split.read_rows(np.array(numbers, np.int64)), strict=True))


def thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    """An image (H, W, 3) as a data URI, reduced to MAX_SIDE, never enlarged."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _uri(image)


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating]) -> str:
    """An image (H, W, 3) in grey, coloured by `heat` (H, W), 0 to 1, as a data URI; its longer side is MAX_SIDE."""
    height, width = heat.shape
    scale = MAX_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BICUBIC))  # (h, w)
    resized = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(resized), 0.0, 1.0)[..., None]  # (h, w, 1)
    stops = np.linspace(0.0, 1.0, len(_HEAT_COLOURS))
    colours = np.stack([np.interp(strength[..., 0], stops, _HEAT_COLOURS[:, i]) for i in range(3)], axis=2)  # (h, w, 3)
    opacity = _MAX_OPACITY * strength  # (h, w, 1)
    mixed = (0.35 * 255 + 0.65 * grey[..., None]) * (1 - opacity) + colours * opacity  # (h, w, 3)
    return _uri(Image.fromarray(mixed.round().astype(np.uint8)))


def confusion_png(fractions: npt.NDArray[np.floating], correct: str, wrong: str) -> str:
    """A confusion matrix (C, C), 0 to 1, as a PNG data URI with a pixel per cell.

    The diagonal has the colour `correct`, the rest `wrong`, both #rrggbb; the fraction is the opacity.
    """
    pixels = np.zeros((*fractions.shape, 4), np.uint8)  # (C, C, 4)
    pixels[..., :3] = _rgb(wrong)
    pixels[np.arange(len(fractions)), np.arange(len(fractions)), :3] = _rgb(correct)
    pixels[..., 3] = np.round(255 * fractions**0.5)  # the square root makes small fractions visible
    return _uri(Image.fromarray(pixels), "png")


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def _uri(image: Image.Image, kind: str = "jpeg") -> str:
    file = io.BytesIO()
    if kind == "jpeg":
        image.save(file, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    else:
        image.save(file, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
