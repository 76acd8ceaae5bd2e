"""A dataset that is replaced or may not be read while it is used: one error, and never mixed rows or false damage."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.build.build import BuildReport
from pipeline.dataset.store import Dataset, Split, shard_file
from pipeline.dataset.verify import verify_dataset
from pipeline.dataset.writer import unseal
from pipeline.errors import (
    AccessError,
    DamageError,
    DatasetChangedError,
    DecodeError,
    ListingError,
    PipelineError,
    ReadError,
)
from pipeline.faults import PAUSES
from pipeline.images.decode import decode_pixels
from pipeline.loader.stream import BatchStream
from pipeline.scan.class_folders import list_images
from pipeline.scan.walk import walk_files

Images = Callable[..., Path]
Build = Callable[..., BuildReport]


@pytest.fixture
def two(image_folder: Images, build: Build, tmp_path: Path, small_chunks: None) -> tuple[Path, Path]:
    """Two datasets of one shape and other images."""
    first = build(image_folder("one", a=20, b=20), tmp_path / "first.zarr", val=0.2).path
    root = image_folder("more", c=40, a=20, b=20)
    shutil.rmtree(root / "c")
    return first, build(root, tmp_path / "second.zarr", val=0.2).path


def replace_folder(first: Path, second: Path) -> None:
    first.rename(first.with_name("old.zarr"))
    second.rename(first)


def copy_over(first: Path, second: Path) -> None:
    shutil.copytree(second, first, dirs_exist_ok=True)


def begin_build(first: Path, second: Path) -> None:
    unseal(first)


def delete(first: Path, second: Path) -> None:
    shutil.rmtree(first)


CHANGES = {
    replace_folder: r"found another one \(content \w{8}, before \w{8}\) now",
    copy_over: r"found another one \(content \w{8}, before \w{8}\) now",
    begin_build: "found a build at work on it now",
    delete: "found nothing there now",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_epoch_ends_with_an_error_if_the_dataset_has_changed(
    two: tuple[Path, Path], change: Callable[[Path, Path], None], micro_batch: int
) -> None:
    data = Dataset.open(two[0])
    stream = BatchStream(data.train, 8, seed=0, micro_batch=micro_batch)
    assert len(list(stream)) == 4
    batches = iter(stream)
    next(batches)
    change(*two)
    with pytest.raises(DatasetChangedError, match=f"expected the dataset at .*first.zarr.*{CHANGES[change]}") as caught:
        list(batches)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("how", ["renamed", "in place", "in place, with its time"])
def test_rows_are_not_mixed_while_another_dataset_is_copied_over(two: tuple[Path, Path], how: str) -> None:
    """A copy comes to zarr.json last, or never."""
    data, again = Dataset.open(two[0]), Dataset.open(two[0])
    for file in [*two[0].rglob("images/c/*/0/0/0"), *two[0].rglob("labels/c/0"), *two[0].rglob("paths/c/0")]:
        status, other = file.stat(), two[1] / file.relative_to(two[0])
        if how == "renamed":
            other.replace(file)
        else:
            file.write_bytes(other.read_bytes())
        if "time" in how:
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DatasetChangedError, match="found other rows in train/images/c/0/0/0/0 now: nothing"):
        data.train.read(0, data.train.chunk_rows)
    for column in ("labels", "paths"):
        with pytest.raises(DatasetChangedError, match=f"found other rows in val/{column}/c/0 now"):
            again.val.read_column(column, 0, 4)
    assert verify_dataset(two[0]).content_matches is False


def test_rows_that_are_cached_do_not_change(two: tuple[Path, Path]) -> None:
    data = Dataset.open(two[0])
    stream = BatchStream(data.train, 8, seed=0, ram_budget=10**8)
    before = [batch.images.sum() for batch in stream.epoch(0)]
    delete(*two)
    assert [batch.images.sum() for batch in stream.epoch(0)] == before


@pytest.mark.parametrize("how", ["touched", "shards touched", "copied"])
def test_same_content_is_no_change(two: tuple[Path, Path], tmp_path: Path, how: str) -> None:
    data = Dataset.open(two[0])
    if "touched" in how:
        for file in two[0].rglob("0" if "shards" in how else "zarr.json"):
            os.utime(file, ns=(1, 1))
    else:
        copied = shutil.copytree(two[0], tmp_path / "copied.zarr")
        replace_folder(two[0], copied)
    data.check_unchanged()
    assert len(list(BatchStream(data.train, 8, seed=0))) == 4


@pytest.mark.parametrize("change", CHANGES)
def test_changed_dataset_is_not_called_damaged(
    two: tuple[Path, Path], change: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset.open(two[0])
    change(*two)
    shutil.rmtree(two[0] / "train" / "images" / "c", ignore_errors=True)
    with pytest.raises(DatasetChangedError):
        data.train.read(0, 4)


def test_dataset_that_changes_is_not_opened_or_verified(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = "pipeline.dataset.store._check_columns"
    with monkeypatch.context() as patch, pytest.raises(DatasetChangedError):
        patch.setattr(check, lambda split: replace_folder(*two) if split.name == "train" else None)
        Dataset.open(two[0])
    read, changed = Split.read, False

    def read_and_change(split: Split, start: int, stop: int) -> object:
        nonlocal changed
        if not changed:
            unseal(two[0])
        changed = True
        return read(split, start, stop)

    monkeypatch.setattr(Split, "read", read_and_change)
    with pytest.raises(DatasetChangedError):
        verify_dataset(two[0])


def failing(monkeypatch: pytest.MonkeyPatch, code: int, times: int) -> None:
    """Let the next reads of shards fail."""
    monkeypatch.setattr("pipeline.faults.PAUSES", (0,) * len(PAUSES))
    preadv = os.preadv

    def fail(*arguments: object) -> int:
        nonlocal times
        if times:
            times -= 1
            raise OSError(code, os.strerror(code))
        return preadv(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", fail)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_fault_of_the_system_is_no_damage(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    data = Dataset.open(two[0])
    with monkeypatch.context() as patch:
        failing(patch, code, len(PAUSES))
        data.train.read(0, 8)
    failing(monkeypatch, code, 1000)
    with pytest.raises(ReadError, match=f"read {shard_file(two[0], 'train', 0)}, found {os.strerror(code).lower()}: "):
        data.train.read(0, 8)


def test_missing_shard_is_damage(two: tuple[Path, Path]) -> None:
    shard_file(two[0], "train", 0).unlink()
    with pytest.raises(DamageError, match="no such file"):
        Dataset.open(two[0]).train.read(0, 8)


@contextmanager
def without_rights(folder: Path, below: str) -> Iterator[Path]:
    """A copy of the folder, where what is at `below` may not be read; as root, run as another user meanwhile."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as temporary:  # not tmp_path: only its owner may enter that
        copy = Path(shutil.copytree(folder, Path(temporary) / "copy"))
        Path(temporary).chmod(0o755)
        (copy / below).chmod(0)
        if is_root:
            os.seteuid(65534)
        try:
            yield copy
        finally:
            if is_root:
                os.seteuid(0)
            (copy / below).chmod(0o755)


def use(path: Path) -> None:
    data = Dataset.open(path)
    assert len(data.train[:4].paths) + len(data.val[:4].labels) == 8


@pytest.mark.skipif(sys.platform == "win32", reason="needs the permissions of POSIX")
@pytest.mark.parametrize("below", ["", "zarr.json", "train", "train/images/zarr.json", "val/labels/c/0", "train/paths"])
def test_dataset_that_may_not_be_read_is_not_called_damaged(two: tuple[Path, Path], below: str) -> None:
    use(two[0])
    with without_rights(two[0], "val/paths/c/0") as path:
        Dataset.open(path).train.read(0, 8)  # what may be read is
    with without_rights(two[0], below) as path, pytest.raises(PipelineError) as caught:
        use(path)
    assert isinstance(caught.value, AccessError), caught.value
    assert "permission denied: check its permissions" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs the permissions of POSIX")
def test_folder_of_images_that_may_not_be_read(image_folder: Images, tmp_path: Path) -> None:
    root = image_folder(a=2, b=2)
    with without_rights(root, "b") as path:
        with pytest.raises(ListingError, match=r"found permission denied at .*/b: check its permissions"):
            list_images(path)
        assert [file.name for file in walk_files(path, tmp_path)] == ["a/0000.png", "a/0001.png", "b/"]
        with pytest.raises(DecodeError, match="unreadable: expected a file, found a folder without access"):
            decode_pixels(path / "b", (2, 2), "pad")
    with without_rights(root.parent, root.name) as path, pytest.raises(AccessError, match="permission denied: check"):
        list_images(path / root.name / "a")


def test_column_that_the_system_cannot_look_at_is_not_damaged(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    split, look = Dataset.open(two[0]).val, Path.stat

    def fail(path: Path, **options: bool) -> os.stat_result:
        if path.parts[-3:] == ("labels", "c", "0"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return look(path, **options)

    monkeypatch.setattr("pipeline.faults.PAUSES", (0,) * len(PAUSES))
    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(ReadError, match="input/output error"):
        _ = split.labels
