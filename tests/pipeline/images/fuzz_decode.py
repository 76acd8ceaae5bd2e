"""Fuzzing of the decoder: mutated files of every format give pixels or a DecodeError, and nothing else.

    python -m tests.pipeline.images.fuzz_decode [--minutes 5] [--first 0]

A process decodes one file after another, with at most 2 GB of memory and a minute per file: see `tests/fuzzing.py`.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from functools import partial
from pathlib import Path

from pipeline.errors import DecodeError
from pipeline.images.decode import FITS, decode_pixels
from pipeline.images.options import DecodeOptions
from tests.fuzzing import Try, fuzz
from tests.pipeline.images.samples import all_samples, progressive_jpeg

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 9459, 30000)
SMALL = DecodeOptions(max_pixels=4_000_000)


def mutated(number: int, samples: list[bytes]) -> bytes:
    """The file of this number."""
    rng = random.Random(number)
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 2, 4, 10))):
        place = int(len(data) * rng.random() ** rng.choice((1, 3)))  # headers more often
        kind = rng.randrange(6)
        if kind == 0:
            data[place : place + 1] = bytes((rng.randrange(256),))
        elif kind == 1:
            form = rng.choice(("<H", ">H", "<I", ">I"))
            value = rng.choice(NUMBERS) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
            data[place : place + struct.calcsize(form)] = struct.pack(form, value)
        elif kind == 2:
            del data[place : place + rng.choice((1, 4, 50))]
        elif kind == 3:
            start = rng.randrange(len(data) or 1)
            data[place:place] = data[start : start + rng.choice((1, 4, 50, 500))] * rng.choice((1, 1, 30))
        elif kind == 4:
            other = rng.choice(samples)
            start = rng.randrange(len(other))
            data[place : place + 40] = other[start : start + rng.choice((4, 40, 400))]
        elif rng.random() < 0.3:
            del data[place:]
    if data[1:4] == b"PNG" and rng.random() < 0.8:
        return with_checksums(bytes(data))
    return bytes(data)


def with_checksums(png: bytes) -> bytes:
    """A PNG with right checksums, so that not all of its mutations end there."""
    parts, start = [png[:8]], 8
    while start + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, start)
        body = png[start + 4 : start + 8 + length]
        parts.append(png[start : start + 4] + body + struct.pack(">I", zlib.crc32(body)))
        start += 12 + length
    return b"".join(parts)


def decode_one(number: int, samples: list[bytes]) -> bool:
    """Decode the file of this number; whether it gave pixels. Raises anything but DecodeError."""
    size, fit = ((8, 8), (32, 20), (1, 3))[number % 3], FITS[number % len(FITS)]
    options = (SMALL, DecodeOptions(), DecodeOptions(depth=(-1.0, 500.0)))[number % 7 % 3]
    try:
        pixels = decode_pixels(mutated(number, samples), size, fit, options)
    except DecodeError as error:
        if not error.reason or "\n" in str(error):
            raise AssertionError(f"no reason in one line: {error!r}") from error
        return False
    return pixels.shape == (*size, 3)


def all_files() -> list[bytes]:
    return [*all_samples().values(), progressive_jpeg(30)]


def prepare(_: Path) -> Try:
    samples = all_files()
    for sample in samples:
        decode_pixels(sample, (8, 8), "pad")
    return partial(decode_one, samples=samples)


if __name__ == "__main__":
    sys.exit(fuzz(__spec__.name, __doc__, prepare))
