"""Files whose pixels are whole, but not what lies beside them: texts, colour profiles, metadata, end markers.

Viewers show such images. The decoders refuse them for a wrong checksum in a comment, or a text of more than a megabyte.
Only files that cannot be decoded come here, so that it costs nothing for all others.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
WEBP_PIXEL_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
WEBP_METADATA_FLAGS = 0x2C  # ICC profile, Exif, XMP

# A JPEG without its end marker: whether pixels are missing too shows in what follows from different fillers.
JPEG_END = b"\xff\xd9"
JPEG_FILLERS = (b"", b"\0", b"\xaa")


def pixels_only(content: bytes) -> list[bytes]:
    """Return versions of an image file without anything beside the pixels and their orientation.

    The image is whole where all of them give the same pixels. Empty for formats that need no repair, and for files that
    are not even divided into chunks as their format wants.
    """
    try:
        if content.startswith(PNG_SIGNATURE):
            return [PNG_SIGNATURE + b"".join(_png_chunks(content)) + PNG_END]
        if content.startswith(b"\xff\xd8\xff"):
            image = b"".join(_jpeg_segments(content))
            return [image + filler * len(image) + JPEG_END for filler in JPEG_FILLERS]
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            chunks = b"WEBP" + b"".join(_webp_chunks(content))
            return [b"RIFF" + struct.pack("<I", len(chunks)) + chunks]
    except (struct.error, IndexError):
        pass
    return []


def _png_chunks(content: bytes) -> Iterator[bytes]:
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        whole = content[start:end]
        if kind == b"IEND":
            return
        if kind in PNG_PIXEL_CHUNKS or (kind == b"eXIf" and whole[-4:] == struct.pack(">I", zlib.crc32(whole[4:-4]))):
            yield whole
        start = end


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """What the decoder needs, and Exif data, which has the orientation."""
    yield content[:2]
    start = 2
    while content[start] == 0xFF:
        marker = content[start + 1]
        if marker == 0xFF:  # padding
            start += 1
            continue
        if marker == 0xDA:  # the first scan: from here on, there are no metadata
            break
        (length,) = struct.unpack_from(">H", content, start + 2)
        segment = content[start : start + 2 + length]
        is_exif = marker == 0xE1 and segment[4:10] == b"Exif\0\0"
        # JFIF and Adobe segments say how colours are stored; others are comments, profiles, previews.
        if marker in (0xE0, 0xEE) or is_exif or not (0xE1 <= marker <= 0xEF or marker == 0xFE):
            yield segment
        start += 2 + length
    yield content[start:]


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    start = 12
    while start + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, start)
        end = start + 8 + length + length % 2
        if kind == b"VP8X":
            flags = content[start + 8] & ~WEBP_METADATA_FLAGS
            yield content[start : start + 8] + bytes([flags]) + content[start + 9 : end]
        elif kind in WEBP_PIXEL_CHUNKS:
            yield content[start:end]
        start = end
