"""Limits of a dataset's metadata, which may be untrusted: no more memory and time than ours would take."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from logpose.common.errors import shortened
from logpose.common.files import open_regular
from logpose.common.records import read_json
from pipeline.dataset.schema import CHUNK_BYTES, COLUMN_CHUNK_ROWS, SHARD_CHUNKS, Layout

MAX_SHARDS = 2**24  # of a split, of 16 MiB each
MAX_COLUMN_BYTES = 2**28  # of a chunk of labels or paths: 65,536 paths of 4 kB
MAX_REPORT_BYTES = 2**28  # of failures.csv and duplicates.csv, for millions of files
COLUMN_TYPES = {"labels": ("int64", "bytes"), "paths": ("string", "vlen-utf8")}  # and the codec before the checksum


def check_layout(rows: int, layout: Layout, image: tuple[int, ...]) -> None:
    """Check the layout of a number of rows of images (H, W, 3). Raises ValueError."""
    is_small = layout.chunk_rows == 1 or layout.chunk_rows * math.prod(image) <= CHUNK_BYTES
    is_even = layout.shard_rows % layout.chunk_rows == 0 and layout.shard_rows <= SHARD_CHUNKS * layout.chunk_rows
    if not is_small or not is_even or layout.shards(rows) > MAX_SHARDS:
        raise ValueError(f"{rows} rows in chunks of {layout.chunk_rows} in shards of {layout.shard_rows}")


def check_column(folder: Path, name: str, array: Any, rows: int) -> None:
    """Check the array `name`, in its folder, of labels or paths of a split. Raises ValueError, KeyError or OSError."""
    if array.shape != (rows,):
        raise ValueError(f"{array.shape[0]} {name} for {rows} images")
    metadata = read_json(folder / "zarr.json")
    stored, codecs = metadata["data_type"], [codec["name"] for codec in metadata["codecs"]]
    if array.chunks[0] > COLUMN_CHUNK_ROWS or (stored, *codecs) != (*COLUMN_TYPES[name], "crc32c"):
        how = shortened(", ".join(map(str, (stored, *codecs))))
        raise ValueError(f"{name} in chunks of {array.chunks[0]} rows, stored as {how}")


def check_column_file(file: Path, name: str, chunk_rows: int) -> None:
    """Check the file of a chunk of labels or paths before zarr reads it. Raises OSError or ValueError.

    zarr fills in what is missing, would wait for a pipe, and makes room for as many strings as a file says it has.
    """
    descriptor = open_regular(file)
    try:
        if os.fstat(descriptor).st_size > MAX_COLUMN_BYTES:
            raise ValueError("more bytes than a chunk can have")
        if name == "paths" and int.from_bytes(os.read(descriptor, 4), "little") != chunk_rows:
            raise ValueError("the chunk has another number of strings")
    finally:
        os.close(descriptor)
