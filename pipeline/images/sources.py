"""Open what an image is decoded from: a file, its bytes, or an image opened with Pillow."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from PIL import Image

from pipeline.errors import DecodeError, ReadError
from pipeline.faults import fault_of_system

ImageSource: TypeAlias = Path | str | bytes | Image.Image

# Files up to this size are read in one call: each read releases the GIL and must wait to get it back.
MAX_SINGLE_READ = 2**24  # bytes

# Pillow's words for a number that a decoder returned, and that says nothing to a user.
DECODER_ERROR = re.compile(r"^(decoder error -\d+|(decoding|unknown) error)( when reading image file)?$")


@contextmanager
def open_source(source: ImageSource, unchanged: tuple[int, int] | None) -> Iterator[IO[bytes] | Image.Image]:
    """Open a source; an image opened with Pillow is given as its file where it is not loaded yet.

    `unchanged` is that of `decode_image`. Raises DecodeError, and ReadError where the system fails to read it.
    """
    if isinstance(source, Image.Image):
        content = _unread_file(source)
        yield source if content is None else io.BytesIO(content)
        return
    if isinstance(source, bytes):
        if not source:
            raise DecodeError("empty", "the file has no bytes")
        yield io.BytesIO(source)
        return
    path = os.fspath(source)
    try:
        status = os.stat(path)  # noqa: PTH116  # twice as fast as pathlib's
        if stat.S_ISDIR(status.st_mode):
            entered = os.access(path, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
            raise DecodeError("unreadable", "expected a file, found a folder" + ("" if entered else " without access"))
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("unreadable", "expected a regular file, found a pipe, socket or device")
        if unchanged is not None and unchanged != (status.st_size, status.st_mtime_ns):
            raise DecodeError("changed", "the file has changed since the build began")
        if status.st_size == 0:
            raise DecodeError("empty", "the file has no bytes")
        file, content = io.FileIO(path), b""
        if status.st_size <= MAX_SINGLE_READ:
            with file:  # and close it: that may fail as well
                content = file.readall() or b""
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        if isinstance(error, FileNotFoundError | NotADirectoryError) and unchanged is not None and unchanged[0] < 0:
            raise DecodeError("unreadable", "a link to nothing") from error
        raise unreadable(error, path) from error
    if status.st_size <= MAX_SINGLE_READ:
        yield io.BytesIO(content)
        return
    try:
        with file:
            try:
                yield io.BufferedReader(file)
            except DecodeError:  # decoders may hide an error of the disk: it would come again
                file.seek(0)
                file.readall()
                raise
    except OSError as error:
        raise unreadable(error, path) from error


def _unread_file(image: Image.Image) -> bytes | None:
    """The file of an image opened with Pillow, where it is not loaded yet: the pixels are then the same as those of the
    file, JPEG's reduced decoding included."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell():
        return None
    position = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(position)
    return content


def source_name(source: ImageSource) -> str:
    """The name of a source for messages."""
    return os.fspath(source) if isinstance(source, Path | str) else "the image"


def unreadable(error: OSError | ValueError, path: str) -> DecodeError | ReadError:
    """The error for what could not be read: the system's fault, or that of the file."""
    if isinstance(error, OSError) and (fault := fault_of_system(error, path)):
        return fault
    return DecodeError("unreadable", (getattr(error, "strerror", None) or one_line(error)).lower())


def one_line(error: BaseException) -> str:
    """What a decoder says about damaged data."""
    text = DECODER_ERROR.sub("damaged data", " ".join(str(error).split()))
    if isinstance(error, struct.error | IndexError | KeyError) or not text:
        return f"damaged data ({type(error).__name__}{': ' if text else ''}{text})"
    return text
