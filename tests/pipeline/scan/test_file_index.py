"""Background scan: parts arrive in order during the scan, errors at once, and the thread always ends."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ListingError, ReadError
from pipeline.scan import walk
from pipeline.scan.file_index import FileIndex, FileIndexClosed
from pipeline.scan.walk import walk_files
from tests.pipeline.conftest import failing_after
from tests.pipeline.scan.test_class_folders import tree
from tests.pipeline.scan.test_walk import open_files

TIMEOUT = 10  # seconds, after which a test fails instead of hanging


@pytest.fixture(autouse=True)
def no_thread_remains() -> Iterator[None]:
    with failing_after(2 * TIMEOUT):
        yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("logpose-file-index")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of 23 files whose names sort as their numbers."""
    return tree(tmp_path / "tree", *(f"{number // 10}/{number:02}" for number in range(23)))


class Gate:
    """An `exclude` that blocks the walk at one name until `opened` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, name: str) -> bool:
        if name == self.name:
            self.reached.set()
            assert self.opened.wait(TIMEOUT)
        return False


@pytest.mark.parametrize("part_rows", [1, 5, 23, 100])
def test_all_parts_but_the_last_are_full_and_can_be_read_again(root: Path, tmp_path: Path, part_rows: int) -> None:
    expected = list(walk_files(root, tmp_path))
    with FileIndex(root, tmp_path, part_rows) as index:
        for _ in range(2):
            parts = list(index.parts())
            assert [file for part in parts for file in part] == expected
            assert [len(part) for part in parts[:-1]] == [part_rows] * (len(parts) - 1)
        assert (index.found, index.complete) == (23, True)


def test_parts_are_available_before_the_scan_is_complete(root: Path, tmp_path: Path) -> None:
    gate = Gate("2/20")
    with FileIndex(root, tmp_path, 5, gate) as index:
        parts = index.parts()
        assert [next(parts)[0].name for _ in range(4)] == ["0/00", "0/05", "1/10", "1/15"]
        assert gate.reached.wait(TIMEOUT)
        assert (index.found, index.complete) == (20, False)
        threading.Timer(0.05, gate.opened.set).start()
        assert [file.name for file in next(parts)] == ["2/20", "2/21", "2/22"]
        assert list(parts) == []
        assert (index.found, index.complete) == (23, True)


def test_excluded_files_are_left_out(root: Path, tmp_path: Path) -> None:
    with FileIndex(root, tmp_path, 100, lambda name: name in ("0", "1/11")) as index:
        (part,) = index.parts()
    assert [file.name for file in part][:3] == ["1/10", "1/12", "1/13"]


def test_nothing_found_raises_listing_error(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with FileIndex(root, tmp_path, 5) as index:
            with pytest.raises(ListingError, match="check the path"):
                next(index.parts())
            assert (index.found, index.complete) == (0, False)


def test_error_is_raised_before_remaining_parts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate("2")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == root / "2":
            gate("2")
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with FileIndex(root, tmp_path, 5) as index:
        parts = index.parts()
        assert [file.name for file in next(parts)] == ["0/00", "0/01", "0/02", "0/03", "0/04"]
        gate.opened.set()
        index._thread.join(TIMEOUT)
        assert index.found == 20
        for asked in (parts, index.parts()):
            with pytest.raises(ReadError, match=r"read .*2, found input/output error: check the disk"):
                next(asked)
        assert not index.complete


@pytest.mark.parametrize("run_entries", [3, 100])  # the write that fails is the walk's or the index's
def test_full_disk_raises_oserror_in_the_reader(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_entries: int
) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", run_entries)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with FileIndex(root, tmp_path, 5) as index, pytest.raises(OSError, match="No space left") as caught:
        next(index.parts())
    assert caught.value.errno == errno.ENOSPC


def test_full_disk_raises_oserror_in_a_waiting_reader(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate("2/20")
    with FileIndex(root, tmp_path, 5, gate) as index:
        parts = index.parts()
        for _ in range(4):
            next(parts)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        threading.Timer(0.05, gate.opened.set).start()
        with pytest.raises(OSError, match="No space left"):
            next(parts)


def test_error_in_exclude_is_raised_in_the_reader(root: Path, tmp_path: Path) -> None:
    def fail(name: str) -> bool:
        raise ZeroDivisionError(name)

    with FileIndex(root, tmp_path, 5, fail) as index, pytest.raises(ZeroDivisionError):
        next(index.parts())


def test_missing_scratch_folder_raises_oserror(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), FileIndex(root, tmp_path / "nowhere", 5):
        pass


@pytest.mark.parametrize("inside", ["1", "1/13"])
def test_leaving_early_stops_the_walk_inside_a_folder(root: Path, tmp_path: Path, inside: str) -> None:
    asked: list[str] = []
    gate = Gate(inside)

    def exclude(name: str) -> bool:
        asked.append(name)
        return gate(name)

    index = FileIndex(root, tmp_path, 5, exclude)
    gate.opened = index._stopped
    with index:
        assert gate.reached.wait(TIMEOUT)
    assert asked[-1] == inside
    assert not index.complete


def test_parts_outside_the_with_block_raise_file_index_closed(root: Path, tmp_path: Path) -> None:
    index = FileIndex(root, tmp_path, 5)
    with pytest.raises(FileIndexClosed):
        next(index.parts())
    with index:
        started = index.parts()
        next(started)
        assert len(list(index.parts())) == 5  # wait until the scan is complete
    for parts in (started, index.parts()):
        with pytest.raises(FileIndexClosed):
            next(parts)


def test_reader_in_another_thread_raises_file_index_closed(root: Path, tmp_path: Path) -> None:
    gate = Gate("2/20")
    errors: list[BaseException] = []

    def read(index: FileIndex) -> None:
        try:
            list(index.parts())
        except FileIndexClosed as error:
            errors.append(error)

    index = FileIndex(root, tmp_path, 5, gate)
    gate.opened = index._stopped
    with index:
        reader = threading.Thread(target=read, args=(index,))
        reader.start()
        assert gate.reached.wait(TIMEOUT)
    reader.join(TIMEOUT)
    assert len(errors) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@pytest.mark.parametrize("run_entries", [3, 100])
def test_no_file_or_descriptor_remains(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_entries: int
) -> None:
    monkeypatch.setattr(walk, "RUN_ENTRIES", run_entries)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = open_files()
    with FileIndex(root, scratch, 5) as index:
        next(index.parts())
        assert list(scratch.iterdir()) == []
    assert open_files() == before
    assert list(scratch.iterdir()) == []
