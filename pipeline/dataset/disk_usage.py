"""What the images of a part take on the disk: read from the files, without opening one of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError


@dataclass(frozen=True)
class Storage:
    """How the images of a part are stored, and in how many bytes.

    disk_bytes  of all files of the array
    raw_bytes   of its pixels, rows·H·W·3
    codecs      of a chunk, from pixels to disk, as Zarr calls them
    """

    disk_bytes: int
    raw_bytes: int
    rows: int
    chunk_rows: int
    shard_rows: int
    codecs: tuple[str, ...]

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk_rows)

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)


def measure_storage(path: Path, part: str) -> Storage:
    """What the images of a part of the dataset at `path` take. Raises DatasetError if the metadata is damaged."""
    array = path / part / "images"
    try:
        node = json.loads((array / "zarr.json").read_bytes())
        (sharding,) = node["codecs"]
        return Storage(
            disk_bytes=_size_of_files(array),
            raw_bytes=prod(map(int, node["shape"])),
            rows=int(node["shape"][0]),
            chunk_rows=int(sharding["configuration"]["chunk_shape"][0]),
            # What Zarr calls the chunks of a sharded array are its shards.
            shard_rows=int(node["chunk_grid"]["configuration"]["chunk_shape"][0]),
            codecs=tuple(map(_name_of, sharding["configuration"]["codecs"])),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DatasetError(
            f"expected images in shards, found {type(error).__name__} {error} in {array / 'zarr.json'}: the metadata"
            " is damaged, build the dataset again with --overwrite"
        ) from error


def _name_of(codec: dict[str, Any]) -> str:
    """`crc32c`; for a codec that is a choice of several, which one: `blosc lz4`."""
    chosen = codec.get("configuration", {}).get("cname")
    return f"{codec['name']} {chosen}" if chosen else str(codec["name"])


def _size_of_files(folder: Path) -> int:
    return sum(Path(where, name).stat().st_size for where, _, names in os.walk(folder) for name in names)
