"""Images with whole pixels are decoded, whatever lies beside them; others are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.images.decode import decode_image, decode_pixels
from tests.pipeline.images.samples import picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before: bytes, after: bytes = b"") -> bytes:
    file = io.BytesIO()
    picture("RGB").save(file, "PNG")
    image, pixels, end = file.getvalue(), file.getvalue().index(b"IDAT") - 4, file.getvalue().index(b"IEND") - 4
    return image[:pixels] + b"".join(before) + image[pixels:end] + after + image[end:]


def jpeg(*segments: bytes, side: int = 100, **options: object) -> bytes:
    file = io.BytesIO()
    picture("RGB", side).save(file, "JPEG", **options)  # type: ignore[arg-type]
    return file.getvalue()[:2] + b"".join(segments) + file.getvalue()[2:]


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def webp(metadata: bytes) -> bytes:
    file = io.BytesIO()
    picture("RGB").save(file, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    image = file.getvalue()
    return image[: image.index(b"EXIF")] + metadata


WRONG_CRC = bytearray(chunk(b"tEXt", b"Comment\0hello"))
WRONG_CRC[12] ^= 1
ORIENTED = struct.pack(">2sHLHHHLHHL", b"MM", 42, 8, 1, 0x0112, 3, 1, 3, 0, 0)  # rotated by 180°


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"{}" * 600_000))), png(), id="large text"),
        pytest.param(png(after=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"{}" * 600_000))), png(), id="after pixels"),
        pytest.param(png(chunk(b"iCCP", b"p\0\0" + zlib.compress(b"\0" * 1_200_000))), png(), id="large profile"),
        pytest.param(png(bytes(WRONG_CRC)), png(), id="wrong checksum"),
        pytest.param(png(chunk(b"gAMA", b"")), png(), id="short gamma"),
        pytest.param(png(chunk(b"fcTL", b"\0" * 26)), png(), id="animation"),
        pytest.param(
            png(chunk(b"eXIf", ORIENTED), bytes(WRONG_CRC)), png(chunk(b"eXIf", ORIENTED)), id="PNG orientation"
        ),
        pytest.param(jpeg()[:-2], jpeg(), id="no end marker"),
        pytest.param(jpeg(progressive=True)[:-2], jpeg(progressive=True), id="progressive, no end marker"),
        pytest.param(jpeg(segment(0xE1, b"Exif\0\0" + ORIENTED))[:-2], jpeg(segment(0xE1, b"Exif\0\0" + ORIENTED)),
                     id="JPEG orientation"),
        pytest.param(webp(b"EXIF\xff\0\0\0cut off"), webp(b""), id="WebP, metadata cut off"),
    ],
)  # fmt: skip
def test_image_with_whole_pixels_is_decoded(data: bytes, expected: bytes) -> None:
    with pytest.raises(Exception), Image.open(io.BytesIO(data)) as image:  # noqa: B017 - any of Pillow's
        image.load()
    out = np.zeros((24, 24, 3), np.uint8)  # (24, 24, 3)
    out[:] = decode_pixels(data, (24, 24), "pad")
    np.testing.assert_array_equal(out, decode_pixels(expected, (24, 24), "pad"))


@pytest.mark.parametrize("lost", [3, 4, 10, 100, 1000])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_that_lacks_pixels_is_broken(lost: int, options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)  # (100, 100, 3)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90, **options)  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="broken"):
        decode_pixels(file.getvalue()[: -2 - lost], (100, 100), "pad")


def test_png_that_lacks_pixels_is_broken() -> None:
    whole = png(bytes(WRONG_CRC))
    for cut in (whole.index(b"IEND") - 20, whole.index(b"IDAT") + 20):
        with pytest.raises(DecodeError):
            decode_pixels(whole[:cut], (24, 24), "pad")


def test_salvaged_image_is_written_to_out() -> None:
    out = np.zeros((24, 24, 3), np.uint8)  # (24, 24, 3)
    assert decode_image(jpeg()[:-2], (24, 24), "pad", out).pixels is out
    assert out.any()
