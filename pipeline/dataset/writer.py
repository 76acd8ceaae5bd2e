"""Write a dataset: create it, write its shards, seal it.

`create_dataset` makes the arrays, each task calls `write_shard` for whole shards of its own, and `seal` finishes. Two
writers of one shard would corrupt it silently, so a shard is always written as a whole.

zarr neither writes atomically nor syncs: after a power cut a file of its would be empty. So it writes to memory, and
each of its files is then written, synced and named like all others.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import MemoryStore

from logpose.common.files import read_regular, remove_folder, sync, sync_folder, write_atomically
from logpose.common.records import read_json
from pipeline.dataset.codecs import chunk_codecs
from pipeline.dataset.schema import COLUMN_CHUNK_ROWS, IMAGE_DIMENSIONS, METADATA_FILES, SPLITS, Attributes, layout
from pipeline.dataset.shard_format import encode_shard
from pipeline.dataset.store import WRITE_EMPTY_CHUNKS, image_metadata, read_attributes, shard_file

METADATA = "zarr.json"


def create_dataset(path: Path, attributes: Attributes, rows: dict[str, int], codec: str = "none") -> None:
    """Create an unsealed dataset with this many rows per split. `path` must not hold one yet.

    Durable on return. The root's metadata comes first: the rest of an interrupted creation is recognised by it.
    """
    store: dict[str, Any] = {}
    root = zarr.create_group(MemoryStore(store), zarr_format=3, attributes=attributes.to_json())
    height, width = attributes.size
    for split in SPLITS:
        shape = layout(rows[split], attributes.size)
        root.create_group(split).create_array(
            "images",
            shape=(rows[split], height, width, 3),
            dtype=np.uint8,
            chunks=(shape.chunk_rows, height, width, 3),
            shards=(shape.shard_rows, height, width, 3),
            compressors=chunk_codecs(codec),
            fill_value=0,
            dimension_names=IMAGE_DIMENSIONS,
        )
    _write_store(path, store)


def ensure_rows(path: Path, split: str, rows: int) -> None:
    """Grow the images of a split to at least this many rows."""
    if image_metadata(path, split)["shape"][0] < rows:
        _set_rows(path, split, rows)


def write_shard(
    path: Path, split: str, shard: int, images: npt.NDArray[np.uint8], before_rename: Callable[[], None] = lambda: None
) -> None:
    """Write the rows (n, H, W, 3) of one whole shard atomically; on return the bytes are on the disk.

    before_rename() runs right before the file gets its name, and may raise to prevent that. Raises OSError, for
    example if the disk is full.
    """
    buffers = encode_shard(images, image_metadata(path, split))
    write_atomically(shard_file(path, split, shard), buffers, shared=True, before_rename=before_rename)


def seal(
    path: Path, attributes: Attributes, labels: dict[str, npt.NDArray[np.int64]], paths: dict[str, list[str]]
) -> None:
    """Trim the images to their rows, write labels (N,) and paths, sync everything, then mark the dataset sealed."""
    for split in SPLITS:
        _set_rows(path, split, len(labels[split]))
        _write_column(path, split, "labels", labels[split])
        _write_column(path, split, "paths", np.array(paths[split], dtype=np.dtypes.StringDType()))
    for leftover in path.rglob("*.partial"):  # of a killed writer
        leftover.unlink()
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder, name))
        sync_folder(Path(folder))
    metadata = {name: zlib.crc32(read_regular(path / name)) for name in METADATA_FILES}
    _update(path, replace(attributes, reports=(attributes.reports or {}) | metadata).to_json())


def unseal(path: Path) -> None:
    """Mark the dataset unsealed, before deleting parts of it."""
    _update(path, replace(read_attributes(path), sealed=False).to_json())


def _update(path: Path, attributes: dict[str, Any]) -> None:
    node = read_json(path / METADATA)
    node["attributes"] |= attributes
    _write_metadata(path, node)


def _set_rows(path: Path, split: str, rows: int) -> None:
    """Set the number of rows of a split's images; delete shards beyond them."""
    node = image_metadata(path, split)
    node["shape"][0] = rows
    _write_metadata(path / split / "images", node)
    shards = -(-rows // node["chunk_grid"]["configuration"]["chunk_shape"][0])
    for folder in (path / split / "images" / "c").glob("*"):
        if folder.name.isdecimal() and int(folder.name) >= shards:
            remove_folder(folder)


def _write_metadata(folder: Path, node: dict[str, Any]) -> None:
    write_atomically(folder / METADATA, json.dumps(node, indent=2))  # as zarr writes it


def _write_column(path: Path, split: str, name: str, values: npt.NDArray[Any]) -> None:
    store: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(store),
        name=name,
        shape=values.shape,
        dtype=str if name == "paths" else values.dtype,
        chunks=(min(COLUMN_CHUNK_ROWS, max(1, len(values))),),
        compressors=chunk_codecs("none"),
        dimension_names=("row",),
        config=WRITE_EMPTY_CHUNKS,
    )
    array[:] = values
    remove_folder(path / split / name)  # of an interrupted end
    _write_store(path / split, {key: value for key, value in store.items() if "/" in key})


def _write_store(path: Path, store: dict[str, Any]) -> None:
    """Write what zarr has written to memory, folders before what is in them."""
    for key in sorted(store, key=lambda key: (key.count("/"), key)):
        write_atomically(path / key, store[key].to_bytes())
