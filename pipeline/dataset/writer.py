"""Write a dataset: create it, write its shards, seal it.

`create_dataset` makes the arrays, each task calls `write_shard` for whole shards of its own, and `seal` finishes. Two
writers of one shard would corrupt it silently, so a shard is always written as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore

from logpose.common.files import sync, write_atomically
from pipeline.dataset.codecs import chunk_codecs
from pipeline.dataset.schema import COLUMN_CHUNK_ROWS, IMAGE_DIMENSIONS, SPLITS, Attributes, layout
from pipeline.dataset.shard_format import encode_shard
from pipeline.dataset.store import WRITE_EMPTY_CHUNKS, image_metadata, open_array, read_attributes, shard_file


def create_dataset(path: Path, attributes: Attributes, rows: dict[str, int], codec: str = "none") -> None:
    """Create an unsealed dataset with this many rows per split. `path` must not hold one yet."""
    # Without zarr's overwrite option, which would empty the folder: it holds the lock of the build.
    root = zarr.create_group(LocalStore(path), zarr_format=3, attributes=attributes.to_json())
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


def ensure_rows(path: Path, split: str, rows: int) -> None:
    """Grow the images of a split to at least this many rows."""
    images = open_array(path, split, "images", "r+")
    if images.shape[0] < rows:
        images.resize((rows, *images.shape[1:]))


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
        images = open_array(path, split, "images", "r+")
        images.resize((len(labels[split]), *images.shape[1:]))
        _write_column(path, split, "labels", labels[split])
        _write_column(path, split, "paths", np.array(paths[split], dtype=np.dtypes.StringDType()))
    for leftover in path.rglob("*.partial"):  # of a killed writer
        leftover.unlink()
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
    _update(path, attributes.to_json())


def unseal(path: Path) -> None:
    """Mark the dataset unsealed, before deleting parts of it."""
    _update(path, replace(read_attributes(path), sealed=False).to_json())


def _update(path: Path, attributes: dict[str, Any]) -> None:
    zarr.open_group(LocalStore(path), mode="r+").update_attributes(attributes)
    sync(path / "zarr.json")
    sync(path)


def _write_column(path: Path, split: str, name: str, values: npt.NDArray[Any]) -> None:
    array = zarr.create_array(
        LocalStore(path),
        name=f"{split}/{name}",
        shape=values.shape,
        dtype=str if name == "paths" else values.dtype,
        chunks=(min(COLUMN_CHUNK_ROWS, max(1, len(values))),),
        compressors=chunk_codecs("none"),
        dimension_names=("row",),
        config=WRITE_EMPTY_CHUNKS,
        overwrite=True,
    )
    array[:] = values
