"""Fuzzing of the decoder: mutated files of every format give pixels or a DecodeError, and nothing else.

    python -m tests.pipeline.images.fuzz_decode [--minutes 5] [--first 0]

A process decodes one file after another, with at most 2 GB of memory and a minute per file. Every file follows from its
number alone: the number of one that crashes the process, or fails, is printed, and `--first N` begins with it.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.errors import DecodeError
from pipeline.images.decode import FITS, decode_pixels
from pipeline.images.options import DecodeOptions
from tests.pipeline.images.samples import all_samples, progressive_jpeg

MEMORY = 2 * 10**9  # bytes of address space beyond what is in use after the first image
SECONDS = 60  # per file
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


def _work(first: int, seconds: float, note: Path) -> None:
    samples = all_files()
    for sample in samples:  # load all libraries before memory is limited
        decode_pixels(sample, (8, 8), "pad")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    end, number, whole = time.monotonic() + seconds, first, 0
    file = os.open(note, os.O_WRONLY | os.O_CREAT)
    while time.monotonic() < end:
        os.pwrite(file, f"{number:20}".encode(), 0)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        whole += decode_one(number, samples)
        faulthandler.cancel_dump_traceback_later()
        number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{number - first:,} files from {first}: {whole:,} gave pixels, the others a DecodeError; peak {peak:.2f} GB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # seconds, and the file for the number
    given = parser.parse_args()
    if given.work:
        _work(given.first, float(given.work[0]), Path(given.work[1]))
        return 0
    with TemporaryDirectory() as folder:
        note = Path(folder, "number")
        command = [sys.executable, "-m", __spec__.name, "--first", str(given.first), "--work"]
        code = subprocess.run([*command, str(given.minutes * 60), str(note)], check=False).returncode
        if code:
            print(f"failed with exit code {code} at file {note.read_text().strip()}: run again with --first")
    return code


if __name__ == "__main__":
    sys.exit(main())
