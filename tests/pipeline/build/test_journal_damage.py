"""Damaged journals: whatever happens to a file of an unfinished build, the finished dataset is the same."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.build.build import BuildReport
from pipeline.build.destination import ExistingBuild
from pipeline.build.journal import FOLDER, Journal
from pipeline.dataset.store import shard_file
from pipeline.dataset.verify import verify_dataset
from pipeline.duplicates.fingerprint import FINGERPRINT_BYTES
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.errors import BuildError, ReadError
from tests.pipeline.build.test_resume import build_and_stop

Build = Callable[..., BuildReport]
SIZE = (12, 12)
REPORTS = ("failures.csv", "duplicates.csv")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 images in two classes, 10 of them copies of others, and 2 that cannot be read."""
    root = tmp_path / "images"
    for number in range(40):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = number if number < 30 else number - 30
        pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)  # (H, W, 3)
        Image.fromarray(pixels).save(path)
    for name in ("a/broken.png", "b/empty.png"):
        (root / name).write_bytes(b"")
    return root


def damaged(content: bytes, how: str, draw: random.Random) -> bytes:
    if how == "bit":
        place = draw.randrange(8 * len(content))
        return content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]
    return {"cut": content[: draw.randrange(len(content))], "zeros": bytes(len(content)), "more": content + b"1"}[how]


def stop_at_the_second_round(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a build until the groups of near-duplicates are recorded."""
    save = Journal.save_duplicates

    def save_and_stop(self: Journal, groups: DuplicateGroups) -> None:
        save(self, groups)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "save_duplicates", save_and_stop)
        run()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("pattern", ["*.fingerprints", "*-*.json", "copies.json", "build.json", "files.txt"])
@pytest.mark.parametrize("how", ["bit", "bit again", "bit once more", "cut", "zeros", "more"])
def test_damaged_journal_changes_nothing(
    images: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, how: str
) -> None:
    draw = random.Random(f"{pattern} {how}")
    expected = build(images, tmp_path / "whole.zarr", size=SIZE)
    dest = tmp_path / "d.zarr"
    if pattern == "copies.json":
        stop_at_the_second_round(lambda: build(images, dest, size=SIZE), monkeypatch)
    else:
        build_and_stop(images, dest, draw.randint(2, 5), monkeypatch, size=SIZE)
    file = draw.choice(sorted((dest / FOLDER).glob(pattern)))
    content = file.read_bytes()
    file.write_bytes(damaged(content, how.partition(" ")[0], draw))
    report = build(images, dest, size=SIZE)
    assert report.existing is ExistingBuild.UNFINISHED
    assert report.content_hash == expected.content_hash
    assert verify_dataset(dest).ok
    for name in REPORTS:
        assert (dest / name).read_bytes() == (expected.path / name).read_bytes()


@pytest.mark.usefixtures("small_chunks")
def test_fingerprints_with_other_bytes_are_taken_again(
    images: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the right length, and for the right files: copies would not be found, and cross the split."""
    expected, dest = build(images, tmp_path / "whole.zarr", size=SIZE), tmp_path / "d.zarr"
    build_and_stop(images, dest, 8, monkeypatch, size=SIZE)
    for file in (dest / FOLDER).glob("*.fingerprints"):
        content = file.read_bytes()
        numbers = 8 * (len(content) // (8 + FINGERPRINT_BYTES))
        noise = np.random.default_rng(0).bytes(len(content) - numbers - 8)
        file.write_bytes(content[:numbers] + noise + content[-8:])
    assert not Journal(dest).fingerprinted(42).any()
    build(images, dest, size=SIZE)
    for name in REPORTS:
        assert (dest / name).read_bytes() == (expected.path / name).read_bytes()


@pytest.mark.usefixtures("small_chunks")
def test_fingerprints_that_are_damaged_during_the_build_stop_it(
    images: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise copies would be found in fewer images, and cross the split."""
    expected, add = build(images, tmp_path / "whole.zarr", size=SIZE), Journal.add
    dest = tmp_path / "d.zarr"

    def damaging_add(self: Journal, *arguments: object) -> None:
        add(self, *arguments)  # type: ignore[arg-type]
        for file in (dest / FOLDER).glob("*.fingerprints"):
            file.write_bytes(file.read_bytes()[:-9] + b"damaged")

    message = r"found some damaged in .*d\.zarr: run the same build again"
    with monkeypatch.context() as patch, pytest.raises(BuildError, match=message):
        patch.setattr(Journal, "add", damaging_add)
        build(images, dest, size=SIZE)
    assert build(images, dest, size=SIZE).content_hash == expected.content_hash


@pytest.mark.usefixtures("small_chunks")
def test_journal_of_an_older_version_is_resumed(
    images: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no checksums."""
    expected, dest = build(images, tmp_path / "whole.zarr", size=SIZE), tmp_path / "d.zarr"
    build_and_stop(images, dest, 4, monkeypatch, size=SIZE)
    for file in (dest / FOLDER).iterdir():
        if file.suffix == ".json":
            text = file.read_text()
            file.write_text(text[: text.index(', "crc32"')] + "}")
        elif file.suffix == ".fingerprints":
            file.write_bytes(file.read_bytes()[:-8])
    assert len(Journal(dest).results(42)) == 4 and Journal(dest).fingerprinted(42).sum() > 10
    report = build(images, dest, size=SIZE)
    assert report.existing is ExistingBuild.UNFINISHED and report.content_hash == expected.content_hash


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("how", ["another shard", "bit", "cut"])
def test_finished_shard_that_has_changed_is_made_again(
    images: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its chunks may well be whole: those of another shard, restored from a backup."""
    expected, dest = build(images, tmp_path / "whole.zarr", size=SIZE), tmp_path / "d.zarr"
    build_and_stop(images, dest, 5, monkeypatch, size=SIZE)
    first, second = sorted(key for key in Journal(dest).results(42) if key[0] == "train")[:2]
    file = shard_file(dest, *second)
    other = shard_file(dest, *first).read_bytes()
    file.write_bytes(other if how == "another shard" else damaged(file.read_bytes(), how, random.Random(how)))
    report = build(images, dest, size=SIZE)
    assert (report.existing, report.damaged) == (ExistingBuild.UNFINISHED, 1)
    assert report.content_hash == expected.content_hash
    assert verify_dataset(dest).ok
    assert build(images, dest, size=SIZE).damaged == 0


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("overwrite", [False, True])
def test_journal_that_cannot_be_read_is_not_taken_for_none(
    images: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    dest = tmp_path / "d.zarr"
    build_and_stop(images, dest, 5, monkeypatch, size=SIZE)
    before = sorted(dest.rglob("*"))
    monkeypatch.setattr("pipeline.faults.PAUSES", ())

    def fail(path: Path) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(ReadError, match=r"build\.json, found input/output error"):
        patch.setattr("pipeline.build.journal.read_record", fail)
        build(images, dest, size=SIZE, overwrite=overwrite)
    assert sorted(dest.rglob("*")) == before
    assert build(images, dest, size=SIZE).existing is ExistingBuild.UNFINISHED
