"""File bytes -> uint8 (H, W, 3), or a typed failure. The one place that decodes; build and classify share it.

The steps, in order: open, draft (JPEG only), load, to RGB on white, resize, turn upright, pad.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from pipeline.errors import DecodeError, FailureKind, OptionError

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

FITS = ("pad", "crop", "squash")

# Where there is no image, it is white: behind transparent pixels, and around a padded image. One
# rule for both, so that a logo cut out on transparency meets no seam at its frame. Repeating the edge
# pixels would draw stripes that are in no photograph.
WHITE = (255, 255, 255)

# A JPEG decoder can scale by 1/2, 1/4 or 1/8 while it decodes. We let it, as long as at least this many
# decoded pixels remain, each way, for one of the result: the filter below then still does the last,
# visible part of the work. Over 304 JPEGs (40 to 1920 px) the result then differs from that of a full
# decode by 0.1 (to 128 px) to 1.0 (to 32 px) of 255, root mean square, and comes 1.6 to 1.9 times as
# fast; a margin of 1 would be little faster and differ by 1.5 to 2.9.
DRAFT_MARGIN = 2.0

# Bicubic, widened to the scale (Pillow does that), keeps edges without Lanczos' ringing on drawings. The
# gap lets Pillow average whole blocks first where more than 3 times the needed pixels are there: its
# manual calls that indistinguishable, and 12 megapixels come down to 128 px in 11 ms instead of 94.
FILTER = Image.Resampling.BICUBIC
REDUCING_GAP = 3.0

# Files up to this size are read at once: a read lets go of the interpreter's lock, and has to wait for it after.
WHOLE_BYTES = 2**24

ORIENTATION_TAG = 0x0112
LYING = (5, 6, 7, 8)  # orientations that exchange width and height
# Which way the upright image's rows and columns are gone through, after that exchange, to meet the stored ones in
# their order.
STEPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}

# PNG names its transparent grey in the file's own depth; Pillow spreads the pixels to 8 bits.
GREY_STEP = {"1": 255, "L;2": 85, "L;4": 17}

# Memory that Pillow keeps for its next images, up to 8 blocks of 16 MiB: in a thread, new pages for each 227 px
# image took a fifth of its time. Not in Pillow's manual, so it may go.
with suppress(Exception):
    Image.core.set_blocks_max(8)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class DecodedImage:
    """An image in its frame.

    pixels  uint8 (H, W, 3), C-contiguous, RGB, upright
    inner   the part of them that is image, not filling: top, left, bottom, right
    """

    pixels: Pixels
    inner: tuple[int, int, int, int]


def decode_pixels(source: Path | bytes, size: tuple[int, int], fit: str) -> Pixels:
    """Decode one image into a frame of the given size: `decode_image`'s pixels, uint8 (H, W, 3)."""
    return decode_image(source, size, fit).pixels


def decode_image(
    source: Path | str | bytes,
    size: tuple[int, int],
    fit: str,
    out: Pixels | None = None,
    unchanged: tuple[int, int] | None = None,
) -> DecodedImage:
    """Decode one image into a frame of the given size.

    source     a file, or the bytes of one
    size       (H, W) of the result, in pixels
    fit        'pad' keeps all of the image and fills up with white; 'crop' fills the frame and cuts off
               what hangs over, equally on both sides; 'squash' ignores the proportions
    out        where to write: uint8 (H, W, 3), C-contiguous, then the result's `pixels`; None: a new array
    unchanged  bytes and modification time in ns that the file must have, else it is a failure of kind 'changed'

    Animations give their first frame.
    Raises DecodeError(kind, reason) for whatever is wrong with the file, and leaves `out` as it was; no other
    exception, no warning.
    Safe to call from many threads.
    """
    height, width = size
    if height < 1 or width < 1:
        raise OptionError(f"expected an image size of at least 1x1, found {height}x{width}")
    if fit not in FITS:
        raise OptionError(f"expected a fit out of {', '.join(FITS)}, found {fit!r}")
    if out is not None and not (out.shape == (height, width, 3) and out.dtype == np.uint8 and out.flags.carray):
        raise OptionError(
            f"expected a writable C-contiguous uint8 array {(height, width, 3)}, found {out.dtype} {out.shape}"
        )
    with _open(source, unchanged) as file, quiet_pillow():
        try:
            with Image.open(file) as image:
                return _decode(image, size, fit, out)
        except UnidentifiedImageError:
            raise DecodeError("not-an-image", _unknown_format(file)) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DecodeError("too-large", _one_line(error)) from error
        except MemoryError as error:
            raise DecodeError("too-large", "the decoded image does not fit into memory") from error
        except OSError as error:
            # The operating system sets errno; Pillow's own complaints about the data do not.
            if error.errno is None:
                raise DecodeError("broken", _one_line(error)) from error
            raise DecodeError(*_unreadable(error)) from error
        except Exception as error:
            # Decoders meet damaged bytes with whatever went wrong first: SyntaxError, ValueError,
            # struct.error, zlib.error, IndexError, … For the caller they are all one: broken.
            raise DecodeError("broken", _one_line(error)) from error


@contextmanager
def _open(source: Path | str | bytes, unchanged: tuple[int, int] | None) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        if not source:
            raise DecodeError("empty", "the file has no bytes")
        yield io.BytesIO(source)
        return
    try:
        path = os.fspath(source)
        status = os.stat(path)  # noqa: PTH116  # in half the time of pathlib's
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError("unreadable", "expected a file, found a folder")
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("unreadable", "expected a regular file, found a pipe, socket or device")
        if unchanged is not None and unchanged != (status.st_size, status.st_mtime_ns):
            raise DecodeError("changed", "the file is not the one that was there when the build began")
        if status.st_size == 0:
            raise DecodeError("empty", "the file has no bytes")
        file = io.FileIO(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise DecodeError(*_unreadable(error)) from error
    with file:
        if status.st_size > WHOLE_BYTES:
            yield io.BufferedReader(file)
            return
        try:
            content = file.readall()
        except OSError as error:
            raise DecodeError(*_unreadable(error)) from error
        yield io.BytesIO(content)


def _decode(image: Image.Image, size: tuple[int, int], fit: str, out: Pixels | None) -> DecodedImage:
    height, width = size
    frame = (width, height)
    jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    orientation = _orientation(image) if jpeg else 1
    box = _draft(image, _as_stored(frame, orientation), fit) if jpeg else None
    step = _grey_step(image)
    image.load()
    if not jpeg:  # only now: some decoders (TIFF, AVIF) turn the image themselves and drop the tag
        orientation = _orientation(image)
    box = box or (0.0, 0.0, float(image.width), float(image.height))
    stored_size, box = _fitted(box, _as_stored(frame, orientation), fit)
    inner_width, inner_height = _as_stored(stored_size, orientation)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    right, bottom = left + inner_width, top + inner_height
    pixels = np.empty((height, width, 3), dtype=np.uint8) if out is None else out  # (H, W, 3)
    inner = pixels[top:bottom, left:right]  # (h, w, 3)
    _resize_into(_to_rgb(image, step), box, _stored_view(inner, orientation))
    for margin in (pixels[:top], pixels[bottom:], pixels[:, :left], pixels[:, right:]):
        margin[...] = WHITE[0]
    return DecodedImage(pixels, (top, left, bottom, right))


def _draft(image: Image.Image, frame: tuple[int, int], fit: str) -> Box | None:
    """Ask the JPEG decoder for fewer pixels where DRAFT_MARGIN leaves it room, for a frame as the image is stored.

    Returns the box, in the pixels it will give, that the image covers: where the size is no multiple
    of the scale, the last row and column are only partly image. None where it will not scale.
    """
    width, height = frame if fit == "squash" else _scaled(image.size, frame, cover=fit == "crop")
    drafted = image.draft(None, (ceil(width * DRAFT_MARGIN), ceil(height * DRAFT_MARGIN)))
    return None if drafted is None else drafted[1]


def _orientation(image: Image.Image) -> int:
    # An image whose EXIF block is damaged still has all its pixels: take it as it lies.
    with suppress(Exception):
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    return 1


def _as_stored(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """An upright (W, H), as the image that is still to be turned sees it; and the other way round."""
    return size[::-1] if orientation in LYING else size


def _stored_view(upright: Pixels, orientation: int) -> Pixels:
    """The upright (h, w, 3) as a view in which rows and columns are those of the image that is still to be turned."""
    rows, columns = STEPS.get(orientation, (1, 1))
    return (upright.swapaxes(0, 1) if orientation in LYING else upright)[::rows, ::columns]


def _scaled(image: tuple[float, float], frame: tuple[int, int], *, cover: bool) -> tuple[int, int]:
    """The image's (W, H) scaled in proportion, to lie within the frame or to cover it."""
    ratios = (frame[0] / image[0], frame[1] / image[1])
    ratio = max(ratios) if cover else min(ratios)
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def _fitted(box: Box, frame: tuple[int, int], fit: str) -> tuple[tuple[int, int], Box]:
    """The (W, H) that the image gets within the frame, and the part of its box that is to fill it."""
    right, bottom = box[2:]
    if fit == "pad":
        return _scaled((right, bottom), frame, cover=False), box
    if fit == "crop":
        ratio = max(frame[0] / right, frame[1] / bottom)
        over_x = max(0.0, right - frame[0] / ratio)
        over_y = max(0.0, bottom - frame[1] / ratio)
        box = (over_x / 2, over_y / 2, right - over_x / 2, bottom - over_y / 2)
    return frame, box


# Resizing ---------------------------------------------------------------------------------------------


def _resize_into(image: Image.Image, box: Box, out: Pixels) -> None:
    """The box of an RGB image, resized to all of `out`, a view (h, w, 3)."""
    height, width = out.shape[:2]
    scale = max((box[2] - box[0]) / width, (box[3] - box[1]) / height)
    fast = _fast_resize() if scale / REDUCING_GAP < 2 else None  # from 2 on, Pillow averages blocks first
    if fast is None or not fast(image, box, out):
        out[...] = np.asarray(image.resize((width, height), FILTER, box=box, reducing_gap=REDUCING_GAP))


@cache
def _fast_resize() -> Callable[[Image.Image, Box, Pixels], bool] | None:
    """`pipeline.images.resize.resize_into`, or None where it cannot be had.

    An image must not depend on which of the two has resized it. A version of Pillow may calculate otherwise, or be set
    to align its rows, which leaves gaps: so it has to agree on a small image first, whose 124 bytes a row would have
    such gaps. Not imported at the top: Numba takes its time.
    """
    with suppress(Exception):
        from pipeline.images.resize import resize_into

        noise = Image.fromarray((np.arange(40 * 31 * 3) ** 2 // 7 % 251).astype(np.uint8).reshape(40, 31, 3))
        for size in ((13, 9), (21, 20), (50, 70)):
            for box in ((0.0, 0.0, 31.0, 40.0), (0.3, 1.7, 29.9, 36.1)):
                found = np.empty((size[1], size[0], 3), dtype=np.uint8)  # (h, w, 3)
                if not resize_into(noise, box, found) or (found != np.asarray(noise.resize(size, FILTER, box))).any():
                    return None
        return resize_into
    return None


# Modes ------------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image, grey_step: int) -> Image.Image:
    """Any mode Pillow has to RGB, with what is transparent laid on white."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;"):
        return _deep_grey_to_rgb(image)
    if mode in ("1", "L") and isinstance(image.info.get("transparency"), int):
        grey = np.array(image.convert("L"))  # (H, W)
        grey[grey == image.info["transparency"] * grey_step] = WHITE[0]
        return Image.fromarray(grey).convert("RGB")
    if mode == "RGB" and isinstance(image.info.get("transparency"), tuple):
        colour = image.info["transparency"]
        if max(colour) > 255:  # named in 16 bits; Pillow has kept the high byte of each pixel
            image.info["transparency"] = tuple(value >> 8 for value in colour)
    if mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*WHITE, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or float, scaled to 8 bits (Pillow's own conversion would clip at 255).

    16-bit values span 0..65535. Modes I and F do not say what white is; the range is taken to be the
    usual one that holds all values (I: 0..65535; F: 0..1, then 0..255), else from the least to the greatest.
    """
    grey = np.array(image, dtype=np.float64)  # (H, W)
    finite = np.isfinite(grey)
    if not finite.any():
        raise ValueError("no pixel is a finite number")
    low, high = float(grey[finite].min()), float(grey[finite].max())
    usual = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    white = next((top for top in usual if low >= 0 and high <= top), None)
    if white is None:
        black, white = low, high
    else:
        black = 0.0
    grey = np.where(finite, (grey - black) * (255.0 / (white - black)), 0.0)
    eight = np.rint(grey).clip(0, 255).astype(np.uint8)  # (H, W)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        eight[np.array(image) == transparent] = WHITE[0]
    return Image.fromarray(eight).convert("RGB")


def _grey_step(image: Image.Image) -> int:
    """What one step of grey in the file is in the loaded image: 1 but for PNGs of 1, 2 or 4 bits."""
    tiles = getattr(image, "tile", [])
    raw_mode = tiles[0][3] if image.format == "PNG" and tiles else None
    return GREY_STEP.get(raw_mode, 1) if isinstance(raw_mode, str) else 1


# Failures ---------------------------------------------------------------------------------------------

_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's warnings silenced, but its bomb warning raised, while any thread decodes.

    Decoding does this by itself; around the decoding of many images, it need be done but once.
    Python's filters are one list for all threads: were each thread to save and restore it, the last
    one to leave could restore another one's. So the first in sets it and the last out restores it.
    """
    global _quiet_depth, _quiet_filters
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            # Odd metadata, mostly; by module, since others may want their own warnings meanwhile.
            warnings.filterwarnings("ignore", module=r"PIL\.|pipeline\.decode")
            warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
                _quiet_filters = None


def _unreadable(error: OSError | ValueError) -> tuple[FailureKind, str]:
    return "unreadable", (getattr(error, "strerror", None) or _one_line(error)).lower()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, struct.error | IndexError | KeyError) or not text:
        return f"damaged data ({type(error).__name__}{': ' if text else ''}{text})"
    return text


def _unknown_format(file: IO[bytes]) -> str:
    with suppress(OSError, ValueError):
        file.seek(0)
        return f"no known format, or a damaged header (the file begins with {file.read(8)!r})"
    return "no known format, or a damaged header"
