"""Disk usage of a split's images, from file sizes and metadata: no chunk is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.dataset.store import image_metadata
from pipeline.errors import damaged_metadata


@dataclass(frozen=True)
class Storage:
    """Storage of a split's images.

    disk_bytes  size of all files of the array
    raw_bytes   size of the pixels, rows·H·W·3
    codecs      of a chunk in the order of writing, by their Zarr names
    """

    disk_bytes: int
    raw_bytes: int
    rows: int
    chunk_rows: int
    shard_rows: int
    codecs: tuple[str, ...]

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)

    @property
    def shards(self) -> int:
        """Number of shards, each one file."""
        return -(-self.rows // self.shard_rows)


def measure_storage(path: Path, split: str) -> Storage:
    """Measure a split of the dataset at `path`. Raises DatasetError if the metadata is damaged."""
    array = path / split / "images"
    try:
        node = image_metadata(path, split)
        (sharding,) = node["codecs"]
        return Storage(
            disk_bytes=_size_of_files(array),
            raw_bytes=prod(map(int, node["shape"])),
            rows=int(node["shape"][0]),
            chunk_rows=int(sharding["configuration"]["chunk_shape"][0]),
            # Zarr's metadata calls the shards of a sharded array its chunks.
            shard_rows=int(node["chunk_grid"]["configuration"]["chunk_shape"][0]),
            codecs=tuple(map(_codec_name, sharding["configuration"]["codecs"])),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        found = f"{type(error).__name__} {error}"
        raise damaged_metadata("images in shards", found, array / "zarr.json") from error


def _codec_name(codec: dict[str, Any]) -> str:
    """`crc32c`; for blosc, with the compressor inside it: `blosc lz4`."""
    compressor = codec.get("configuration", {}).get("cname")
    return f"{codec['name']} {compressor}" if compressor else str(codec["name"])


def _size_of_files(folder: Path) -> int:
    return sum(Path(parent, name).stat().st_size for parent, _, names in os.walk(folder) for name in names)
