"""Decode an image file to uint8 (H, W, 3), or raise a typed failure. Shared by build and classify.

The steps, in order: open, draft (JPEG only), load, convert to RGB on white, resize, apply the orientation, pad.
"""

from __future__ import annotations

import io
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

from pipeline.errors import DecodeError, OptionError, ReadError
from pipeline.faults import retried
from pipeline.images.colours import WHITE, grey_factor, to_rgb
from pipeline.images.deep_colour import open_deep_colour
from pipeline.images.depth import ValueRange, is_deep, value_range
from pipeline.images.opening import open_image, pixels_of, quiet_pillow, too_large, unknown_format
from pipeline.images.options import DEFAULT, DecodeOptions
from pipeline.images.salvage import pixels_only
from pipeline.images.sources import ImageSource, one_line, open_source, source_name, unreadable

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

FITS = ("pad", "crop", "squash")

# A JPEG decoder can scale by 1/2, 1/4 or 1/8 (Pillow's draft mode). It may do so while each side stays at least this
# many times as long as in the result: the filter below then does the last, visible part of the work. Over 304 JPEGs
# (40 to 1920 px) the result differs from that of a full decode by an RMS of 0.1 (to 128 px) to 1.0 (to 32 px) of 255,
# at 1.6 to 1.9 times the speed. A margin of 1 is hardly faster and differs by 1.5 to 2.9.
DRAFT_MARGIN = 2.0

# Bicubic, antialiased by Pillow, keeps edges without Lanczos' ringing on drawings. The gap lets Pillow average whole
# blocks first where there are more than 3 times the pixels needed: its manual calls the result indistinguishable, and
# 12 megapixels take 11 ms to 128 px instead of 94.
RESAMPLING = Image.Resampling.BICUBIC
REDUCING_GAP = 3.0

ORIENTATION_TAG = 0x0112  # EXIF
TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# EXIF orientation -> (row step, column step) from the upright image, transposed if need be, to the stored one.
ORIENTATION_STEPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}

# Let Pillow reuse up to 8 blocks of 16 MiB for its next images: in a thread, new pages for each 227 px image took a
# fifth of its time. The function is undocumented, so a version of Pillow may lack it.
with suppress(Exception):
    Image.core.set_blocks_max(8)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class DecodedImage:
    """An image in its frame.

    pixels  uint8 (H, W, 3), C-contiguous, RGB, upright
    inner   the box of the image in the frame, without padding: top, left, bottom, right
    """

    pixels: Pixels
    inner: tuple[int, int, int, int]


def decode_pixels(source: ImageSource, size: tuple[int, int], fit: str, options: DecodeOptions = DEFAULT) -> Pixels:
    """Decode one image into a frame of the given size: `decode_image`'s pixels, uint8 (H, W, 3)."""
    return decode_image(source, size, fit, options=options).pixels


def decode_image(
    source: ImageSource,
    size: tuple[int, int],
    fit: str,
    out: Pixels | None = None,
    unchanged: tuple[int, int] | None = None,
    options: DecodeOptions = DEFAULT,
) -> DecodedImage:
    """Decode one image into a frame of the given size.

    source     a file, the bytes of one, or an image opened with Pillow, which is left as it is
    size       (H, W) of the result, in pixels
    fit        'pad' keeps all of the image and pads it with white; 'crop' fills the frame and cuts off the rest,
               equally on both sides; 'squash' ignores the aspect ratio
    out        destination, uint8 (H, W, 3), C-contiguous, which becomes the result's `pixels`; None for a new array
    unchanged  the size in bytes and the modification time in ns that the file must have; None for any. A size of -1:
               the file had none when it was listed, as a link to nothing
    options    depth and limit of pixels

    An animation gives its first frame. Safe to call from many threads.
    Raises DecodeError for anything wrong with the file, of kind 'changed' where it does not match `unchanged`, and
    leaves `out` as it was; ReadError where the system fails to read it, several times; OptionError where another
    argument is wrong. Issues no warnings.
    """
    check_frame(size, fit)
    if out is not None and not (out.shape == (*size, 3) and out.dtype == np.uint8 and out.flags.carray):
        raise OptionError(
            f"expected a writable C-contiguous uint8 array {(*size, 3)}, found {out.dtype} {out.shape}:"
            " allocate one with np.empty"
        )
    return retried(lambda: _decode_source(source, size, fit, out, unchanged, options))


def _decode_source(
    source: ImageSource,
    size: tuple[int, int],
    fit: str,
    out: Pixels | None,
    unchanged: tuple[int, int] | None,
    options: DecodeOptions,
) -> DecodedImage:
    name = source_name(source)
    with open_source(source, unchanged) as file, quiet_pillow(options.max_pixels):
        try:
            return _decode_file(file, name, size, fit, out, options)
        except DecodeError as error:
            if error.kind not in ("broken", "not-an-image") or isinstance(file, Image.Image):
                raise
            decoded = _salvage(file, name, size, fit, options)
            if decoded is None:
                raise
        if out is None:
            return decoded
        out[...] = decoded.pixels
        return DecodedImage(out, decoded.inner)


def _salvage(
    file: IO[bytes], name: str, size: tuple[int, int], fit: str, options: DecodeOptions
) -> DecodedImage | None:
    """Decode an image that is damaged, but for its pixels. None where these are not whole either."""
    with _failures(file, name, options.max_pixels):
        file.seek(0)
        damaged = file.read()
    decoded = None
    for content in pixels_only(damaged):
        try:
            again = _decode_file(io.BytesIO(content), name, size, fit, None, options)
        except DecodeError:
            return None
        if decoded is not None and (again.pixels != decoded.pixels).any():
            return None
        decoded = again
    return decoded


def read_value_range(path: Path, max_pixels: int) -> ValueRange | None:
    """The range of a file's values if they have more than 8 bits, otherwise None. Raises DecodeError, ReadError."""

    def read() -> ValueRange | None:
        with open_source(path, None) as file, quiet_pillow(max_pixels), _failures(file, str(path), max_pixels):
            if isinstance(file, Image.Image):
                return None
            with open_image(file, max_pixels) as image:
                deep = open_deep_colour(file, image, max_pixels)
                return deep.range() if deep else value_range(image) if is_deep(image) else None

    return retried(read)


def _decode_file(
    file: IO[bytes] | Image.Image,
    name: str,
    size: tuple[int, int],
    fit: str,
    out: Pixels | None,
    options: DecodeOptions,
) -> DecodedImage:
    with (
        _failures(file, name, options.max_pixels),
        file.copy() if isinstance(file, Image.Image) else open_image(file, options.max_pixels) as image,
    ):
        if options.depth and (deep := open_deep_colour(file, image, options.max_pixels)):
            deep.apply(options.depth)
        return _decode(image, size, fit, out, options)


@contextmanager
def _failures(file: IO[bytes] | Image.Image, name: str, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into a DecodeError, or a ReadError where it is the system's fault."""
    try:
        yield
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError("not-an-image", "" if isinstance(file, Image.Image) else unknown_format(file)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(pixels_of(error), max_pixels) from error
    except MemoryError as error:  # the limit of pixels is kept
        raise ReadError(name, "too little memory", "use fewer --workers") from error
    except OSError as error:
        # The operating system sets errno; Pillow, where the data is damaged, does not.
        if error.errno is None:
            raise DecodeError("broken", one_line(error)) from error
        raise unreadable(error, name) from error
    except Exception as error:
        # Decoders raise SyntaxError, ValueError, struct.error, zlib.error, IndexError, … for damaged data.
        raise DecodeError("broken", one_line(error)) from error


def check_frame(size: tuple[int, int], fit: str) -> None:
    """Check the size (H, W) and the fit of a frame. Raises OptionError."""
    height, width = size
    if height < 1 or width < 1:
        raise OptionError(f"expected an image size of at least 1x1, found {height}x{width}: 128x128 is usual")
    if fit not in FITS:
        raise OptionError(f"expected a fit of {', '.join(FITS)}, found {fit!r}: 'pad' is the default")


def _decode(
    image: Image.Image, size: tuple[int, int], fit: str, out: Pixels | None, options: DecodeOptions
) -> DecodedImage:
    height, width = size
    frame = (width, height)
    is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    orientation = _orientation(image) if is_jpeg else 1
    box = _draft(image, _as_stored(frame, orientation), fit) if is_jpeg else None
    factor = grey_factor(image)
    image.load()
    if not is_jpeg:  # only now: some decoders (TIFF, AVIF) apply the orientation themselves and drop the tag
        orientation = _orientation(image)
    box = box or (0.0, 0.0, float(image.width), float(image.height))
    stored_size, box = _fit_box(box, _as_stored(frame, orientation), fit)
    inner_width, inner_height = _as_stored(stored_size, orientation)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    right, bottom = left + inner_width, top + inner_height
    pixels = np.empty((height, width, 3), dtype=np.uint8) if out is None else out  # (H, W, 3)
    inner = pixels[top:bottom, left:right]  # (h, w, 3)
    _resize_into(to_rgb(image, factor, options.depth), box, _stored_view(inner, orientation))
    for margin in (pixels[:top], pixels[bottom:], pixels[:, :left], pixels[:, right:]):
        margin[...] = WHITE
    return DecodedImage(pixels, (top, left, bottom, right))


def _draft(image: Image.Image, frame: tuple[int, int], fit: str) -> Box | None:
    """Let the JPEG decoder scale as far as DRAFT_MARGIN allows; `frame` is (W, H) before the orientation is applied.

    Returns the box of the image, in decoded pixels: where its size is not a multiple of the scale, the last row and
    column are only partly covered. None where the decoder does not scale.
    """
    width, height = frame if fit == "squash" else _scale(image.size, frame, cover=fit == "crop")
    drafted = image.draft(None, (ceil(width * DRAFT_MARGIN), ceil(height * DRAFT_MARGIN)))
    return None if drafted is None else drafted[1]


def _orientation(image: Image.Image) -> int:
    # An image with damaged EXIF data still has all its pixels: use it as it is stored.
    with suppress(Exception):
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    return 1


def _as_stored(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Convert the (W, H) of an upright image to that of the stored one, or back."""
    return size[::-1] if orientation in TRANSPOSED_ORIENTATIONS else size


def _stored_view(upright: Pixels, orientation: int) -> Pixels:
    """A view of the upright (h, w, 3) whose rows and columns are those of the stored image."""
    rows, columns = ORIENTATION_STEPS.get(orientation, (1, 1))
    return (upright.swapaxes(0, 1) if orientation in TRANSPOSED_ORIENTATIONS else upright)[::rows, ::columns]


def _scale(image: tuple[float, float], frame: tuple[int, int], *, cover: bool) -> tuple[int, int]:
    """Scale the image's (W, H), keeping the aspect ratio, to lie within the frame or to cover it."""
    ratios = (frame[0] / image[0], frame[1] / image[1])
    ratio = max(ratios) if cover else min(ratios)
    return max(1, round(image[0] * ratio)), max(1, round(image[1] * ratio))


def _fit_box(box: Box, frame: tuple[int, int], fit: str) -> tuple[tuple[int, int], Box]:
    """The image's (W, H) within the frame, and the part of its box to resize to that."""
    right, bottom = box[2:]
    if fit == "pad":
        return _scale((right, bottom), frame, cover=False), box
    if fit == "crop":
        ratio = max(frame[0] / right, frame[1] / bottom)
        excess_x = max(0.0, right - frame[0] / ratio)
        excess_y = max(0.0, bottom - frame[1] / ratio)
        box = (excess_x / 2, excess_y / 2, right - excess_x / 2, bottom - excess_y / 2)
    return frame, box


# Resizing ---------------------------------------------------------------------------------------------


def _resize_into(image: Image.Image, box: Box, out: Pixels) -> None:
    """Resize the box of an image of mode RGB or L to `out`, a view (h, w, 3)."""
    height, width = out.shape[:2]
    scale = max((box[2] - box[0]) / width, (box[3] - box[1]) / height)
    fast = fast_resize() if scale / REDUCING_GAP < 2 else None  # from 2 on, Pillow averages blocks first
    if fast is None or not fast(image if image.mode == "RGB" else image.convert("RGB"), box, out):
        pixels = np.asarray(image.resize((width, height), RESAMPLING, box=box, reducing_gap=REDUCING_GAP))
        out[...] = pixels if pixels.ndim == 3 else pixels[..., None]  # from (h, w, 3) or, of grey, (h, w)


@cache
def fast_resize() -> Callable[[Image.Image, Box, Pixels], bool] | None:
    """Load `pipeline.images.resize.resize_into`; None where it is unavailable or differs from Pillow's resize.

    A result must not depend on which of the two is used. Another version of Pillow may compute other values, or be set
    to align its rows, which leaves gaps: so both must agree on a small image first, whose rows of 124 bytes would have
    such gaps. Imported lazily, since importing Numba is slow.
    """
    with suppress(Exception):
        from pipeline.images.resize import resize_into

        noise = Image.fromarray((np.arange(40 * 31 * 3) ** 2 // 7 % 251).astype(np.uint8).reshape(40, 31, 3))
        for size in ((13, 9), (21, 20), (50, 70)):
            for box in ((0.0, 0.0, 31.0, 40.0), (0.3, 1.7, 29.9, 36.1)):
                found = np.empty((size[1], size[0], 3), dtype=np.uint8)  # (h, w, 3)
                expected = np.asarray(noise.resize(size, RESAMPLING, box))  # (h, w, 3)
                if not resize_into(noise, box, found) or (found != expected).any():
                    return None
        return resize_into
    return None
