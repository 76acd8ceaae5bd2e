"""Near-duplicates in a build: in one split, and listed in duplicates.csv."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build import shard_task
from pipeline.build.build import BuildReport
from pipeline.build.destination import ExistingBuild
from pipeline.build.journal import FOLDER
from pipeline.dataset.schema import DUPLICATES_FILE, DuplicateCounts
from pipeline.dataset.store import Dataset
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import DecodeError, PipelineError

Build = Callable[..., BuildReport]
PIXELS = 12


def draw_noise(path: Path, seed: int) -> None:
    """Write an image of noise, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)  # (H, W, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """40 images in a and b. The first 12 in a have a copy in a, the next 2 a copy in b."""
    root = tmp_path / "copied"
    for number in range(40):
        draw_noise(root / "ab"[number // 20] / f"{number:02}.png", number)
    for number in range(14):
        shutil.copy(root / "a" / f"{number:02}.png", root / ("a" if number < 12 else "b") / f"{number:02} copy.png")
    return root


def split_of_each(dataset: Dataset) -> dict[str, str]:
    """The name of the split of each path."""
    return {path: split.name for split in (dataset.train, dataset.val) for path in split.paths}


def check_pixels(dataset: Dataset, root: Path) -> None:
    for split in (dataset.train, dataset.val):
        for image, path in zip(split.read(0, split.rows), split.paths, strict=True):
            with Image.open(root / path) as expected:
                np.testing.assert_array_equal(image, np.asarray(expected), err_msg=path)


def listed(dataset: Path) -> list[dict[str, str]]:
    with (dataset / DUPLICATES_FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("small_chunks")
def test_duplicates_are_in_one_split_and_listed(copied: Path, build: Build) -> None:
    report = build(copied, size=(PIXELS, PIXELS), val=0.4)
    assert report.duplicates == DuplicateCounts(groups=14, images=28, labels_differ=2, leaks=0)
    dataset = Dataset.open(report.path)
    assert dataset.attributes.duplicates == report.duplicates
    splits = split_of_each(dataset)
    assert len(splits) == 54
    check_pixels(dataset, copied)
    for number in range(14):
        copy = f"{'a' if number < 12 else 'b'}/{number:02} copy.png"
        assert splits[f"a/{number:02}.png"] == splits[copy]
    rows = listed(report.path)
    assert {(row["path"], row["part"]) for row in rows} <= set(splits.items())
    assert [int(row["group"]) for row in rows] == [group for group in range(1, 15) for _ in range(2)]
    assert [row["how"] for row in rows] == ["", "same"] * 14
    assert [row["labels"] for row in rows] == ["same"] * 24 + ["differ"] * 4
    assert [row["label"] for row in rows[-2:]] == ["a", "b"]
    assert verify_dataset(report.path).ok


@pytest.mark.usefixtures("small_chunks")
def test_without_grouping_duplicates_are_divided(copied: Path, build: Build) -> None:
    """Control for the test above."""
    report = build(copied, size=(PIXELS, PIXELS), val=0.4, group_copies=False)
    assert report.duplicates is None
    assert not (report.path / DUPLICATES_FILE).exists()
    splits = split_of_each(Dataset.open(report.path))
    assert any(splits[f"a/{number:02}.png"] != splits[f"a/{number:02} copy.png"] for number in range(12))


def test_leaks_of_a_given_split_are_reported_but_not_corrected(build: Build, tmp_path: Path) -> None:
    root = tmp_path / "given"
    for number in range(12):
        draw_noise(root / ("train" if number < 8 else "test") / "ab"[number % 2] / f"{number}.png", number)
    shutil.copy(root / "train" / "a" / "0.png", root / "test" / "a" / "again.png")
    shutil.copy(root / "test" / "b" / "9.png", root / "test" / "b" / "twice.png")
    report = build(root, size=(PIXELS, PIXELS))
    assert report.rows == {"train": 8, "val": 6}
    assert report.duplicates == DuplicateCounts(groups=2, images=4, labels_differ=0, leaks=1)
    assert split_of_each(Dataset.open(report.path))["test/a/again.png"] == "val"


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stopped_after", [0, 5, 13, 14, 15, 17])
def test_resumed_build_has_the_same_split(
    copied: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    """Stopped in the first round, right before the search for near-duplicates, and in the second round."""
    (copied / "b" / "25.png").write_bytes(b"")
    options = {"size": (PIXELS, PIXELS), "val": 0.4}
    uninterrupted = build(copied, tmp_path / "uninterrupted.zarr", **options)
    write, written = shard_task.write_shard, list[object]()

    def write_some(*arguments: object) -> None:
        if len(written) == stopped_after:
            raise OSError("stop")
        write(*arguments)  # type: ignore[arg-type]
        written.append(arguments)

    dest = tmp_path / "stopped.zarr"
    with monkeypatch.context() as patch, pytest.raises(PipelineError, match="stop"):
        patch.setattr(shard_task, "write_shard", write_some)
        build(copied, dest, workers=1, **options)
    assert (dest / FOLDER / "copies.json").exists() == (stopped_after >= 14), "14 shards in the first round"
    report = build(copied, dest, **options)
    assert report.existing is ExistingBuild.UNFINISHED
    assert (report.content_hash, report.duplicates) == (uninterrupted.content_hash, uninterrupted.duplicates)
    assert listed(dest) == listed(uninterrupted.path)
    check_pixels(Dataset.open(dest), copied)


@pytest.mark.usefixtures("small_chunks")
def test_split_that_grows_and_then_loses_an_image(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train gets two more rows than it was created with; the file of one cannot be read any more when it moves."""
    root = tmp_path / "growing"
    for number in range(6):
        draw_noise(root / "a" / f"{number}.png", number)
    for seed, name in ((10, "b"), (20, "c")):  # only copies of one image: all must be in train
        draw_noise(root / name / "0.png", seed)
        shutil.copy(root / name / "0.png", root / name / "1.png")
    decode, seen = shard_task.decode_image, set[str]()

    def vanish(path: str, *rest: object) -> object:
        if path.split("/")[-2] == "b" and path in seen:
            raise DecodeError("unreadable", "no such file or directory")
        seen.add(path)
        return decode(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_task, "decode_image", vanish)
    report = build(root, size=(PIXELS, PIXELS), val=0.2)
    assert report.rows == {"train": 8, "val": 1}
    assert [failure.path[0] for failure in report.failures] == ["b"]
    dataset = Dataset.open(report.path)
    check_pixels(dataset, root)
    assert sorted(path[0] for path in dataset.train.paths) == ["a"] * 5 + ["b", "c", "c"]


def test_file_system_that_cannot_map_files(copied: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build(copied, size=(PIXELS, PIXELS))

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", refuse)
    report = build(copied, copied.parent / "unmapped.zarr", size=(PIXELS, PIXELS))
    assert (report.content_hash, report.duplicates) == (expected.content_hash, expected.duplicates)
