"""Compression codecs on decoded images: size, write speed and read speed of one shard.

    python -m benchmarks.build.codecs FOLDER... [--size N] [--fit FIT] [--rounds N]

For each folder, decodes a seeded sample of images that fills one shard and writes it with zarr, with the shards, chunks
and CRC32C of a dataset. Codecs are interleaved, A B C A B C, after one warm-up round; rates are medians over the
rounds, in MB of pixels per second, for one caller (zarr may use more threads). "written" includes the wait for the
disk, "unsynced" does not; reading is from the page cache. The last number of a Blosc codec is its typesize: 3 is a
pixel, 1 a byte.

The default fit, pad, adds a white border that compresses to nothing; --fit crop measures the images alone.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from benchmarks.worker import BackgroundLoad
from pipeline.dataset.schema import layout
from pipeline.errors import DecodeError
from pipeline.images.decode import FITS, decode_pixels

MANY_ROWS = 10**6  # enough for full chunks and shards

CODECS: dict[str, tuple[BytesBytesCodec, ...]] = {
    "none": (),
    "lz4": (BloscCodec(typesize=1, cname="lz4", shuffle="noshuffle"),),
    "lz4, shuffle, 3": (BloscCodec(typesize=3, cname="lz4", shuffle="shuffle"),),
    "lz4, bitshuffle, 1": (BloscCodec(typesize=1, cname="lz4", shuffle="bitshuffle"),),
    "lz4, bitshuffle, 3": (BloscCodec(typesize=3, cname="lz4", shuffle="bitshuffle"),),
    "zstd 1": (ZstdCodec(level=1),),
    "zstd 3": (ZstdCodec(level=3),),
    "blosc zstd 1": (BloscCodec(typesize=1, cname="zstd", clevel=1, shuffle="noshuffle"),),
    "blosc zstd 1, shuffle, 3": (BloscCodec(typesize=3, cname="zstd", clevel=1, shuffle="shuffle"),),
    "blosc zstd 1, bitsh., 1": (BloscCodec(typesize=1, cname="zstd", clevel=1, shuffle="bitshuffle"),),
    "blosc zstd 1, bitsh., 3": (BloscCodec(typesize=3, cname="zstd", clevel=1, shuffle="bitshuffle"),),
    "blosc zstd 3, shuffle, 3": (BloscCodec(typesize=3, cname="zstd", clevel=3, shuffle="shuffle"),),
}


def shard_of(folder: Path, size: int, fit: str) -> np.ndarray:
    """The pixels of one shard, or of all images if they do not fill it: (n, size, size, 3)."""
    rows = layout(MANY_ROWS, (size, size)).shard_rows
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(files)):
        try:
            images.append(decode_pixels(files[index], (size, size), fit))
        except DecodeError:
            continue
        if len(images) == rows:
            break
    return np.stack(images)


def create(folder: Path, images: np.ndarray, codecs: tuple[BytesBytesCodec, ...]) -> Any:
    """An empty Zarr array of one shard, with a dataset's layout."""
    cut, frame = layout(MANY_ROWS, images.shape[1:3]), images.shape[1:]
    return zarr.create_array(
        LocalStore(folder),
        shape=images.shape,
        dtype=np.uint8,
        chunks=(cut.chunk_rows, *frame),
        shards=(cut.shard_rows, *frame),
        compressors=(*codecs, Crc32cCodec()),
        fill_value=0,
        overwrite=True,
        config={"write_empty_chunks": True},
    )


def write_and_read(folder: Path, images: np.ndarray, codecs: tuple[BytesBytesCodec, ...]) -> list[float]:
    """Write, sync and read one shard: seconds until zarr returns, until on disk, and to read it; and its bytes."""
    array, shard = create(folder, images, codecs), folder / "c/0/0/0/0"
    began = time.perf_counter()
    array[:] = images
    cached = time.perf_counter() - began
    with shard.open("rb") as file:
        os.fsync(file.fileno())
    written = time.perf_counter() - began
    began = time.perf_counter()
    back = array[:]
    read = time.perf_counter() - began
    if not np.array_equal(back, images):
        raise SystemExit(f"{codecs} returned different pixels")
    return [cached, written, read, shard.stat().st_size]


def measure(folder: Path, size: int, fit: str, rounds: int) -> dict[str, dict[str, float]]:
    """Compare all codecs on one folder; prints a table and returns the medians."""
    images = shard_of(folder, size, fit)  # (n, size, size, 3)
    results: dict[str, list[list[float]]] = {name: [] for name in CODECS}
    for number in range(-1, rounds):
        for name, codecs in CODECS.items():
            with tempfile.TemporaryDirectory() as where:
                found = write_and_read(Path(where, "images"), images, codecs)
            if number >= 0:  # the first round is a warm-up
                results[name].append(found)
    megabytes = images.nbytes / 1e6
    print(f"\n{folder}: {len(images):,} images of {size} px, {fit}, {megabytes:.1f} MB")
    print(f"{'':26} {'stored':>7}  {'unsynced MB/s':>16}  {'written MB/s':>12}  {'read MB/s':>9}")
    medians = {}
    for name, rows in results.items():
        cached, written, read, stored = (float(value) for value in np.median(rows, axis=0))
        ratio = stored / images.nbytes
        print(
            f"{name:26} {ratio:7.1%}  {megabytes / cached:16.0f}  {megabytes / written:12.0f}  {megabytes / read:9.0f}"
        )
        medians[name] = {
            "stored": round(ratio, 4), "written": round(megabytes / written), "read": round(megabytes / read)
        }  # fmt: skip
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--fit", choices=FITS, default="pad")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    background, found = BackgroundLoad(), {}
    for folder in arguments.folders:
        found[str(folder)] = measure(folder, arguments.size, arguments.fit, arguments.rounds)
    others = round(background.cores(), 2)
    print(
        f"\ncores used by other processes: {others}"
        f"{': too many for reliable figures' if others > 0.1 else ''}"
    )
    print(json.dumps({"size": arguments.size, "fit": arguments.fit, "other_cores": others, "folders": found}))


if __name__ == "__main__":
    main()
