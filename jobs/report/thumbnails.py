"""Images of a dataset as the page holds them: small JPEGs, written into its text."""

import base64
import io
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.dataset.store import Split

SIDE = 128  # pixels of the longer side at most
_QUALITY = 85
# The colours of a map, from what hardly counts to what counts most, and how far they cover the image.
_HEAT = np.array([(70, 50, 160), (200, 60, 110), (245, 130, 50), (255, 225, 90)], np.float64)  # (4, 3)
_COVER = 0.75


def read_rows(part: Split, rows: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Some rows of a part, (H, W, 3) each. Chunks that hold none of them are not read, the others once.

    Raises DamageError where one of these is damaged.
    """
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for chunk, members in groupby(sorted(set(rows)), lambda row: row // part.chunk_rows):
        start = chunk * part.chunk_rows
        images = part.read(start, min(start + part.chunk_rows, part.rows))  # (n, H, W, 3)
        found |= {row: images[row - start].copy() for row in members}
    return found


def thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    """An image (H, W, 3) as a data URI, made smaller if need be, never larger."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return _uri(image)


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating]) -> str:
    """An image (H, W, 3) in grey as a data URI, coloured by `heat` (H, W), 0 to 1; SIDE pixels large."""
    height, width = heat.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize(size, Image.Resampling.BICUBIC))  # (h, w)
    map_ = Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(map_), 0.0, 1.0)[..., None]  # (h, w, 1)
    stops = np.linspace(0.0, 1.0, len(_HEAT))
    colours = np.stack([np.interp(strength[..., 0], stops, _HEAT[:, i]) for i in range(3)], axis=2)  # (h, w, 3)
    cover = _COVER * strength  # (h, w, 1)
    mixed = (0.35 * 255 + 0.65 * grey[..., None]) * (1 - cover) + colours * cover  # (h, w, 3)
    return _uri(Image.fromarray(mixed.round().astype(np.uint8)))


def matrix(shares: npt.NDArray[np.floating], right: str, wrong: str) -> str:
    """Shares (C, C), 0 to 1, as a PNG with a pixel each: `right` on the diagonal, `wrong` beside it, as #rrggbb.

    What is 0 is transparent.
    """
    pixels = np.zeros((*shares.shape, 4), np.uint8)  # (C, C, 4)
    pixels[..., :3] = _rgb(wrong)
    pixels[np.arange(len(shares)), np.arange(len(shares)), :3] = _rgb(right)
    pixels[..., 3] = np.round(255 * shares**0.5)  # lifts the few that went astray
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
