"""Open image files with Pillow: which formats, at most how many pixels, and without a word on standard error.

Pillow can open more formats than these. Some start another program (EPS: Ghostscript), some depend on what else is
installed; others are containers that hardly hold images. What a dataset holds must not depend on the machine.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, Any

from PIL import Image, JpegImagePlugin

from pipeline.errors import DecodeError
from pipeline.images.options import MAX_PIXELS

# Format -> Pillow's module that reads it. All decode within this process.
FORMATS = {
    "JPEG": "JpegImagePlugin", "PNG": "PngImagePlugin", "WEBP": "WebPImagePlugin", "GIF": "GifImagePlugin",
    "TIFF": "TiffImagePlugin", "BMP": "BmpImagePlugin", "AVIF": "AvifImagePlugin", "JPEG2000": "Jpeg2KImagePlugin",
    "PPM": "PpmImagePlugin", "DIB": "BmpImagePlugin", "ICO": "IcoImagePlugin", "PSD": "PsdImagePlugin",
    "PCX": "PcxImagePlugin", "QOI": "QoiImagePlugin", "SGI": "SgiImagePlugin", "TGA": "TgaImagePlugin",
}  # fmt: skip

# The beginnings of files that are often among images, and that are in none of these formats.
OTHER_FORMATS = (
    (rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC images are"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI |\0\0\x01[\xba\xb3]", "films are"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS and PostScript are"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "WMF and EMF are"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL images are"),
    (rb"DDS ", "DDS textures are"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF images that are damaged or of this kind (64 bits, floating-point colour, …) are"),
    (rb"%PDF", "PDF documents are"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", "SVG drawings are"),
    (rb"\s*<(!doctype html|html)", "web pages are"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf|\xfd7zXZ", "archives are"),
)

# How often a pixel counts: the libraries of these formats take two or three times the memory, and decoders that Pillow
# has in Python (QOI, some PPM, BMP and SGI) a microsecond per pixel, with the GIL held.
FORMAT_WEIGHTS = {"JPEG2000": 3, "WEBP": 2}
PYTHON_WEIGHT = 8

# Every scan of a JPEG passes over all of its pixels. Progressive JPEGs have about 10 scans.
MAX_SCANS = 32  # of an image of MAX_PIXELS; smaller ones may have more


def open_image(file: IO[bytes], max_pixels: int) -> Image.Image:
    """Open an image, without reading its pixels. Raises DecodeError for too much work, and what Pillow raises."""
    image = Image.open(file, formats=_formats())
    in_python = bool(image.tile) and image.tile[0][0] in Image.DECODERS
    weight = PYTHON_WEIGHT if in_python else FORMAT_WEIGHTS.get(image.format or "", 1)
    if image.width * image.height * weight > max_pixels:
        counted = f", each counted {weight} times for {image.format}" if weight > 1 else ""
        raise too_large(f"{image.width:,}×{image.height:,}{counted}", max_pixels)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        _check_scans(image, max_pixels)
    return image


def too_large(found: str, max_pixels: int) -> DecodeError:
    """Make the error for an image of too many pixels."""
    return DecodeError("too-large", f"expected at most {max_pixels:,} pixels, found {found}: raise --max-pixels")


def pixels_of(error: Exception) -> str:
    """The size in a message of Pillow's about decompression bombs."""
    size = re.search(r"\((\d+) pixels\)", str(error))
    return f"{int(size[1]):,} pixels" if size else "more"


def unknown_format(file: IO[bytes]) -> str:
    """The reason why no decoder knows a file."""
    with suppress(OSError, ValueError):
        file.seek(0)
        start = file.read(512)
        for pattern, what in OTHER_FORMATS:
            if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
                return f"{what} not supported: convert it, for example to PNG"
        return f"no known format, or a damaged header (the file begins with {start[:12]!r})"
    return "no known format, or a damaged header"


@cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow reads. Not Pillow's `init`, which also imports plugins of other packages."""
    for module in set(FORMATS.values()):
        with suppress(ImportError):  # older than this one
            importlib.import_module(f"PIL.{module}")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_scans(image: JpegImagePlugin.JpegImageFile, max_pixels: int) -> None:
    """Raise DecodeError where a JPEG has so many scans that decoding it would take minutes."""
    file = image.fp
    if file is None:
        return
    position, channels = file.tell(), image.layers
    if not image.info.get("progressive"):
        # One scan of all channels cannot be followed by others. The position is behind its header.
        file.seek(max(0, position - 6 - 2 * channels))
        if file.read(3) == bytes((0, 6 + 2 * channels, channels)):
            file.seek(position)
            return
    file.seek(0)
    scans = file.read().count(b"\xff\xda")  # within a scan, 0xff is always followed by 0
    file.seek(position)
    if scans * image.width * image.height > MAX_SCANS * max_pixels:
        raise too_large(f"{image.width:,}×{image.height:,} in {scans:,} scans", max_pixels)


# Silence ----------------------------------------------------------------------------------------------

# Pillow logs some damage as errors, which Python prints where no handler is set.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_lock = threading.Lock()
_depth = 0
_filters: warnings.catch_warnings[None] | None = None
_pixel_limit: int | None = None
_tiff_handlers: tuple[int | None, ...] = ()


@contextmanager
def quiet_pillow(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Silence Pillow and libtiff, and set Pillow's own limit of pixels, while any thread is in the block.

    `decode_image` uses it itself; wrap a loop over many images in it to do so only once.
    All of this is global to the process: if each thread saved and restored it, the last to leave could restore what
    another had set. So the first to enter sets it and the last to leave restores it.
    """
    global _depth, _filters, _pixel_limit, _tiff_handlers
    with _lock:
        if _depth == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            # Odd metadata, mostly. Other modules' warnings stay visible.
            warnings.filterwarnings("ignore", module=r"PIL\.|pipeline\.images\.")
            warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            _pixel_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
            _tiff_handlers = _set_tiff_handlers((None, None))
        elif max_pixels > (Image.MAX_IMAGE_PIXELS or 0):  # of images within others, such as those of an icon
            Image.MAX_IMAGE_PIXELS = max_pixels
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _filters is not None:
                _filters.__exit__(None, None, None)
                _filters = None
                Image.MAX_IMAGE_PIXELS = _pixel_limit
                _set_tiff_handlers(_tiff_handlers)


def _set_tiff_handlers(handlers: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Set what libtiff calls with its warnings and errors; return the functions before. None: nothing is printed."""
    return tuple(setter(handler) for setter, handler in zip(_tiff_setters(), handlers, strict=False))


@cache
def _tiff_setters() -> tuple[Any, ...]:
    """libtiff's functions that set its handlers. None where Pillow was built without it, or hides them."""
    with suppress(OSError, AttributeError):
        # A symbol is also looked for in the libraries that this one is linked to.
        pillow = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        setters = (pillow.TIFFSetWarningHandler, pillow.TIFFSetErrorHandler)
        for setter in setters:
            setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
        return setters
    return ()

