"""Disk usage of a split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.disk_usage import Storage, measure_storage
from pipeline.dataset.store import Dataset, shard_file
from pipeline.dataset.writer import create_dataset, write_shard
from pipeline.errors import DatasetError
from tests.pipeline.conftest import SIZE

IMAGE = SIZE[0] * SIZE[1] * 3  # bytes


def test_storage_of_uncompressed_images(forty: Dataset) -> None:
    files = [path for path in (forty.path / "train" / "images").rglob("*") if path.is_file()]
    assert len(files) == 1 + 4, "zarr.json and the shards"
    train, val = (measure_storage(forty.path, split) for split in ("train", "val"))
    assert train == Storage(sum(map(len, map(Path.read_bytes, files))), 28 * IMAGE, 28, 4, 8, ("bytes", "crc32c"))
    assert (train.chunks, train.shards) == (7, 4)
    assert (val.rows, val.chunks, val.shards, val.raw_bytes) == (12, 3, 2, 12 * IMAGE)


@pytest.mark.parametrize(("codec", "name"), [("zstd", "zstd"), ("lz4", "blosc lz4")])
def test_storage_of_compressed_images(forty: Dataset, tmp_path: Path, codec: str, name: str) -> None:
    create_dataset(tmp_path, forty.attributes, {"train": 1000, "val": 0}, codec)
    empty = measure_storage(tmp_path, "train")
    write_shard(tmp_path, "train", 0, np.zeros((1000, *SIZE, 3), dtype=np.uint8))  # (N, H, W, 3)
    stored = measure_storage(tmp_path, "train")
    assert stored.codecs == ("bytes", name, "crc32c")
    assert stored.disk_bytes == empty.disk_bytes + shard_file(tmp_path, "train", 0).stat().st_size
    assert stored.disk_bytes < stored.raw_bytes / 10
    assert measure_storage(tmp_path, "val").chunks == 0


@pytest.mark.parametrize("damage", ["no JSON", "no shards", "no chunk grid"])
def test_damaged_metadata_is_an_error(forty: Dataset, tmp_path: Path, damage: str) -> None:
    broken = Path(shutil.copytree(forty.path, tmp_path / "broken.zarr"))
    file = broken / "train" / "images" / "zarr.json"
    node = json.loads(file.read_bytes())
    if damage == "no shards":
        node["codecs"] = [{"name": "bytes"}]
    if damage == "no chunk grid":
        del node["chunk_grid"]
    file.write_text("{" if damage == "no JSON" else json.dumps(node))
    with pytest.raises(DatasetError, match=r"^expected images in shards, found .* in .*/train/images/zarr\.json: .*"):
        measure_storage(broken, "train")
