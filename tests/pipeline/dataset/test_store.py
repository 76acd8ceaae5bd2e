"""The dataset on disk: readable by zarr and xarray, indexed by row, and never silently damaged."""

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
from pipeline.dataset.store import Dataset, Split, shard_file
from pipeline.dataset.verify import verify_dataset
from pipeline.dataset.writer import create_dataset, write_shard
from pipeline.errors import Damage, DamageError, DatasetError
from tests.pipeline.conftest import SIZE, draw_plain
from tests.pipeline.dataset.damage_dataset import delete_and_verify, flip_and_verify

Images = Callable[..., Path]
Build = Callable[..., BuildReport]

CHUNK = 4 * SIZE[0] * SIZE[1] * 3 + 4  # bytes of a stored chunk with its checksum, under small_chunks


@pytest.fixture
def dataset(image_folder: Images, build: Build, small_chunks: None) -> Dataset:
    """28 training rows in 4 shards of 2 chunks, the last half empty; 12 validation rows."""
    return Dataset.open(build(image_folder(a=20, b=20), val=0.3).path)


def test_xarray_opens_the_dataset(forty: Dataset) -> None:
    for split in (forty.train, forty.val):
        opened = xarray.open_zarr(forty.path, group=split.name, consolidated=False).load()
        assert dict(opened.sizes) == {"row": split.rows, "y": SIZE[0], "x": SIZE[1], "channel": 3}
        np.testing.assert_array_equal(opened["images"], split.read(0, split.rows))
        np.testing.assert_array_equal(opened["labels"], split.labels)
        assert [str(path) for path in opened["paths"].values] == split.paths


def test_read_any_range_of_rows(forty: Dataset) -> None:
    everything = forty.train.read(0, 28)
    for start in range(29):
        for stop in range(start, 29, 3):
            np.testing.assert_array_equal(forty.train.read(start, stop), everything[start:stop])
    for start, stop in ((-1, 3), (3, 2), (20, 29)):
        with pytest.raises(IndexError, match=r"expected rows within 0..28 of train"):
            forty.train.read(start, stop)


@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize("rows", [1, 4, 7, 12])
def test_shards_have_the_bytes_that_zarr_writes(tmp_path: Path, small_chunks: None, codec: str, rows: int) -> None:
    attributes = Attributes(("a", "b"), SIZE, "pad", 0, "somewhere", "hash")
    images = np.random.default_rng(rows).integers(0, 9, (12, *SIZE, 3), dtype=np.uint8)  # (N, H, W, 3)
    written = {}
    for writer in ("ours", "zarr"):
        path = tmp_path / writer
        create_dataset(path, attributes, {"train": rows, "val": 0}, codec)
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


def test_black_images_are_not_missing_chunks(tmp_path: Path, build: Build, small_chunks: None) -> None:
    for name in "ab":
        for number in range(10):
            draw_plain(tmp_path / "black" / name / f"{number}.png", (0, 0, 0))
    dataset = Dataset.open(build(tmp_path / "black").path)
    assert not dataset.train.read(0, dataset.train.rows).any()
    assert verify_dataset(dataset.path).ok


@given(st.integers(0, 10**6), st.integers(1, 700), st.integers(1, 700))
def test_layout_is_aligned_and_bounded(rows: int, height: int, width: int) -> None:
    cut = layout(rows, (height, width))
    assert cut.shard_rows % cut.chunk_rows == 0
    assert cut.chunk_rows & (cut.chunk_rows - 1) == 0, "a power of two"
    assert cut.chunk_rows == 1 or cut.chunk_rows * height * width * 3 <= CHUNK_BYTES
    assert cut.shard_rows <= SHARD_CHUNKS * cut.chunk_rows
    padding = cut.shards(rows) * cut.shard_rows - rows
    assert rows == 0 or padding < cut.shard_rows, "each shard has rows"


@given(st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=50))
def test_colour_statistics_match_numpy(pixels: list[list[int]]) -> None:
    values = np.array(pixels)
    sums, squares = values.sum(axis=0).tolist(), (values**2).sum(axis=0).tolist()
    mean, std = colour_statistics(len(pixels), sums, squares)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(std, values.std(axis=0), atol=1e-6)


# Rows by index


def test_dataset_has_splits_by_name(forty: Dataset) -> None:
    data = Dataset.open(str(forty.path))
    assert (len(data), len(data["train"]), len(data["val"])) == (40, 28, 12)
    assert data["train"] is data.train
    for name in ("test", 0, None):
        with pytest.raises(KeyError, match="expected the split 'train' or 'val', found"):
            data[name]  # type: ignore[index]
    with pytest.raises(TypeError, match="not iterable"):
        iter(data)
    for path in (3, None):
        with pytest.raises(TypeError):
            Dataset.open(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [0, 5, 27, -1, -28, np.int64(7), np.array(3), True])
def test_int_gives_one_example(forty: Dataset, row: Any) -> None:
    image, label, path = forty.train[row]
    np.testing.assert_array_equal(image, forty.train.read(0, 28)[int(row)])
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    assert (label, path) == (forty.train.labels[int(row)], forty.train.paths[int(row)])
    assert (type(label), type(path)) == (int, str)


@pytest.mark.parametrize(
    "index",
    [
        slice(None), slice(4, 12), slice(3, 21), slice(20, 99), slice(9, 9), slice(-5, None), slice(None, None, -3),
        [], [5], [3, -1, 3, 0], range(2, 25, 7), np.array([27, 0]), np.array([1, 2, 3], np.uint8),
        np.arange(28) % 5 == 0,
    ],
)  # fmt: skip
def test_slice_or_array_gives_examples(forty: Dataset, index: Any) -> None:
    rows = np.arange(28)[np.asarray(index, dtype=np.int64) if isinstance(index, list) else index]
    images, labels, paths = forty.train[index]
    assert images.shape == (len(rows), *SIZE, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, forty.train.read(0, 28)[rows])
    np.testing.assert_array_equal(labels, forty.train.labels[rows])
    assert paths == [forty.train.paths[row] for row in rows]


@pytest.mark.parametrize("index", [slice(None), list(range(27, -1, -1)), [0, 9, 1, 8]])
def test_each_chunk_is_read_once(forty: Dataset, index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, chunks = Split._read_chunk, list[int]()
    monkeypatch.setattr(Split, "_read_chunk", lambda *args: chunks.append(args[1]) or read(*args))
    forty.train[index]
    assert len(chunks) == len(set(chunks)) == (7 if len(np.arange(28)[index]) == 28 else 2)


@pytest.mark.parametrize("row", [28, -29, 2**70, [0, 28], np.array([-29]), np.array([2**63], np.uint64)])
def test_rows_out_of_range_are_an_index_error(forty: Dataset, row: Any) -> None:
    with pytest.raises(IndexError, match=r"one of the 28 rows of train, found row -?\d+ of .*: stay below len"):
        forty.train[row]


@pytest.mark.parametrize("index", ["0", 0.5, None, (0, 1), ["0"], [0.5], np.zeros((2, 2), int), np.ones(3, bool)])
def test_other_indices_are_a_type_error(forty: Dataset, index: Any) -> None:
    with pytest.raises(TypeError, match=r"an int, a slice or an array of ints, found .* for train of .*: index"):
        forty.train[index]


def test_for_loop_ends_after_the_last_row(forty: Dataset) -> None:
    assert [example.path for example in forty.val] == forty.val.paths


def test_repr_describes_dataset_and_splits(forty: Dataset) -> None:
    description = repr(forty)
    for text in ("28 images", "12 images", "(8, 12, 3)", "2: a, b", forty.content_hash, str(forty.path)):
        assert text in description
    assert repr(forty.val) == f"<Split 'val' of {str(forty.path)!r}: images uint8 (12, 8, 12, 3)>"


# Damage


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_reported(data: st.DataObject, forty: Dataset) -> None:
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
        split, array = file.relative_to(whole).parts[:2]
        assert report.damage, f"bit flip at {place} of {file} was not found"
        assert {(found.split, found.array) for found in report.damage} == {(split, array)}
    finally:
        file.write_bytes(original)


def test_random_damage_is_reported(forty: Dataset, tmp_path: Path) -> None:
    """A short run of `python -m tests.pipeline.dataset.damage_dataset`."""
    copy = Dataset.open(Path(shutil.copytree(forty.path, tmp_path / "copy.zarr")))
    draw_at = random.Random(0)
    assert [flip_and_verify(copy, draw_at) for _ in range(30)] == [""] * 30
    assert [delete_and_verify(copy, draw_at) for _ in range(30)] == [""] * 30
    assert verify_dataset(copy.path).ok


def test_damage_is_reported_with_chunk_and_rows(dataset: Dataset) -> None:
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
    dataset = Dataset.open(dataset.path)  # in one that is open, such a file is a changed one
    for start, stop in ((13, 14), (8, 16), (0, 28)):
        with pytest.raises(DamageError) as caught:
            dataset.train.read(start, stop)
        assert caught.value.damage == report.damage[0], "reading reports the same"
    assert str(caught.value) == (
        f"expected undamaged data, found damage in train images, chunk 3 in {second}, rows 12..15 ({paths[12]},"
        f" {paths[13]} and 2 more): {checksum}; run 'logpose verify {dataset.path}'"
    )
    assert pickle.loads(pickle.dumps(caught.value)).damage == report.damage[0]
    assert dataset.train.read(8, 12).shape[0] == 4, "the neighbouring chunk is undamaged"
    with pytest.raises(DamageError, match=r"found damage in val labels, chunk 0 in .*val/labels/c/0, rows 0\.\.11 "):
        _ = dataset.val.labels


def test_damage_of_unknown_images(dataset: Dataset) -> None:
    shard_file(dataset.path, "train", 2).unlink()
    (dataset.path / "train" / "paths" / "c" / "0").write_bytes(b"what")
    with pytest.raises(DamageError, match=r"rows 16\.\.19 \(of unknown images\): no such file"):
        dataset.train.read(16, 18)
    assert [damage.array for damage in verify_dataset(dataset.path).damage] == ["paths", "images", "images"]


def test_chunk_missing_from_its_shard_is_not_a_black_image(dataset: Dataset) -> None:
    from crc32c import crc32c

    file = shard_file(dataset.path, "train", 0)
    content = bytearray(file.read_bytes())
    index = bytearray(content[-36:-4])  # two chunks: offset and length each
    index[16:] = b"\xff" * 16
    content[-36:] = index + crc32c(bytes(index)).to_bytes(4, "little")
    file.write_bytes(content)
    dataset = Dataset.open(dataset.path)
    assert dataset.train.read(0, 4).any()
    with pytest.raises(DamageError, match=r"train images, chunk 1 .* rows 4\.\.7 .*: missing from its shard"):
        dataset.train.read(4, 8)


@pytest.mark.parametrize("length", [0, 10, 200, 1000])
def test_truncated_shards_are_damage(dataset: Dataset, length: int) -> None:
    file = shard_file(dataset.path, "val", 0)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DamageError):
        dataset.val.read(0, 1)


def test_verify_reports_other_rows_with_valid_checksums(dataset: Dataset) -> None:
    shutil.copy(shard_file(dataset.path, "train", 0), shard_file(dataset.path, "train", 1))
    report = verify_dataset(dataset.path)
    assert report.damage == ()
    assert report.content_matches is False


# Metadata


def change(path: Path, edit: Callable[[dict[str, object]], object]) -> None:
    """Edit metadata; attributes then have no checksum, like those of 0.1.0."""
    node = json.loads(path.read_text())
    node.get("attributes", {}).pop("crc32", None)
    edit(node)
    path.write_text(json.dumps(node))


def test_names_of_the_attributes_never_change(forty: Dataset) -> None:
    """Otherwise datasets that an earlier logpose built could not be opened, and their hashes would differ."""
    names = ("class_names", "size", "fit", "seed", "source", "build_hash", "copies", "mean", "std", "content_hash")
    attributes = json.loads((forty.path / "zarr.json").read_text())["attributes"]
    assert list(attributes) == ["format", "format_version", *names, "reports", "sealed", "crc32"]
    assert list(attributes["copies"]) == ["groups", "pictures", "labels_differ", "leaks"]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda node: node["attributes"].clear(), "expected a logpose dataset, found something else at"),
        (lambda node: node["attributes"].update(format_version=1), "expected format version 2, found 1 in"),
        (lambda node: node["attributes"].update(sealed=False), "found an unfinished build"),
        (lambda node: node["attributes"].pop("mean"), "found no mean in"),
        (lambda node: node["attributes"].update(mean=[1, 2]), r"expected complete attributes, found mean: .*\[1, 2\]"),
        (lambda node: node["attributes"].update(std=None), "expected mean, std and content hash, found none"),
        (lambda node: node["attributes"].update(size=[9, 9]), r"instead of uint8 \(9, 9, 3\)"),
    ],
)
def test_wrong_attributes_are_an_error(
    dataset: Dataset, edit: Callable[[dict[str, object]], object], expected: str
) -> None:
    change(dataset.path / "zarr.json", edit)
    with pytest.raises(DatasetError, match=expected) as caught:
        Dataset.open(dataset.path)
    assert str(dataset.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_wrong_arrays_are_an_error(dataset: Dataset) -> None:
    metadata = dataset.path / "val" / "labels" / "zarr.json"
    original = metadata.read_text()
    change(metadata, lambda node: node.update(shape=[11]))
    with pytest.raises(DatasetError, match=r"found 11 labels for 12 images in .*val: the metadata is damaged"):
        Dataset.open(dataset.path)
    metadata.write_text(original[:100])
    with pytest.raises(DatasetError, match=r"expected complete metadata, found .* in .*val: the metadata is damaged"):
        Dataset.open(dataset.path)
    shutil.rmtree(dataset.path / "train" / "images")
    with pytest.raises(DatasetError, match=r"expected complete metadata, found .* in .*train: the metadata is damaged"):
        Dataset.open(dataset.path)


def test_labels_out_of_range_are_an_error(dataset: Dataset) -> None:
    change(dataset.path / "zarr.json", lambda node: node["attributes"].update(class_names=["a"]))
    with pytest.raises(DatasetError, match=r"expected labels below 1, found 0\.\.1 in train of"):
        _ = Dataset.open(dataset.path).train.labels


def test_other_paths_are_not_datasets(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected a dataset built by logpose, found nothing at .*check the path"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"found no zarr.json at"):
        Dataset.open(tmp_path)
    for text in ("", "{", "[]", '{"attributes": 3}', "\xff"):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(DatasetError):
            Dataset.open(tmp_path)


def test_short_reads_are_continued(forty: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, preadv, calls = forty.train.read(0, 28), os.preadv, []

    def short_read(descriptor: int, buffers: Any, offset: int) -> int:
        """Like a network file system: 577 bytes at a time, so that the 1,156 of a chunk take three calls."""
        calls.append(offset)
        views, left = [], 577
        for buffer in buffers:
            view = memoryview(buffer).cast("B")[:left]
            views.append(view)
            left -= len(view)
        return preadv(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", short_read)
    np.testing.assert_array_equal(Dataset.open(forty.path).train.read(0, 28), expected)
    assert len(calls) >= 7 * 3, "no chunk was read in one call"
