"""What lies on the disk: readable by others, and never wrong in silence."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.build import BuildReport
from pipeline.dataset.codecs import CODECS
from pipeline.dataset.schema import CHUNK_BYTES, SHARD_CHUNKS, Attributes, colour_statistics, layout
from pipeline.dataset.store import Dataset, create, shard_file, write_shard
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import Damage, DamageError, DatasetError
from tests.pipeline.conftest import SIZE, draw
from tests.pipeline.dataset.damage_dataset import delete_and_verify, flip_and_verify

Images = Callable[..., Path]
Build = Callable[..., BuildReport]

CHUNK = 4 * SIZE[0] * SIZE[1] * 3 + 4  # bytes of a stored chunk with its checksum, under small_chunks


@pytest.fixture
def dataset(image_folder: Images, build: Build, small_chunks: None) -> Dataset:
    """28 rows to train on in 4 shards of 2 chunks, the last half empty; 12 to validate."""
    return Dataset.open(build(image_folder(a=20, b=20), val=0.3).path)


def test_xarray_opens_it(forty: Dataset) -> None:
    for part in (forty.train, forty.val):
        opened = xarray.open_zarr(forty.path, group=part.name, consolidated=False).load()
        assert dict(opened.sizes) == {"row": part.rows, "y": SIZE[0], "x": SIZE[1], "channel": 3}
        np.testing.assert_array_equal(opened["images"], part.read(0, part.rows))
        np.testing.assert_array_equal(opened["labels"], part.labels)
        assert [str(path) for path in opened["paths"].values] == part.paths


def test_any_range_of_rows(forty: Dataset) -> None:
    everything = forty.train.read(0, 28)
    for start in range(29):
        for stop in range(start, 29, 3):
            np.testing.assert_array_equal(forty.train.read(start, stop), everything[start:stop])
    for start, stop in ((-1, 3), (3, 2), (20, 29)):
        with pytest.raises(IndexError, match=r"expected rows within 0..28 of train"):
            forty.train.read(start, stop)


@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize("rows", [1, 4, 7, 12])
def test_shards_are_what_zarr_writes(tmp_path: Path, small_chunks: None, codec: str, rows: int) -> None:
    attributes = Attributes(("a", "b"), SIZE, "pad", 0, "somewhere", "hash")
    images = np.random.default_rng(rows).integers(0, 9, (12, *SIZE, 3), dtype=np.uint8)  # (N, H, W, 3)
    written = {}
    for writer in ("ours", "zarr"):
        path = tmp_path / writer
        create(path, attributes, {"train": rows, "val": 0}, codec)
        if writer == "ours":
            for shard in range(-(-rows // 8)):
                write_shard(path, "train", shard, images[:rows][8 * shard : 8 * shard + 8])
        else:
            array = zarr.open_array(path / "train" / "images", mode="r+").with_config({"write_empty_chunks": True})
            array[:] = images[:rows]
        files = sorted(path.glob("train/images/c/**/*"))
        written[writer] = [(file.relative_to(path), file.read_bytes()) for file in files if file.is_file()]
    assert written["ours"] == written["zarr"]
    assert len(written["ours"]) == -(-rows // 8)


def test_black_images_are_images(tmp_path: Path, build: Build, small_chunks: None) -> None:
    for name in "ab":
        for number in range(10):
            draw(tmp_path / "black" / name / f"{number}.png", (0, 0, 0))
    dataset = Dataset.open(build(tmp_path / "black").path)
    assert not dataset.train.read(0, dataset.train.rows).any()
    assert verify_dataset(dataset.path).ok


@given(st.integers(0, 10**6), st.integers(1, 700), st.integers(1, 700))
def test_layout(rows: int, height: int, width: int) -> None:
    cut = layout(rows, (height, width))
    assert cut.shard_rows % cut.chunk_rows == 0
    assert cut.chunk_rows & (cut.chunk_rows - 1) == 0, "a power of two"
    assert cut.chunk_rows == 1 or cut.chunk_rows * height * width * 3 <= CHUNK_BYTES
    assert cut.shard_rows <= SHARD_CHUNKS * cut.chunk_rows
    padding = cut.shards(rows) * cut.shard_rows - rows
    assert rows == 0 or padding < cut.shard_rows, "no shard without rows"


@given(st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=50))
def test_colour_statistics(pixels: list[list[int]]) -> None:
    values = np.array(pixels)
    sums, squares = values.sum(axis=0).tolist(), (values**2).sum(axis=0).tolist()
    mean, std = colour_statistics(len(pixels), sums, squares)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(std, values.std(axis=0), atol=1e-6)


# Damage


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_found(data: st.DataObject, forty: Dataset) -> None:
    whole = forty.path
    files = sorted(file for file in whole.rglob("c/**/*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    original = file.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        file.write_bytes(damaged)
        report = verify_dataset(whole)
        part, array = file.relative_to(whole).parts[:2]
        assert report.damage, f"bit flip at {place} of {file} went unnoticed"
        assert {(found.split, found.array) for found in report.damage} == {(part, array)}
    finally:
        file.write_bytes(original)


def test_random_damage_is_found(forty: Dataset, tmp_path: Path) -> None:
    """A short version of `python -m tests.pipeline.dataset.damage_dataset`."""
    copy = Dataset.open(Path(shutil.copytree(forty.path, tmp_path / "copy.zarr")))
    draw_at = random.Random(0)
    assert [flip_and_verify(copy, draw_at) for _ in range(30)] == [""] * 30
    assert [delete_and_verify(copy, draw_at) for _ in range(30)] == [""] * 30
    assert verify_dataset(copy.path).ok


def test_damage_is_named_with_chunk_and_rows(dataset: Dataset) -> None:
    second = shard_file(dataset.path, "train", 1)
    damaged = bytearray(second.read_bytes())
    damaged[CHUNK + 100] ^= 16  # in the second chunk of the second shard: rows 12..15
    second.write_bytes(damaged)
    shard_file(dataset.path, "train", 2).unlink()
    (dataset.path / "val" / "labels" / "c" / "0").unlink()
    calls: list[tuple[int, int]] = []
    report = verify_dataset(dataset.path, lambda *call: calls.append(call))
    checksum = "the checksum of the chunk does not match"
    paths, third = dataset.train.paths, shard_file(dataset.path, "train", 2)
    assert report.damage == (
        Damage("train", "images", 3, (12, 16), second, checksum, tuple(paths[12:16])),
        Damage("train", "images", 4, (16, 20), third, "no such file", tuple(paths[16:20])),
        Damage("train", "images", 5, (20, 24), third, "no such file", tuple(paths[20:24])),
        Damage(
            "val", "labels", 0, (0, 12), dataset.path / "val" / "labels" / "c" / "0", "no such file",
            tuple(dataset.val.paths),
        ),
    )  # fmt: skip
    assert not report.ok
    assert calls == [(done + 1, report.chunks) for done in range(report.chunks)]
    for start, stop in ((13, 14), (8, 16), (0, 28)):
        with pytest.raises(DamageError) as caught:
            dataset.train.read(start, stop)
        assert caught.value.damage == report.damage[0], "whoever reads gets told the same"
    assert str(caught.value) == (
        f"expected undamaged data, found damage in train images, chunk 3 in {second}, rows 12..15 ({paths[12]},"
        f" {paths[13]} and 2 more): {checksum}; run 'logpose verify {dataset.path}'"
    )
    assert pickle.loads(pickle.dumps(caught.value)).damage == report.damage[0]
    assert dataset.train.read(8, 12).shape[0] == 4, "the chunk beside it is fine"
    with pytest.raises(DamageError, match=r"found damage in val labels, chunk 0 in .*val/labels/c/0, rows 0\.\.11 "):
        _ = dataset.val.labels


def test_damage_without_the_names_of_the_images(dataset: Dataset) -> None:
    shard_file(dataset.path, "train", 2).unlink()
    (dataset.path / "train" / "paths" / "c" / "0").write_bytes(b"what")
    with pytest.raises(DamageError, match=r"rows 16\.\.19 \(of unknown images\): no such file"):
        dataset.train.read(16, 18)
    assert [damage.array for damage in verify_dataset(dataset.path).damage] == ["paths", "images", "images"]


def test_a_chunk_that_is_missing_in_its_shard_is_no_black_image(dataset: Dataset) -> None:
    from crc32c import crc32c

    file = shard_file(dataset.path, "train", 0)
    content = bytearray(file.read_bytes())
    index = bytearray(content[-36:-4])  # two chunks: offset and length each
    index[16:] = b"\xff" * 16
    content[-36:] = index + crc32c(bytes(index)).to_bytes(4, "little")
    file.write_bytes(content)
    assert dataset.train.read(0, 4).any()
    with pytest.raises(DamageError, match=r"train images, chunk 1 .* rows 4\.\.7 .*: missing in its shard"):
        dataset.train.read(4, 8)


@pytest.mark.parametrize("length", [0, 10, 200, 1000])
def test_truncated_shards_are_found(dataset: Dataset, length: int) -> None:
    file = shard_file(dataset.path, "val", 0)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DamageError):
        dataset.val.read(0, 1)


def test_verify_notices_rows_that_are_intact_but_others(dataset: Dataset) -> None:
    shutil.copy(shard_file(dataset.path, "train", 0), shard_file(dataset.path, "train", 1))
    report = verify_dataset(dataset.path)
    assert report.damage == ()
    assert report.content_matches is False


# Metadata


def change(path: Path, edit: Callable[[dict[str, object]], object]) -> None:
    node = json.loads(path.read_text())
    edit(node)
    path.write_text(json.dumps(node))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda node: node["attributes"].clear(), "expected a logpose dataset, found something else at"),
        (lambda node: node["attributes"].update(format_version=1), "expected format version 2, found 1 in"),
        (lambda node: node["attributes"].update(sealed=False), "found one still being built"),
        (lambda node: node["attributes"].pop("mean"), "found KeyError 'mean' in"),
        (lambda node: node["attributes"].update(mean=[1, 2]), "expected complete attributes, found ValueError"),
        (lambda node: node["attributes"].update(std=None), "expected mean, std and content hash, found none"),
        (lambda node: node["attributes"].update(size=[9, 9]), r"instead of uint8 \(9, 9, 3\)"),
    ],
)
def test_attributes_that_do_not_fit(
    dataset: Dataset, edit: Callable[[dict[str, object]], object], expected: str
) -> None:
    change(dataset.path / "zarr.json", edit)
    with pytest.raises(DatasetError, match=expected) as caught:
        Dataset.open(dataset.path)
    assert str(dataset.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_arrays_that_do_not_fit(dataset: Dataset) -> None:
    metadata = dataset.path / "val" / "labels" / "zarr.json"
    original = metadata.read_text()
    change(metadata, lambda node: node.update(shape=[11]))
    with pytest.raises(DatasetError, match=r"found 11 labels for 12 images in .*val: it is damaged"):
        Dataset.open(dataset.path)
    metadata.write_text(original[:100])
    with pytest.raises(DatasetError, match=r"expected whole metadata, found .* in .*val: it is damaged"):
        Dataset.open(dataset.path)
    shutil.rmtree(dataset.path / "train" / "images")
    with pytest.raises(DatasetError, match=r"expected whole metadata, found .* in .*train: it is damaged"):
        Dataset.open(dataset.path)


def test_labels_out_of_range(dataset: Dataset) -> None:
    change(dataset.path / "zarr.json", lambda node: node["attributes"].update(class_names=["a"]))
    with pytest.raises(DatasetError, match=r"expected labels below 1, found 0\.\.1 in train of"):
        _ = Dataset.open(dataset.path).train.labels


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected a dataset built by logpose, found nothing at .*check the path"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"found no zarr.json in it at"):
        Dataset.open(tmp_path)
    for text in ("", "{", "[]", '{"attributes": 3}', "\xff"):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(DatasetError):
            Dataset.open(tmp_path)


def test_reads_that_come_in_pieces_are_put_together(forty: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, preadv, calls = forty.train.read(0, 28), os.preadv, []

    def little(descriptor: int, buffers: Any, offset: int) -> int:
        """As a network's file system may: 577 bytes at a time, so that a chunk's 1,152 and 4 come in three pieces."""
        calls.append(offset)
        views, left = [], 577
        for buffer in buffers:
            view = memoryview(buffer).cast("B")[:left]
            views.append(view)
            left -= len(view)
        return preadv(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", little)
    part = Dataset.open(forty.path).train
    np.testing.assert_array_equal(part.read(0, 28), whole)
    assert len(calls) >= 7 * 3, "no chunk was read at once"
